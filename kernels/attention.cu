// Attention without the t × s matrix:   S = scale·Q Kᵀ + mask,   P = softmax(S),   y = P V,   one head of one item at a time.
//
// One block takes a tile of ROWS rows (queries; keys in the dk/dv pass) and walks over the other side in tiles of 32.
//
//                 columns tx, tx + 16                          a half-warp of 16 threads (tx = 0 .. 15) owns 4 rows:
//               ┌───────────────────┐                          thread (ty, tx) holds rows 4·ty .. 4·ty + 3 of
//    rows       │ S: 4 × 2 a thread │ ──▶ weights [ROWS, 32]     · the scores of columns tx and tx + 16,
//    4·ty + i   └───────────────────┘       in shared memory     · the results of D / 16 columns.
//               ┌───────────────────────────────┐              A row's maximum and sum are reduced within its half-warp, and its
//               │ results: 4 × D/16 a thread    │              weights are read only by the half-warp that wrote them.
//               └───────────────────────────────┘
//
// Tiles lie in shared memory in f32, rows D + 4 long, so that the 16 rows that a half-warp reads four numbers each of fall on
// different banks. What lies beyond t, s or d is zero, and such scores are −∞.
//
// forward: an online softmax: when a row's maximum grows, its sum and results so far shrink by exp(old − new).
// dq:      P is made again from the row's log-sum-exp. A first walk over the keys adds up D_i = Σ_j P_ij dP_ij with dP = dy Vᵀ and
//          leaves it for the next pass; a second one adds dS K with dS = scale·P (dP − D).
// dk, dv:  rows are keys, columns queries: dk += dSᵀ Q, dv += Pᵀ dy.
// Every sum has a fixed order; nothing is added atomically. Limited by f32 multiply-adds.

#include "tile/elements.cuh"
#include "tile/gradient.cuh"

#if !defined(ATTENTION_D) || !defined(ATTENTION_COLUMNS) || !defined(ATTENTION_FORWARD_THREADS) || \
    !defined(ATTENTION_BACKWARD_THREADS)
#error "the ATTENTION_ constants come from the kernel table"
#endif

struct Params {
    const void* q;
    const void* k;
    const void* v;
    const void* mask;
    void* y;
    float* lse;
    const void* dy;
    float* mean;
    void* dq;
    void* dk;
    void* dv;
    size_t items;
    size_t mask_item_stride;
    size_t mask_head_stride;
    int32_t t;
    int32_t s;
    uint32_t heads;
    int32_t d;
    float scale;
    uint32_t causal;
    uint32_t mask_kind;
    uint32_t vector;
    uint32_t dq_flags;
    uint32_t dk_flags;
    uint32_t dv_flags;
    uint32_t reserved;
};
static_assert(sizeof(Params) == 160 && offsetof(Params, items) == 88 && offsetof(Params, t) == 112 &&
                  offsetof(Params, dq_flags) == 144,
              "mirrors gpu.rs");

constexpr int D = ATTENTION_D;
constexpr int LD = D + 4;
constexpr int COLUMNS = ATTENTION_COLUMNS;
constexpr int LW = COLUMNS + 4;
static_assert(COLUMNS == 32 && D % 32 == 0 && D <= 128, "the mapping of threads is made for these");

// Result columns of a thread: RUN neighbours at a time.
constexpr int RUN = D == 32 ? 2 : 4;
constexpr int RESULTS = D / 16;

// What the mask holds: nothing, bytes that keep, f32 to add; otherwise the operands' own type to add.
constexpr uint32_t MASK_NONE = 0, MASK_KEEP = 1, MASK_WIDE = 2;

__device__ __forceinline__ int result_column(int tx, int c) { return (c / RUN) * 16 * RUN + tx * RUN + c % RUN; }

// One head of one item.
struct Head {
    size_t item;
    uint32_t head;

    // Offset of its row 0 in a [b, n, h·d] tensor.
    __device__ __forceinline__ size_t start(const Params& p, int n) const {
        return (item * n * p.heads + head) * static_cast<size_t>(p.d);
    }
    // Offset of query i's statistics in [b, t, h].
    __device__ __forceinline__ size_t statistic(const Params& p, int i) const {
        return (item * p.t + i) * p.heads + head;
    }
};

