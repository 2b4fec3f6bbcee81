// Ordered sums over rows: out[b, piece, c] (+)= s · Σ_{r in piece} x[b, r, c].
//
//   columns →   lane 0 .. 31, a unit of N columns each (16 bytes, or one element)
//   rows    ↓   group 0: rows 0, 8, 16, ..   group 1: rows 1, 9, ..   ..   group 7
//
// A block of eight warps takes one tile of 32·N columns of one piece of rows; warp g is group g. Every thread adds its rows in
// order, then group 0 adds the eight groups' sums in order. No atomics: the same bits every time.
// Limited by reading x once.

#include "tile/elements.cuh"

#ifndef COLUMN_SUM_THREADS
#error "COLUMN_SUM_THREADS comes from the kernel table"
#endif

struct Params {
    const void* x;
    void* out;
    size_t batch;
    size_t rows;
    size_t cols;
    size_t piece;
    size_t pieces;
    float scale;
    uint32_t accumulate;
    uint32_t vector;
    uint32_t reserved;
};
static_assert(sizeof(Params) == 72 && offsetof(Params, scale) == 56, "mirrors gpu.rs");

constexpr int GROUPS = COLUMN_SUM_THREADS / 32;

template <typename T, typename Out, int N>
__device__ __forceinline__ void sum(const Params& p, float* sums) {
    const T* x = static_cast<const T*>(p.x);
    Out* out = static_cast<Out*>(p.out);
    const int lane = threadIdx.x % 32, group = threadIdx.x / 32;
    const size_t column_tiles = (p.cols + 32 * N - 1) / (32 * N);
    const size_t tiles = column_tiles * p.pieces * p.batch;
    for (size_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const size_t column = (tile % column_tiles) * (32 * N) + static_cast<size_t>(lane) * N;
        const size_t piece = tile / column_tiles % p.pieces, b = tile / column_tiles / p.pieces;
        const size_t first = piece * p.piece;
        const size_t last = first + p.piece < p.rows ? first + p.piece : p.rows;
        float mine[N];
#pragma unroll
        for (int i = 0; i < N; ++i) mine[i] = 0.0f;
        if (column < p.cols) {
            const T* from = x + b * p.rows * p.cols + column;
#pragma unroll 4
            for (size_t row = first + group; row < last; row += GROUPS) {
                float v[N];
                tile::load<T, N>(from + row * p.cols, v);
#pragma unroll
                for (int i = 0; i < N; ++i) mine[i] += v[i];
            }
        }
        // Element i of all lanes lies together: no two lanes of a warp meet in one bank.
#pragma unroll
        for (int i = 0; i < N; ++i) sums[(group * N + i) * 32 + lane] = mine[i];
        // All groups' sums are written.
        __syncthreads();
        // The tile's columns are dealt to all threads for the last addition.
        for (int at = threadIdx.x; at < 32 * N; at += COLUMN_SUM_THREADS) {
            const size_t c = (tile % column_tiles) * (32 * N) + static_cast<size_t>(at % 32) * N + at / 32;
            if (c < p.cols) {
                float total = 0.0f;
#pragma unroll
                for (int g = 0; g < GROUPS; ++g) total += sums[g * N * 32 + at];
                Out* to = out + (b * p.pieces + piece) * p.cols + c;
                const float before = p.accumulate ? tile::widen(*to) : 0.0f;
                *to = tile::narrow<Out>(p.accumulate ? before + p.scale * total : p.scale * total);
            }
        }
        // The sums are read before the next tile writes them.
        __syncthreads();
    }
}

template <typename T, typename Out>
__device__ __forceinline__ void either(const Params& p) {
    __shared__ float sums[GROUPS * 32 * tile::PACK<T>];
    if (p.vector) {
        sum<T, Out, tile::PACK<T>>(p, sums);
    } else {
        sum<T, Out, 1>(p, sums);
    }
}

#define COLUMN_SUM(NAME, T, OUT)                                                                      \
    extern "C" __global__ void __launch_bounds__(COLUMN_SUM_THREADS) NAME(const __grid_constant__ Params p) { \
        either<T, OUT>(p);                                                                            \
    }

COLUMN_SUM(column_sum_fwd_f32_t256_sm80, float, float)
COLUMN_SUM(column_sum_fwd_f16_t256_sm80, __half, __half)
COLUMN_SUM(column_sum_fwd_bf16_t256_sm80, __nv_bfloat16, __nv_bfloat16)
COLUMN_SUM(column_sum_widen_f16_t256_sm80, __half, float)
COLUMN_SUM(column_sum_widen_bf16_t256_sm80, __nv_bfloat16, float)
COLUMN_SUM(column_sum_narrow_f16_t256_sm80, float, __half)
COLUMN_SUM(column_sum_narrow_bf16_t256_sm80, float, __nv_bfloat16)
