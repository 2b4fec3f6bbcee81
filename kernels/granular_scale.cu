// The granularity gate.
//
//   forward   y = dropout(s·U·G) + R           U = H + ΔH + b
//   backward  dU = g·G (+ dl·w)                g = s·dropout'(dy)
//             dL = g·U·G·(1 − G), dz = Σ g·U, dw = Σ dl·(R + U), db = Σ dU, dR = dy + dl·w
//
//   | kind     | G                                     | dl                              |
//   | LARGE    | σ(L)                                  |                                 |
//   | MIDDLE_X | σ((R + U)·w + c), one for each row    | (Σ_row g·U)·G(1 − G)            |
//   | MIDDLE_Y | 1 + z or 1 + σ(z), one for a column   |                                 |
//   | SMALL    | Σ_i p_i σ(l_i) over a sample's rows   | (Σ_sample g·U)·p_i σ'(l_i)      |
//
// A block takes a row at a time; a unit is 16 bytes, or one element where the row is not aligned.
//
//   row   | unit 0 → thread 0 | unit 1 → thread 1 | .. | unit GROUP → thread 0 | ..
//
// A thread keeps the first CHUNKS units of U and of what else it needs in registers, so that a gate that wants the whole row first
// reads memory once; units beyond are read again, from a cache by then. Backward gives a block `piece` rows that follow one another.
// A thread meets the same columns in each, sums them in registers and writes one row of partial sums for the block; columns beyond
// the first CHUNKS units are summed in that row itself, which no other block touches. column_sum.cu adds the partial rows.
//
// SMALL takes a pass that writes a number for each row, a small kernel that turns them into one for each sample, and a pass with it.
//
// The fused form computes ΔH = D Wuᵀ tile by tile (see tile/gemm.cuh), lays the sums of a tile in shared memory, and gates them from
// there, a unit a thread: ΔH is never written. MIDDLE_X and SMALL, whose gate looks at a whole row of U, take a pass before it that writes
// the logits of all rows: ΔH_i·w = D_i·(Wuᵀw), r products a row instead of r·k.
//
// All arithmetic is in f32. Limited by reading H, ΔH, R and L (and dy) and writing y (dU, dL, dR) once.

#include "ptx/store.cuh"
#include "tile/gate.cuh"
#include "tile/gemm_fma.cuh"
#include "tile/gemm_mma.cuh"
#include "tile/reduce.cuh"

#ifndef GRANULAR_SHORT
#error "GRANULAR_SHORT comes from the kernel table"
#endif
#ifndef GRANULAR_LONG
#error "GRANULAR_LONG comes from the kernel table"
#endif
#ifndef GRANULAR_CHUNKS
#error "GRANULAR_CHUNKS comes from the kernel table"
#endif
#ifndef GRANULAR_SAMPLE_THREADS
#error "GRANULAR_SAMPLE_THREADS comes from the kernel table"
#endif
#ifndef GRANULAR_TILE
#error "GRANULAR_TILE comes from the kernel table"
#endif
#ifndef GEMM_STEP
#error "GEMM_STEP comes from the kernel table"
#endif
#ifndef GEMM_STAGES
#error "GEMM_STAGES comes from the kernel table"
#endif
#ifndef GEMM_F32_STEP
#error "GEMM_F32_STEP comes from the kernel table"
#endif
#ifndef GRANULAR_TILE_SHARED
#error "GRANULAR_TILE_SHARED comes from the kernel table"
#endif

using namespace gate;

// This thread's part of D_i·(Wuᵀw).
template <typename T, int N, int GROUP>
__device__ __forceinline__ float narrow_sum(const Forward& f, size_t row) {
    const T* from = static_cast<const T*>(f.narrow) + row * f.r;
    float sum = 0.0f;
    for (size_t c = threadIdx.x * N; c < f.r; c += GROUP * N) {
        float d[N], v[N];
        tile::load<T, N>(from + c, d);
        tile::load<float, N>(f.folded + c, v);
#pragma unroll
        for (int i = 0; i < N; ++i) sum += d[i] * v[i];
    }
    return sum;
}

