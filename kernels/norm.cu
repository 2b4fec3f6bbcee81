// Layer norm and RMS norm over rows of d.
//
//   forward   y = (x − μ)·ρ·γ + β         μ = mean(x) (0 for RMS), ρ = 1 / √(mean((x − μ)²) + ε)
//   backward  dx (+)= ρ·(g − mean(g) − x̂·mean(g·x̂))       g = dy·γ, x̂ = (x − μ)·ρ; no mean(g) for RMS
//   gamma     partial[piece, c] = Σ_{rows of piece} dy·x̂
//
// Forward and backward: GROUP threads share a row, a warp (eight rows a block) or the whole block (one row).
//
//   row   | unit 0 → thread 0 | unit 1 → thread 1 | .. | unit GROUP → thread 0 | ..
//
// A unit is 16 bytes, or one element where the row is not aligned. Each thread keeps its first CHUNKS units in registers as they
// lie in storage, so that the passes over the row (mean, deviation, result) read memory once; units beyond that are read again,
// from a cache by then. All arithmetic is in f32. Limited by reading x (and dy) and writing y (dx) once.
//
// Gamma: a block takes 32 units of columns of one piece of rows; warp g adds rows g, g + 8, .. in order, then the eight sums are
// added in order. The pieces are summed by column_sum.cu.

#include "tile/elements.cuh"
#include "tile/reduce.cuh"

#ifndef NORM_THREADS
#error "NORM_THREADS comes from the kernel table"
#endif
#ifndef NORM_FORWARD_CHUNKS
#error "NORM_FORWARD_CHUNKS comes from the kernel table"
#endif
#ifndef NORM_BACKWARD_CHUNKS
#error "NORM_BACKWARD_CHUNKS comes from the kernel table"
#endif

struct Forward {
    const void* x;
    const void* gamma;
    const void* beta;
    void* y;
    float* statistics;
    size_t m;
    size_t d;
    float eps;
    uint32_t centred;
    uint32_t given;
    uint32_t vector;
};
static_assert(sizeof(Forward) == 72 && offsetof(Forward, eps) == 56, "mirrors gpu.rs");

struct Backward {
    const void* dy;
    const void* x;
    const void* gamma;
    void* dx;
    const float* statistics;
    size_t m;
    size_t d;
    uint32_t centred;
    uint32_t accumulate;
    uint32_t vector;
    uint32_t reserved;
};
static_assert(sizeof(Backward) == 72 && offsetof(Backward, centred) == 56, "mirrors gpu.rs");

struct Gamma {
    const void* dy;
    const void* x;
    float* partial;
    const float* statistics;
    size_t m;
    size_t d;
    size_t piece;
    uint32_t centred;
    uint32_t vector;
};
static_assert(sizeof(Gamma) == 64 && offsetof(Gamma, centred) == 56, "mirrors gpu.rs");

constexpr int WARPS = NORM_THREADS / 32;

// A thread's units of one row: the first CHUNKS in registers.
template <typename T, int N, int GROUP, int CHUNKS>
struct Row {
    const T* at;
    size_t units;
    size_t lane;
    tile::Unit<T, N> held[CHUNKS];

    __device__ __forceinline__ Row(const T* at, size_t units, size_t lane) : at(at), units(units), lane(lane) {
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            const size_t u = lane + static_cast<size_t>(c) * GROUP;
            if (u < units) {
                held[c].load(at + u * N);
            } else {
                // Never looked at; but a compiler that adds first and selects afterwards must find a number.
                held[c].clear();
            }
        }
    }

    // Calls body(unit, values) for every unit of this thread, in ascending order.
    template <typename Body>
    __device__ __forceinline__ void each(Body body) const {
        float v[N];
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            const size_t u = lane + static_cast<size_t>(c) * GROUP;
            if (u < units) {
                held[c].get(v);
                body(u, v);
            }
        }
        for (size_t u = lane + static_cast<size_t>(CHUNKS) * GROUP; u < units; u += GROUP) {
            tile::load<T, N>(at + u * N, v);
            body(u, v);
        }
    }

    // The same over this row and another of the same shape.
    template <typename Body>
    __device__ __forceinline__ void each_with(const Row& other, Body body) const {
        float v[N], w[N];
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            const size_t u = lane + static_cast<size_t>(c) * GROUP;
            if (u < units) {
                held[c].get(v);
                other.held[c].get(w);
                body(u, v, w);
            }
        }
        for (size_t u = lane + static_cast<size_t>(CHUNKS) * GROUP; u < units; u += GROUP) {
            tile::load<T, N>(at + u * N, v);
            tile::load<T, N>(other.at + u * N, w);
            body(u, v, w);
        }
    }
};