// Rows first .. first + ROWS of a head whose row 0 is `from`, as f32.
template <typename T, int ROWS, int THREADS>
__device__ __forceinline__ void load_tile(float* tile, const T* from, int first, int n, const Params& p) {
    const size_t width = static_cast<size_t>(p.heads) * p.d;
    if (p.vector) {
        constexpr int N = tile::PACK<T>;
        constexpr int UNITS = D / N;
#pragma unroll 4
        for (int u = threadIdx.x; u < ROWS * UNITS; u += THREADS) {
            const int row = u / UNITS, column = u % UNITS * N;
            float values[N] = {};
            if (first + row < n && column < p.d) tile::load<T, N>(from + (first + row) * width + column, values);
#pragma unroll
            for (int i = 0; i < N; i += 4)
                *reinterpret_cast<float4*>(tile + row * LD + column + i) =
                    make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
        }
    } else {
        for (int e = threadIdx.x; e < ROWS * D; e += THREADS) {
            const int row = e / D, column = e % D;
            const bool inside = first + row < n && column < p.d;
            tile[row * LD + column] = inside ? tile::widen(from[(first + row) * width + column]) : 0.0f;
        }
    }
}

// products[i][j] = Σ_c rows[4·ty + i][c] · columns[tx + 16·j][c]
__device__ __forceinline__ void multiply(const float* rows, const float* columns, float (&products)[4][2]) {
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) products[i][0] = products[i][1] = 0.0f;
#pragma unroll 4
    for (int c = 0; c < D; c += 4) {
        float4 b[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) b[j] = *reinterpret_cast<const float4*>(columns + (tx + 16 * j) * LD + c);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float4 a = *reinterpret_cast<const float4*>(rows + (4 * ty + i) * LD + c);
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                products[i][j] = fmaf(a.x, b[j].x, products[i][j]);
                products[i][j] = fmaf(a.y, b[j].y, products[i][j]);
                products[i][j] = fmaf(a.z, b[j].z, products[i][j]);
                products[i][j] = fmaf(a.w, b[j].w, products[i][j]);
            }
        }
    }
}

// results[i][c] += Σ_j weights[4·ty + i][j] · values[j][result_column(c)]
__device__ __forceinline__ void accumulate(const float* weights, const float* values, float (&results)[4][RESULTS]) {
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
#pragma unroll 2
    for (int j = 0; j < COLUMNS; j += 4) {
        float w[4][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float4 four = *reinterpret_cast<const float4*>(weights + (4 * ty + i) * LW + j);
            w[i][0] = four.x, w[i][1] = four.y, w[i][2] = four.z, w[i][3] = four.w;
        }
#pragma unroll
        for (int step = 0; step < 4; ++step) {
#pragma unroll
            for (int run = 0; run < RESULTS / RUN; ++run) {
                const float* from = values + (j + step) * LD + run * 16 * RUN + tx * RUN;
                float b[RUN];
                if constexpr (RUN == 4) {
                    const float4 four = *reinterpret_cast<const float4*>(from);
                    b[0] = four.x, b[1] = four.y, b[2] = four.z, b[3] = four.w;
                } else {
                    const float2 two = *reinterpret_cast<const float2*>(from);
                    b[0] = two.x, b[1] = two.y;
                }
#pragma unroll
                for (int i = 0; i < 4; ++i)
#pragma unroll
                    for (int c = 0; c < RUN; ++c)
                        results[i][run * RUN + c] = fmaf(w[i][step], b[c], results[i][run * RUN + c]);
            }
        }
    }
}

// One past the last key that query i sees; 0 for a row beyond the last query.
__device__ __forceinline__ int visible(const Params& p, int i) {
    if (i >= p.t) return 0;
    if (!p.causal) return p.s;
    const int64_t seen = static_cast<int64_t>(i) + 1 + p.s - p.t;
    return seen < 0 ? 0 : seen < p.s ? static_cast<int>(seen) : p.s;
}

// The score of query i and key j, of which query i sees those below `seen`.
template <typename T>
__device__ __forceinline__ float score(const Params& p, const Head& head, float product, int i, int j, int seen) {
    if (j >= seen) return -INFINITY;
    const float x = product * p.scale;
    if (p.mask_kind == MASK_NONE) return x;
    const size_t at = head.item * p.mask_item_stride + head.head * p.mask_head_stride +
                      static_cast<size_t>(i) * p.s + j;
    if (p.mask_kind == MASK_KEEP) return static_cast<const uint8_t*>(p.mask)[at] ? x : -INFINITY;
    if (p.mask_kind == MASK_WIDE) return x + static_cast<const float*>(p.mask)[at];
    return x + tile::widen(static_cast<const T*>(p.mask)[at]);
}