template <Kind KIND, typename T, int N, int GROUP>
__device__ __forceinline__ void forward(const Forward& f, float* scratch) {
    constexpr bool LOOKS = KIND == MIDDLE_X || KIND == SMALL;
    const Common& p = f.c;
    const size_t units = p.k / N;
    const bool rows_only = LOOKS && (p.flags & ROWS_ONLY);
    const bool logit_wanted = KIND == MIDDLE_X || rows_only;
    const bool wants_residual = logit_wanted || (p.flags & ADD_RESIDUAL);
    // All threads share the row, and so come to every barrier inside group_sum.
    for (size_t row = blockIdx.x; row < p.m; row += gridDim.x) {
        const size_t at = row * p.k;
        Unit<KIND, T, N> held[GRANULAR_CHUNKS];
#pragma unroll
        for (int c = 0; c < GRANULAR_CHUNKS; ++c) {
            const size_t u = threadIdx.x + c * GROUP;
            if (u < units) {
                held[c].load(p, at, u * N, wants_residual);
            } else {
                held[c].clear_all();
            }
        }
        // Calls body(unit, column) for every unit of this thread.
        const auto each = [&](auto body) {
#pragma unroll
            for (int c = 0; c < GRANULAR_CHUNKS; ++c) {
                const size_t u = threadIdx.x + c * GROUP;
                if (u < units) body(held[c], u * N);
            }
            for (size_t u = threadIdx.x + GRANULAR_CHUNKS * GROUP; u < units; u += GROUP) {
                Unit<KIND, T, N> unit;
                unit.load(p, at, u * N, wants_residual);
                body(unit, u * N);
            }
        };
        float of_row = 0.0f;
        if constexpr (LOOKS) {
            if (logit_wanted) {
                float sum = 0.0f;
                each([&](const Unit<KIND, T, N>& unit, size_t col) {
                    float seen[N], r[N], w[N], v[N];
                    unit.seen(p, at + col, seen);
                    unit.residual.get(r);
                    tile::load<T, N>(residual_weight<KIND, T>(p) + col, w);
                    tile::load<T, N>(seen_weight<KIND, T>(p) + col, v);
#pragma unroll
                    for (int i = 0; i < N; ++i) sum += r[i] * w[i] + seen[i] * v[i];
                });
                if (f.folded != nullptr) {
                    sum += p.flags & NARROW_VECTOR ? narrow_sum<T, tile::PACK<T>, GROUP>(f, row) : narrow_sum<T, 1, GROUP>(f, row);
                }
                const float logit =
                    tile::group_sum<GROUP>(sum, scratch) + tile::widen(*static_cast<const T*>(f.gate_bias));
                if (threadIdx.x == 0) f.rows[row] = logit;
                of_row = sigmoid(logit);
            } else {
                of_row = p.samples[row / p.tokens];
            }
        }
        if (rows_only) continue;
        each([&](const Unit<KIND, T, N>& unit, size_t col) { finish<KIND, T, N>(f, unit, at, col, of_row); });
    }
}

// A thread's column sums over the rows of a block.
template <int N>
struct Sums {
    float bias[N];
    float gate[N];
    float residual[N];

    __device__ __forceinline__ void clear_all() {
        clear(bias);
        clear(gate);
        clear(residual);
    }

    // Adds them to, or starts, the block's partial rows.
    __device__ __forceinline__ void put(const Backward& b, size_t at, bool first) const {
        put_one(b.bias_sums, at, bias, first);
        put_one(b.gate_sums, at, gate, first);
        put_one(b.residual_sums, at, residual, first);
    }

    static __device__ __forceinline__ void put_one(float* to, size_t at, const float (&mine)[N], bool first) {
        if (to == nullptr) return;
        float v[N];
        clear(v);
        if (!first) tile::load<float, N>(to + at, v);
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] += mine[i];
        tile::store<float, N>(to + at, v);
    }
};