// x̂, without contraction into what surrounds it: a forward pass that computes its statistics and one that is given them must
// end with the same bits.
__device__ __forceinline__ float standard(float x, float mean, float rho) {
    return __fmul_rn(__fsub_rn(x, mean), rho);
}

// μ and ρ of a row.
__device__ __forceinline__ float2 read_statistics(const float* statistics, uint32_t centred, size_t row) {
    return centred ? make_float2(statistics[2 * row], statistics[2 * row + 1]) : make_float2(0.0f, statistics[row]);
}

template <typename T, int N, int GROUP>
__device__ __forceinline__ void forward(const Forward& p, float* scratch) {
    constexpr int ROWS = NORM_THREADS / GROUP;
    const size_t lane = threadIdx.x % GROUP, units = p.d / N;
    const T* gamma = static_cast<const T*>(p.gamma);
    const T* beta = static_cast<const T*>(p.beta);
    // With GROUP = NORM_THREADS all threads share the row, and so come to every barrier inside group_sum.
    for (size_t row = static_cast<size_t>(blockIdx.x) * ROWS + threadIdx.x / GROUP; row < p.m;
         row += static_cast<size_t>(gridDim.x) * ROWS) {
        const Row<T, N, GROUP, NORM_FORWARD_CHUNKS> x(static_cast<const T*>(p.x) + row * p.d, units, lane);
        float mean = 0.0f, rho;
        if (p.given) {
            const float2 s = read_statistics(p.statistics, p.centred, row);
            mean = s.x;
            rho = s.y;
        } else {
            const float count = static_cast<float>(p.d);
            if (p.centred) {
                float sum = 0.0f;
                x.each([&](size_t, const float(&v)[N]) {
#pragma unroll
                    for (int i = 0; i < N; ++i) sum += v[i];
                });
                mean = tile::group_sum<GROUP>(sum, scratch) / count;
            }
            float squares = 0.0f;
            x.each([&](size_t, const float(&v)[N]) {
#pragma unroll
                for (int i = 0; i < N; ++i) squares += (v[i] - mean) * (v[i] - mean);
            });
            rho = 1.0f / sqrtf(tile::group_sum<GROUP>(squares, scratch) / count + p.eps);
            if (lane == 0) {
                if (p.centred) {
                    p.statistics[2 * row] = mean;
                    p.statistics[2 * row + 1] = rho;
                } else {
                    p.statistics[row] = rho;
                }
            }
        }
        T* y = static_cast<T*>(p.y) + row * p.d;
        x.each([&](size_t u, const float(&v)[N]) {
            float g[N], b[N], out[N];
            tile::load<T, N>(gamma + u * N, g);
            if (beta != nullptr) {
                tile::load<T, N>(beta + u * N, b);
            } else {
#pragma unroll
                for (int i = 0; i < N; ++i) b[i] = 0.0f;
            }
#pragma unroll
            for (int i = 0; i < N; ++i) out[i] = __fmaf_rn(standard(v[i], mean, rho), g[i], b[i]);
            tile::store<T, N>(y + u * N, out);
        });
    }
}

template <typename T, int N, int GROUP>
__device__ __forceinline__ void backward(const Backward& p, float* scratch) {
    constexpr int ROWS = NORM_THREADS / GROUP;
    using Held = Row<T, N, GROUP, NORM_BACKWARD_CHUNKS>;
    const size_t lane = threadIdx.x % GROUP, units = p.d / N;
    const T* gamma = static_cast<const T*>(p.gamma);
    for (size_t row = static_cast<size_t>(blockIdx.x) * ROWS + threadIdx.x / GROUP; row < p.m;
         row += static_cast<size_t>(gridDim.x) * ROWS) {
        const Held dy(static_cast<const T*>(p.dy) + row * p.d, units, lane);
        const Held x(static_cast<const T*>(p.x) + row * p.d, units, lane);
        const float2 s = read_statistics(p.statistics, p.centred, row);
        float sum = 0.0f, along = 0.0f;
        dy.each_with(x, [&](size_t u, const float(&dv)[N], const float(&xv)[N]) {
            float g[N];
            tile::load<T, N>(gamma + u * N, g);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                sum += dv[i] * g[i];
                along += dv[i] * g[i] * standard(xv[i], s.x, s.y);
            }
        });
        const float count = static_cast<float>(p.d);
        const float centre = p.centred ? tile::group_sum<GROUP>(sum, scratch) / count : 0.0f;
        along = tile::group_sum<GROUP>(along, scratch) / count;
        T* dx = static_cast<T*>(p.dx) + row * p.d;
        dy.each_with(x, [&](size_t u, const float(&dv)[N], const float(&xv)[N]) {
            float g[N], out[N];
            tile::load<T, N>(gamma + u * N, g);
            if (p.accumulate) {
                tile::load<T, N>(dx + u * N, out);
            } else {
#pragma unroll
                for (int i = 0; i < N; ++i) out[i] = 0.0f;
            }
#pragma unroll
            for (int i = 0; i < N; ++i) {
                out[i] += s.y * (dv[i] * g[i] - centre - standard(xv[i], s.x, s.y) * along);
            }
            tile::store<T, N>(dx + u * N, out);
        });
    }
}