__device__ __forceinline__ float half_warp_max(float v) {
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(0xFFFFFFFFu, v, offset));
    return v;
}

__device__ __forceinline__ float half_warp_sum(float v) {
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, offset);
    return v;
}

template <typename T, int THREADS>
__device__ __forceinline__ void forward(const Params& p, float* shared) {
    constexpr int ROWS = THREADS / 4;
    float* queries = shared;
    float* keys = queries + ROWS * LD;
    float* values = keys + COLUMNS * LD;
    float* weights = values + COLUMNS * LD;
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    const size_t tiles = (static_cast<size_t>(p.t) + ROWS - 1) / ROWS;
    for (size_t work = blockIdx.x; work < tiles * p.heads * p.items; work += gridDim.x) {
        const int first = static_cast<int>(work % tiles) * ROWS;
        const Head head{work / tiles / p.heads, static_cast<uint32_t>(work / tiles % p.heads)};
        const T* k = static_cast<const T*>(p.k) + head.start(p, p.s);
        const T* v = static_cast<const T*>(p.v) + head.start(p, p.s);
        load_tile<T, ROWS, THREADS>(queries, static_cast<const T*>(p.q) + head.start(p, p.t), first, p.t, p);

        float results[4][RESULTS] = {};
        float largest[4], sum[4] = {};
        int seen[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            largest[i] = -INFINITY;
            seen[i] = visible(p, first + 4 * ty + i);
        }
        // The block's last query sees the most.
        const int end = visible(p, first + ROWS < p.t ? first + ROWS - 1 : p.t - 1);
        for (int key = 0; key < end; key += COLUMNS) {
            load_tile<T, COLUMNS, THREADS>(keys, k, key, p.s, p);
            load_tile<T, COLUMNS, THREADS>(values, v, key, p.s, p);
            // The tiles are written before anyone reads them.
            __syncthreads();
            float x[4][2];
            multiply(queries, keys, x);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int j = 0; j < 2; ++j)
                    x[i][j] = score<T>(p, head, x[i][j], first + 4 * ty + i, key + tx + 16 * j, seen[i]);
                const float grown = fmaxf(largest[i], half_warp_max(fmaxf(x[i][0], x[i][1])));
                // While a row has seen nothing its scores are −∞ (or NaN, which the maximum passes over and the exponential
                // does not), and any finite base does.
                const float base = grown == -INFINITY ? 0.0f : grown;
                const float shrink = expf(largest[i] - base);
                largest[i] = grown;
                sum[i] *= shrink;
#pragma unroll
                for (int c = 0; c < RESULTS; ++c) results[i][c] *= shrink;
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const float e = expf(x[i][j] - base);
                    sum[i] += e;
                    weights[(4 * ty + i) * LW + tx + 16 * j] = e;
                }
            }
            // A row's weights are written before the other threads of its half-warp read them.
            __syncwarp();
            accumulate(weights, values, results);
            // All have read keys, values and weights before the next round overwrites them.
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = first + 4 * ty + i;
            const float total = half_warp_sum(sum[i]);
            if (row >= p.t) continue;
            // A row that saw nothing gives zeros; its log-sum-exp of +∞ makes every P of backward 0.
            if (tx == 0) p.lse[head.statistic(p, row)] = total == 0.0f ? INFINITY : largest[i] + logf(total);
            T* y = static_cast<T*>(p.y) + head.start(p, p.t) + row * (static_cast<size_t>(p.heads) * p.d);
#pragma unroll
            for (int c = 0; c < RESULTS; ++c) {
                const int column = result_column(tx, c);
                if (column < p.d) y[column] = tile::narrow<T>(total == 0.0f ? 0.0f : results[i][c] / total);
            }
        }
        // All have read the queries before the next piece of work overwrites them.
        __syncthreads();
    }
}