// The gradients of one unit, and what it adds to the sums.
template <Kind KIND, typename T, int N>
__device__ __forceinline__ void unit_gradients(const Backward& b, const Unit<KIND, T, N>& unit, const tile::Unit<T, N>& dy,
                                               size_t at, size_t col, float of_row, float dl, Sums<N>& sums) {
    constexpr bool LOOKS = KIND == MIDDLE_X || KIND == SMALL;
    const Common& p = b.c;
    float incoming[N], gate[N], du[N];
    dy.get(incoming);
    drop<N>(p, at + col, incoming);
    gates<KIND, T, N>(p, unit, col, of_row, gate);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        incoming[i] *= p.scale;
        du[i] = incoming[i] * gate[i];
    }
    if constexpr (KIND == LARGE) {
        if (b.logit_gradient != nullptr) {
            float out[N];
#pragma unroll
            for (int i = 0; i < N; ++i) out[i] = incoming[i] * unit.u[i] * slope(gate[i]);
            tile::store<T, N>(static_cast<T*>(b.logit_gradient) + at + col, out);
        }
    }
    if constexpr (KIND == MIDDLE_Y) {
        // σ' from 1 + σ.
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float factor = p.flags & SIGMOID ? slope(gate[i] - 1.0f) : 1.0f;
            sums.gate[i] += incoming[i] * unit.u[i] * factor;
        }
    }
    if constexpr (LOOKS) {
        float w[N], through[N];
        tile::load<T, N>(seen_weight<KIND, T>(p) + col, w);
#pragma unroll
        for (int i = 0; i < N; ++i) through[i] = du[i] + dl * w[i];
        if (b.hidden_gradient != nullptr) tile::store<T, N>(static_cast<T*>(b.hidden_gradient) + at + col, through);
        if (!(p.flags & SEES_HIDDEN)) {
#pragma unroll
            for (int i = 0; i < N; ++i) du[i] = through[i];
        }
        if (b.residual_gradient != nullptr) {
            float out[N];
            clear(out);
            if (p.flags & ADD_RESIDUAL) dy.get(out);
            tile::load<T, N>(residual_weight<KIND, T>(p) + col, w);
#pragma unroll
            for (int i = 0; i < N; ++i) out[i] += dl * w[i];
            tile::store<T, N>(static_cast<T*>(b.residual_gradient) + at + col, out);
        }
        if (b.gate_sums != nullptr) {
            float seen[N], r[N];
            unit.seen(p, at + col, seen);
            unit.residual.get(r);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                sums.gate[i] += dl * (KIND == SMALL ? seen[i] : seen[i] + r[i]);
                sums.residual[i] += dl * r[i];
            }
        }
    }
    if (b.update_gradient != nullptr) tile::store<T, N>(static_cast<T*>(b.update_gradient) + at + col, du);
#pragma unroll
    for (int i = 0; i < N; ++i) sums.bias[i] += du[i];
}

