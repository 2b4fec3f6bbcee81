// Rows of a table by number:   y[i, :] = table[ids[i], :],   dtable[w, :] += Σ_{i: ids[i] = w} dy[i, :]  in the order of i.
//
// fwd: one unit (16 bytes, or one element) a thread; neighbours take neighbouring units of a row. Limited by reading and writing
//      the rows once.
// bwd: one block for each place i and each tile of columns:
//
//        ids   5 2 5 9 2 5        place 0 is the first of id 5: its block adds dy rows 0, 2 and 5, in this order
//              ▲ ▲ · ▲ · ·        place 2 finds 5 before itself and leaves
//
//      128 ids are compared at a time, each thread one; the matches are shared as a bit mask, and every thread walks over them in
//      order for its own columns. Each row of the table is written by one block, so nothing is added atomically. Limited by
//      comparing up to m²/2 pairs of ids, out of the cache, until the rows are long.
//
// An id out of range gives a row of NaN, and its gradient is dropped.

#include "tile/elements.cuh"
#include "tile/gradient.cuh"

#if !defined(EMBEDDING_FORWARD_THREADS) || !defined(EMBEDDING_BACKWARD_THREADS) || !defined(EMBEDDING_COLUMNS)
#error "the EMBEDDING_ constants come from the kernel table"
#endif

struct Params {
    const void* ids;
    const void* table;
    void* y;
    size_t m;
    size_t v;
    size_t d;
    uint32_t wide_ids;
    uint32_t vector;
};
static_assert(sizeof(Params) == 56 && offsetof(Params, wide_ids) == 48, "mirrors gpu.rs");

struct GradientParams {
    const void* ids;
    const void* dy;
    void* dtable;
    size_t m;
    size_t v;
    size_t d;
    uint32_t wide_ids;
    uint32_t flags;
};
static_assert(sizeof(GradientParams) == 56 && offsetof(GradientParams, wide_ids) == 48, "mirrors gpu.rs");

__device__ __forceinline__ int64_t id_of(const void* ids, uint32_t wide, size_t i) {
    return wide ? static_cast<const int64_t*>(ids)[i] : static_cast<int64_t>(static_cast<const int32_t*>(ids)[i]);
}

template <typename T, int N>
__device__ __forceinline__ void look_up(const Params& p) {
    const size_t units = p.d / N;
    tile::for_units(p.m * units, [&](size_t u) {
        const size_t i = u / units, column = u % units * N;
        const int64_t id = id_of(p.ids, p.wide_ids, i);
        tile::Unit<T, N> unit;
        if (id >= 0 && static_cast<size_t>(id) < p.v) {
            unit.load(static_cast<const T*>(p.table) + id * p.d + column);
        } else {
            float nothing[N];
#pragma unroll
            for (int j = 0; j < N; ++j) nothing[j] = NAN;
            unit.set(nothing);
        }
        unit.store(static_cast<T*>(p.y) + i * p.d + column);
    });
}

template <typename T>
__device__ __forceinline__ void forward(const Params& p) {
    if (p.vector) {
        look_up<T, tile::PACK<T>>(p);
    } else {
        look_up<T, 1>(p);
    }
}

constexpr int WARPS = EMBEDDING_BACKWARD_THREADS / 32;
constexpr int EACH = EMBEDDING_COLUMNS / EMBEDDING_BACKWARD_THREADS;
static_assert(EACH * EMBEDDING_BACKWARD_THREADS == EMBEDDING_COLUMNS, "every thread has the same number of columns");

// Which of the places first .. first + THREADS, below `end`, hold `id`: a bit each, for all threads of the block to read until the
// next barrier of theirs.
__device__ __forceinline__ void find(const GradientParams& p, int64_t id, size_t first, size_t end, uint32_t* matches) {
    const size_t j = first + threadIdx.x;
    const bool match = j < end && id_of(p.ids, p.wide_ids, j) == id;
    const uint32_t bits = __ballot_sync(0xFFFFFFFFu, match);
    // The matches of the round before are read by now.
    __syncthreads();
    if (threadIdx.x % 32 == 0) matches[threadIdx.x / 32] = bits;
    // All warps' matches are written.
    __syncthreads();
}

template <typename T>
__device__ __forceinline__ void table_gradient(const GradientParams& p) {
    __shared__ uint32_t matches[WARPS];
    const T* dy = static_cast<const T*>(p.dy);
    const size_t tiles = (p.d + EMBEDDING_COLUMNS - 1) / EMBEDDING_COLUMNS;
    for (size_t work = blockIdx.x; work < p.m * tiles; work += gridDim.x) {
        const size_t place = work % p.m, column = work / p.m * EMBEDDING_COLUMNS + threadIdx.x;
        const int64_t id = id_of(p.ids, p.wide_ids, place);
        // All threads of the block read one id and the same matches, so that they reach the same barriers.
        if (id < 0 || static_cast<size_t>(id) >= p.v) continue;
        uint32_t earlier = 0;
        for (size_t first = 0; first < place && earlier == 0; first += EMBEDDING_BACKWARD_THREADS) {
            find(p, id, first, place, matches);
#pragma unroll
            for (int w = 0; w < WARPS; ++w) earlier |= matches[w];
        }
        if (earlier != 0) continue;
        float sums[EACH] = {};
        for (size_t first = place; first < p.m; first += EMBEDDING_BACKWARD_THREADS) {
            find(p, id, first, p.m, matches);
            for (int w = 0; w < WARPS; ++w) {
                for (uint32_t bits = matches[w]; bits != 0; bits &= bits - 1) {
                    const T* row = dy + (first + 32 * w + __ffs(bits) - 1) * p.d;
#pragma unroll
                    for (int i = 0; i < EACH; ++i) {
                        const size_t c = column + i * EMBEDDING_BACKWARD_THREADS;
                        if (c < p.d) sums[i] += tile::widen(row[c]);
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const size_t c = column + i * EMBEDDING_BACKWARD_THREADS;
            if (c < p.d) tile::put<T>(p.dtable, id * p.d + c, sums[i], p.flags);
        }
    }
}

#define EMBEDDING(FORWARD, GRADIENT, T)                                                                          \
    extern "C" __global__ void __launch_bounds__(EMBEDDING_FORWARD_THREADS)                                      \
        FORWARD(const __grid_constant__ Params p) {                                                              \
        forward<T>(p);                                                                                           \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(EMBEDDING_BACKWARD_THREADS)                                     \
        GRADIENT(const __grid_constant__ GradientParams p) {                                                     \
        table_gradient<T>(p);                                                                                    \
    }

EMBEDDING(embedding_fwd_f32_t256_sm80, embedding_bwd_f32_c512_sm80, float)
EMBEDDING(embedding_fwd_f16_t256_sm80, embedding_bwd_f16_c512_sm80, __half)
EMBEDDING(embedding_fwd_bf16_t256_sm80, embedding_bwd_bf16_c512_sm80, __nv_bfloat16)