template <typename T>
__device__ __forceinline__ void store_rows(const Params& p, const Head& head, void* target, uint32_t flags, int first,
                                           int n, const float (&results)[4][RESULTS]) {
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = first + 4 * ty + i;
        if (row >= n) continue;
        const size_t start = head.start(p, n) + row * (static_cast<size_t>(p.heads) * p.d);
#pragma unroll
        for (int c = 0; c < RESULTS; ++c) {
            const int column = result_column(tx, c);
            if (column < p.d) tile::put<T>(target, start + column, results[i][c], flags);
        }
    }
}

template <typename T, int THREADS>
__device__ __forceinline__ void query_gradient(const Params& p, float* shared) {
    constexpr int ROWS = THREADS / 4;
    float* queries = shared;
    float* slopes = queries + ROWS * LD;
    float* keys = slopes + ROWS * LD;
    float* values = keys + COLUMNS * LD;
    float* weights = values + COLUMNS * LD;
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    const size_t tiles = (static_cast<size_t>(p.t) + ROWS - 1) / ROWS;
    for (size_t work = blockIdx.x; work < tiles * p.heads * p.items; work += gridDim.x) {
        const int first = static_cast<int>(work % tiles) * ROWS;
        const Head head{work / tiles / p.heads, static_cast<uint32_t>(work / tiles % p.heads)};
        const T* k = static_cast<const T*>(p.k) + head.start(p, p.s);
        const T* v = static_cast<const T*>(p.v) + head.start(p, p.s);
        load_tile<T, ROWS, THREADS>(queries, static_cast<const T*>(p.q) + head.start(p, p.t), first, p.t, p);
        load_tile<T, ROWS, THREADS>(slopes, static_cast<const T*>(p.dy) + head.start(p, p.t), first, p.t, p);

        float results[4][RESULTS] = {};
        float lse[4], mean[4] = {};
        int seen[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = first + 4 * ty + i;
            lse[i] = row < p.t ? p.lse[head.statistic(p, row)] : INFINITY;
            seen[i] = visible(p, row);
        }
        const int end = visible(p, first + ROWS < p.t ? first + ROWS - 1 : p.t - 1);
        // The first walk adds up D, the second uses it; with no dq to make, the first is all.
        const int walks = p.dq != nullptr ? 2 : 1;
        for (int walk = 0; walk < walks; ++walk) {
            for (int key = 0; key < end; key += COLUMNS) {
                load_tile<T, COLUMNS, THREADS>(keys, k, key, p.s, p);
                load_tile<T, COLUMNS, THREADS>(values, v, key, p.s, p);
                // The tiles are written before anyone reads them.
                __syncthreads();
                float x[4][2], dp[4][2];
                multiply(queries, keys, x);
                multiply(slopes, values, dp);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        const float weight = expf(
                            score<T>(p, head, x[i][j], first + 4 * ty + i, key + tx + 16 * j, seen[i]) - lse[i]);
                        if (walk == 0) {
                            mean[i] += weight * dp[i][j];
                        } else {
                            weights[(4 * ty + i) * LW + tx + 16 * j] = weight * (dp[i][j] - mean[i]) * p.scale;
                        }
                    }
                }
                if (walk == 1) {
                    // A row's weights are written before the other threads of its half-warp read them.
                    __syncwarp();
                    accumulate(weights, keys, results);
                }
                // All have read the tiles before the next round overwrites them.
                __syncthreads();
            }
            if (walk == 0) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int row = first + 4 * ty + i;
                    mean[i] = half_warp_sum(mean[i]);
                    if (tx == 0 && row < p.t) p.mean[head.statistic(p, row)] = mean[i];
                }
            }
        }
        if (p.dq != nullptr) store_rows<T>(p, head, p.dq, p.dq_flags, first, p.t, results);
        // All have read queries and slopes before the next piece of work overwrites them.
        __syncthreads();
    }
}