template <Kind KIND, typename T, int N, int GROUP>
__device__ __forceinline__ void backward(const Backward& b, float* scratch) {
    constexpr bool LOOKS = KIND == MIDDLE_X || KIND == SMALL;
    const Common& p = b.c;
    const size_t units = p.k / N, first = blockIdx.x * b.piece;
    const size_t last = first + b.piece < p.m ? first + b.piece : p.m, partial = blockIdx.x * p.k;
    const bool rows_only = KIND == SMALL && (p.flags & ROWS_ONLY);
    const bool wants_residual = LOOKS && b.gate_sums != nullptr && !rows_only;
    const T* from = static_cast<const T*>(b.dy);
    Sums<N> sums[GRANULAR_CHUNKS];
#pragma unroll
    for (int c = 0; c < GRANULAR_CHUNKS; ++c) sums[c].clear_all();
    for (size_t row = first; row < last; ++row) {
        const size_t at = row * p.k;
        Unit<KIND, T, N> held[GRANULAR_CHUNKS];
        tile::Unit<T, N> dy[GRANULAR_CHUNKS];
#pragma unroll
        for (int c = 0; c < GRANULAR_CHUNKS; ++c) {
            const size_t u = threadIdx.x + c * GROUP;
            if (u < units) {
                held[c].load(p, at, u * N, wants_residual);
                dy[c].load(from + at + u * N);
            } else {
                held[c].clear_all();
                dy[c].clear();
            }
        }
        float of_row = 0.0f, dl = 0.0f;
        if constexpr (LOOKS) {
            if (KIND == MIDDLE_X || rows_only) {
                float sum = 0.0f;
                const auto along = [&](const Unit<KIND, T, N>& unit, const tile::Unit<T, N>& dy, size_t col) {
                    float incoming[N];
                    dy.get(incoming);
                    drop<N>(p, at + col, incoming);
#pragma unroll
                    for (int i = 0; i < N; ++i) sum += incoming[i] * unit.u[i];
                };
#pragma unroll
                for (int c = 0; c < GRANULAR_CHUNKS; ++c) {
                    const size_t u = threadIdx.x + c * GROUP;
                    if (u < units) along(held[c], dy[c], u * N);
                }
                for (size_t u = threadIdx.x + GRANULAR_CHUNKS * GROUP; u < units; u += GROUP) {
                    Unit<KIND, T, N> unit;
                    tile::Unit<T, N> own;
                    unit.load(p, at, u * N, false);
                    own.load(from + at + u * N);
                    along(unit, own, u * N);
                }
                dl = p.scale * tile::group_sum<GROUP>(sum, scratch);
            }
            if (KIND == MIDDLE_X) {
                of_row = sigmoid(b.rows[row]);
                dl *= slope(of_row);
            }
            if (KIND == MIDDLE_X || rows_only) {
                if (threadIdx.x == 0) b.dl[row] = dl;
            } else {
                dl = b.dl[row];
                of_row = p.samples[row / p.tokens];
            }
        }
        if (rows_only) continue;
#pragma unroll
        for (int c = 0; c < GRANULAR_CHUNKS; ++c) {
            const size_t u = threadIdx.x + c * GROUP;
            if (u < units) unit_gradients<KIND, T, N>(b, held[c], dy[c], at, u * N, of_row, dl, sums[c]);
        }
        for (size_t u = threadIdx.x + GRANULAR_CHUNKS * GROUP; u < units; u += GROUP) {
            Unit<KIND, T, N> unit;
            tile::Unit<T, N> own;
            Sums<N> mine;
            mine.clear_all();
            unit.load(p, at, u * N, wants_residual);
            own.load(from + at + u * N);
            unit_gradients<KIND, T, N>(b, unit, own, at, u * N, of_row, dl, mine);
            mine.put(b, partial + u * N, row == first);
        }
    }
    if (rows_only) return;
#pragma unroll
    for (int c = 0; c < GRANULAR_CHUNKS; ++c) {
        const size_t u = threadIdx.x + c * GROUP;
        if (u < units) sums[c].put(b, partial + u * N, true);
    }
}

#define GRANULAR_KINDS(PASS, N)                                                    \
    switch (p.c.kind) {                                                            \
        case LARGE: return PASS<LARGE, T, N, GROUP>(p, scratch);                   \
        case MIDDLE_X: return PASS<MIDDLE_X, T, N, GROUP>(p, scratch);             \
        case MIDDLE_Y: return PASS<MIDDLE_Y, T, N, GROUP>(p, scratch);             \
        default: return PASS<SMALL, T, N, GROUP>(p, scratch);                      \
    }

template <typename T, int GROUP>
__device__ __forceinline__ void any_forward(const Forward& p, float* scratch) {
    if (p.c.flags & VECTOR) {
        GRANULAR_KINDS(forward, tile::PACK<T>)
    }
    GRANULAR_KINDS(forward, 1)
}

template <typename T, int GROUP>
__device__ __forceinline__ void any_backward(const Backward& p, float* scratch) {
    if (p.c.flags & VECTOR) {
        GRANULAR_KINDS(backward, tile::PACK<T>)
    }
    GRANULAR_KINDS(backward, 1)
}

// 768 threads on a multiprocessor leave 80 registers each, 512 leave 128: enough to hold what a thread keeps without spilling.
#define GRANULAR_PASS(PASS, PARAMS, NAME, T, GROUP, BLOCKS, TILE)                  \
    extern "C" __global__ void __launch_bounds__(GROUP, BLOCKS)                    \
        granular_scale_##PASS##_##NAME##_##TILE##_sm80(const __grid_constant__ PARAMS p) { \
        __shared__ float scratch[GROUP / 32];                                      \
        any_##PARAMS##_pass<T, GROUP>(p, scratch);                                 \
    }