template <typename T, int N>
__device__ __forceinline__ void gamma_sums(const Gamma& p, float* sums) {
    const T* dy = static_cast<const T*>(p.dy);
    const T* x = static_cast<const T*>(p.x);
    const int lane = threadIdx.x % 32, group = threadIdx.x / 32;
    const size_t column_tiles = (p.d + 32 * N - 1) / (32 * N), pieces = (p.m + p.piece - 1) / p.piece;
    for (size_t tile = blockIdx.x; tile < column_tiles * pieces; tile += gridDim.x) {
        const size_t first_column = tile % column_tiles * (32 * N), piece = tile / column_tiles;
        const size_t column = first_column + static_cast<size_t>(lane) * N;
        const size_t last = (piece + 1) * p.piece < p.m ? (piece + 1) * p.piece : p.m;
        float mine[N];
#pragma unroll
        for (int i = 0; i < N; ++i) mine[i] = 0.0f;
        if (column < p.d) {
            for (size_t row = piece * p.piece + group; row < last; row += WARPS) {
                const float2 s = read_statistics(p.statistics, p.centred, row);
                float dv[N], xv[N];
                tile::load<T, N>(dy + row * p.d + column, dv);
                tile::load<T, N>(x + row * p.d + column, xv);
#pragma unroll
                for (int i = 0; i < N; ++i) mine[i] += dv[i] * standard(xv[i], s.x, s.y);
            }
        }
        // Element i of all lanes lies together: no two lanes of a warp meet in one bank.
#pragma unroll
        for (int i = 0; i < N; ++i) sums[(group * N + i) * 32 + lane] = mine[i];
        // All warps' sums are written.
        __syncthreads();
        for (int at = threadIdx.x; at < 32 * N; at += NORM_THREADS) {
            const size_t c = first_column + static_cast<size_t>(at % 32) * N + at / 32;
            if (c < p.d) {
                float total = 0.0f;
#pragma unroll
                for (int g = 0; g < WARPS; ++g) total += sums[g * N * 32 + at];
                p.partial[piece * p.d + c] = total;
            }
        }
        // The sums are read before the next tile writes them.
        __syncthreads();
    }
}

// Three blocks on a multiprocessor leave 80 registers a thread: enough to hold a row without spilling.
#define NORM_ROWWISE(PASS, PARAMS, BODY, NAME, T, TILE, GROUP)                                   \
    extern "C" __global__ void __launch_bounds__(NORM_THREADS, 3)                                \
        norm_##PASS##_##NAME##_##TILE##_sm80(const __grid_constant__ PARAMS p) {                 \
        __shared__ float scratch[WARPS];                                                         \
        if (p.vector) {                                                                          \
            BODY<T, tile::PACK<T>, GROUP>(p, scratch);                                           \
        } else {                                                                                 \
            BODY<T, 1, GROUP>(p, scratch);                                                       \
        }                                                                                        \
    }

#define NORM(NAME, T)                                                                            \
    NORM_ROWWISE(fwd, Forward, forward, NAME, T, warp, 32)                                       \
    NORM_ROWWISE(fwd, Forward, forward, NAME, T, block, NORM_THREADS)                            \
    NORM_ROWWISE(bwd, Backward, backward, NAME, T, warp, 32)                                     \
    NORM_ROWWISE(bwd, Backward, backward, NAME, T, block, NORM_THREADS)                          \
    extern "C" __global__ void __launch_bounds__(NORM_THREADS)                                   \
        norm_gamma_##NAME##_t256_sm80(const __grid_constant__ Gamma p) {                         \
        __shared__ float sums[WARPS * 32 * tile::PACK<T>];                                       \
        if (p.vector) {                                                                          \
            gamma_sums<T, tile::PACK<T>>(p, sums);                                               \
        } else {                                                                                 \
            gamma_sums<T, 1>(p, sums);                                                           \
        }                                                                                        \
    }

NORM(f32, float)
NORM(f16, __half)
NORM(bf16, __nv_bfloat16)