template <typename T, int THREADS>
__device__ __forceinline__ void key_gradient(const Params& p, float* shared) {
    constexpr int ROWS = THREADS / 4;
    float* keys = shared;
    float* values = keys + ROWS * LD;
    float* queries = values + ROWS * LD;
    float* slopes = queries + COLUMNS * LD;
    float* weights = slopes + COLUMNS * LD;
    float* bends = weights + ROWS * LW;
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    const size_t tiles = (static_cast<size_t>(p.s) + ROWS - 1) / ROWS;
    for (size_t work = blockIdx.x; work < tiles * p.heads * p.items; work += gridDim.x) {
        const int first = static_cast<int>(work % tiles) * ROWS;
        const Head head{work / tiles / p.heads, static_cast<uint32_t>(work / tiles % p.heads)};
        const T* q = static_cast<const T*>(p.q) + head.start(p, p.t);
        const T* dy = static_cast<const T*>(p.dy) + head.start(p, p.t);
        load_tile<T, ROWS, THREADS>(keys, static_cast<const T*>(p.k) + head.start(p, p.s), first, p.s, p);
        load_tile<T, ROWS, THREADS>(values, static_cast<const T*>(p.v) + head.start(p, p.s), first, p.s, p);

        float dk[4][RESULTS] = {}, dv[4][RESULTS] = {};
        // Queries before this one see none of the block's keys.
        const int64_t blind = static_cast<int64_t>(first) + p.t - p.s;
        const int begin = p.causal && blind > 0 ? static_cast<int>(blind / COLUMNS * COLUMNS) : 0;
        for (int query = begin; query < p.t; query += COLUMNS) {
            load_tile<T, COLUMNS, THREADS>(queries, q, query, p.t, p);
            load_tile<T, COLUMNS, THREADS>(slopes, dy, query, p.t, p);
            // The tiles are written before anyone reads them.
            __syncthreads();
            float x[4][2];
            multiply(keys, queries, x);
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int column = query + tx + 16 * j;
                const int seen = visible(p, column);
                const float lse = column < p.t ? p.lse[head.statistic(p, column)] : INFINITY;
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    x[i][j] = expf(score<T>(p, head, x[i][j], column, first + 4 * ty + i, seen) - lse);
                    weights[(4 * ty + i) * LW + tx + 16 * j] = x[i][j];
                }
            }
            if (p.dk != nullptr) {
                float dp[4][2];
                multiply(values, slopes, dp);
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const int column = query + tx + 16 * j;
                    const float mean = column < p.t ? p.mean[head.statistic(p, column)] : 0.0f;
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        bends[(4 * ty + i) * LW + tx + 16 * j] = x[i][j] * (dp[i][j] - mean) * p.scale;
                }
            }
            // A row's weights are written before the other threads of its half-warp read them.
            __syncwarp();
            if (p.dv != nullptr) accumulate(weights, slopes, dv);
            if (p.dk != nullptr) accumulate(bends, queries, dk);
            // All have read the tiles before the next round overwrites them.
            __syncthreads();
        }
        // dk and dv may be one tensor: a thread adds to its own elements one after the other.
        if (p.dk != nullptr) store_rows<T>(p, head, p.dk, p.dk_flags, first, p.s, dk);
        if (p.dv != nullptr) store_rows<T>(p, head, p.dv, p.dv_flags, first, p.s, dv);
        // All have read keys and values before the next piece of work overwrites them.
        __syncthreads();
    }
}

extern __shared__ __align__(16) float shared_memory[];

#define JOIN(A, B, C, WIDTH, E) A##B##C##WIDTH##E
#define NAMED(PASS, DTYPE, WIDTH) JOIN(attention_, PASS, DTYPE, WIDTH, _sm80)
#define ATTENTION(DTYPE, T)                                                                             \
    extern "C" __global__ void __launch_bounds__(ATTENTION_FORWARD_THREADS, 1)                            \
        NAMED(fwd_, DTYPE, ATTENTION_D)(const __grid_constant__ Params p) {                             \
        forward<T, ATTENTION_FORWARD_THREADS>(p, shared_memory);                                        \
    }                                                                                                   \
    extern "C" __global__ void __launch_bounds__(ATTENTION_BACKWARD_THREADS, 1)                           \
        NAMED(dq_, DTYPE, ATTENTION_D)(const __grid_constant__ Params p) {                              \
        query_gradient<T, ATTENTION_BACKWARD_THREADS>(p, shared_memory);                                \
    }                                                                                                   \
    extern "C" __global__ void __launch_bounds__(ATTENTION_BACKWARD_THREADS, 1)                           \
        NAMED(dkv_, DTYPE, ATTENTION_D)(const __grid_constant__ Params p) {                             \
        key_gradient<T, ATTENTION_BACKWARD_THREADS>(p, shared_memory);                                  \
    }

ATTENTION(f32_d, float)
ATTENTION(f16_d, __half)
ATTENTION(bf16_d, __nv_bfloat16)