#define any_Forward_pass any_forward
#define any_Backward_pass any_backward

#define GRANULAR(NAME, T)                                                          \
    GRANULAR_PASS(fwd, Forward, NAME, T, GRANULAR_SHORT, 12, t64)                  \
    GRANULAR_PASS(fwd, Forward, NAME, T, GRANULAR_LONG, 3, t256)                   \
    GRANULAR_PASS(bwd, Backward, NAME, T, GRANULAR_SHORT, 8, t64)                  \
    GRANULAR_PASS(bwd, Backward, NAME, T, GRANULAR_LONG, 2, t256)

GRANULAR(f32, float)
GRANULAR(f16, __half)
GRANULAR(bf16, __nv_bfloat16)

// The sums of one tile, as they lie in shared memory.
constexpr int TILE = GRANULAR_TILE, PITCH = TILE + 4;

// Gates the tile at (row, col) of the product.
template <Kind KIND, typename T, int N, int THREADS>
__device__ __forceinline__ void gate_tile(const Up& p, const float* sums, size_t row, size_t col) {
    constexpr int ACROSS = TILE / N;
    const bool wants_residual = p.f.c.flags & ADD_RESIDUAL;
    for (int i = threadIdx.x; i < TILE * ACROSS; i += THREADS) {
        const int r = i / ACROSS, c = i % ACROSS * N;
        if (row + r >= p.gemm.m || col + c >= p.gemm.n) continue;
        const size_t at = (row + r) * p.f.c.k, column = p.first_column + col + c;
        Unit<KIND, T, N> unit;
        unit.load(p.f.c, at, column, wants_residual);
        float update[N];
        tile::load<float, N>(sums + r * PITCH + c, update);
#pragma unroll
        for (int e = 0; e < N; ++e) unit.u[e] += update[e];
        float of_row = 0.0f;
        if constexpr (KIND == MIDDLE_X) {
            of_row = p.f.c.kind == SMALL ? p.f.c.samples[(row + r) / p.f.c.tokens] : sigmoid(p.f.rows[row + r]);
        }
        finish<KIND, T, N>(p.f, unit, at, column, of_row);
    }
}

// MIDDLE_X serves SMALL too: here both have a gate of the row by now.
template <typename T, int N, int THREADS>
__device__ __forceinline__ void gate_kind(const Up& p, const float* sums, size_t row, size_t col) {
    switch (p.f.c.kind) {
        case LARGE: return gate_tile<LARGE, T, N, THREADS>(p, sums, row, col);
        case MIDDLE_Y: return gate_tile<MIDDLE_Y, T, N, THREADS>(p, sums, row, col);
        default: return gate_tile<MIDDLE_X, T, N, THREADS>(p, sums, row, col);
    }
}

template <typename T, int THREADS>
__device__ __forceinline__ void gate_any(const Up& p, const float* sums, size_t row, size_t col) {
    if (p.f.c.flags & VECTOR) return gate_kind<T, tile::PACK<T>, THREADS>(p, sums, row, col);
    gate_kind<T, 1, THREADS>(p, sums, row, col);
}

template <typename T>
__device__ __forceinline__ void up_tensor_cores(const Up& p, uint4* ring) {
    using Gemm = tile::MmaGemm<tile::Layout::NT, T, T, TILE, TILE, GEMM_STEP, TILE / 2, TILE / 2, GEMM_STAGES>;
    static_assert(Gemm::SHARED_BYTES == GRANULAR_TILE_SHARED && TILE * PITCH * 4 <= Gemm::SHARED_BYTES, "as in the table");
    const tile::Work<tile::Layout::NT, TILE, TILE, GEMM_STEP> work(p.gemm);
    typename Gemm::Sums sums;
    Gemm::accumulate(p.gemm, work, ring, sums);
    float* laid = reinterpret_cast<float*>(ring);
    // All warps have read the last step's operands, where the sums go.
    __syncthreads();
    Gemm::each_pair(sums, [&](int row, int col, const float(&pair)[2]) {
        *reinterpret_cast<float2*>(laid + row * PITCH + col) = make_float2(pair[0], pair[1]);
    });
    // All warps' sums are written.
    __syncthreads();
    gate_any<T, Gemm::THREADS>(p, laid, work.row, work.col);
}

__device__ __forceinline__ void up_f32(const Up& p, float* buffers) {
    using Gemm = tile::FmaGemm<tile::Layout::NT, TILE, TILE, GEMM_F32_STEP>;
    static_assert(TILE * PITCH <= 2 * Gemm::BUFFER_FLOATS, "the sums lie where the operands lay");
    const tile::Work<tile::Layout::NT, TILE, TILE, GEMM_F32_STEP> work(p.gemm);
    Gemm::Sums sums;
    // Its last barrier orders the reads of the operands before the sums' writes.
    Gemm::accumulate(p.gemm, work, buffers, sums);
    Gemm::each_row(sums, [&](int row, int col, const float(&four)[Gemm::TN]) {
        ptx::store_shared_16(buffers + row * PITCH + col, make_float4(four[0], four[1], four[2], four[3]));
    });
    // All warps' sums are written.
    __syncthreads();
    gate_any<float, Gemm::THREADS>(p, buffers, work.row, work.col);
}

extern __shared__ __align__(16) uint4 ring[];

extern "C" __global__ void __launch_bounds__(128, 4) granular_scale_up_f16_64x64x32_sm80(const __grid_constant__ Up p) {
    up_tensor_cores<__half>(p, ring);
}

extern "C" __global__ void __launch_bounds__(128, 4) granular_scale_up_bf16_64x64x32_sm80(const __grid_constant__ Up p) {
    up_tensor_cores<__nv_bfloat16>(p, ring);
}

extern "C" __global__ void __launch_bounds__(128) granular_scale_up_f32_64x64x16_sm80(const __grid_constant__ Up p) {
    __shared__ __align__(16) float buffers[2 * tile::FmaGemm<tile::Layout::NT, TILE, TILE, GEMM_F32_STEP>::BUFFER_FLOATS];
    up_f32(p, buffers);
}

// A warp takes a sample: its gate from the logits, or its rows' dl from their sums.
template <typename Body>
__device__ __forceinline__ void each_sample(const Sample& p, Body body) {
    const size_t warps = static_cast<size_t>(gridDim.x) * (GRANULAR_SAMPLE_THREADS / 32);
    for (size_t s = (static_cast<size_t>(blockIdx.x) * GRANULAR_SAMPLE_THREADS + threadIdx.x) / 32; s < p.count; s += warps) {
        body(s);
    }
}

__device__ __forceinline__ float weight(const Sample& p, size_t row) {
    return p.tokens != nullptr ? p.tokens[row] : 1.0f / static_cast<float>(p.t);
}

extern "C" __global__ void __launch_bounds__(GRANULAR_SAMPLE_THREADS)
    granular_scale_samples_f32_w32_sm80(const __grid_constant__ Sample p) {
    each_sample(p, [&](size_t s) {
        float sum = 0.0f;
        for (size_t i = threadIdx.x % 32; i < p.t; i += 32) sum += weight(p, s * p.t + i) * sigmoid(p.rows[s * p.t + i]);
        sum = tile::warp_sum(sum);
        if (threadIdx.x % 32 == 0) p.samples[s] = sum;
    });
}

extern "C" __global__ void __launch_bounds__(GRANULAR_SAMPLE_THREADS)
    granular_scale_logits_f32_w32_sm80(const __grid_constant__ Sample p) {
    each_sample(p, [&](size_t s) {
        float sum = 0.0f;
        for (size_t i = threadIdx.x % 32; i < p.t; i += 32) sum += p.dl[s * p.t + i];
        sum = tile::warp_sum(sum);
        // A lane writes the rows that it alone has read.
        for (size_t i = threadIdx.x % 32; i < p.t; i += 32) {
            const size_t row = s * p.t + i;
            p.dl[row] = sum * weight(p, row) * slope(sigmoid(p.rows[row]));
        }
    });
}
