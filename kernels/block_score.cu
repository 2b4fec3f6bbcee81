// One number for each block of a matrix: a norm of its elements, or what a tile of a gradient adds to a score.
//
//   norm:      out[e] = sqrt(Σ v²)  or  Σ |v| / elements        of [nnz, b, b], or of the matrix [n, k]
//   gradient:  out[e] (+)= Σ g²     or  Σ |w · g|               g [count, b, b] in f32, w [n, k]
//
// A block of threads takes one block of the matrix at a time; its threads add up strided elements, then one another's sums in a
// fixed order. Limited by reading the elements once.

#include "tile/elements.cuh"
#include "tile/reduce.cuh"

#include <type_traits>

#ifndef BLOCK_SCORE_THREADS
#error "BLOCK_SCORE_THREADS comes from the kernel table"
#endif

using namespace tile;

struct ScoreParams {
    const void* source;
    // [n, k], or null where elements enter alone.
    const void* weight;
    float* out;
    const uint32_t* rows;
    const uint32_t* columns;
    size_t n;
    size_t k;
    // Blocks first .. first + count of the pattern.
    uint32_t first;
    uint32_t count;
    uint32_t b;
    uint32_t flags;
};
static_assert(sizeof(ScoreParams) == 72 && offsetof(ScoreParams, n) == 40 && offsetof(ScoreParams, first) == 56,
              "mirrors ScoreParams in src/ops/block_score/gpu.rs");

enum ScoreFlag : uint32_t {
    // As ACCUMULATE of tile/gradient.cuh; scores are f32 always.
    ADD = 1,
    // The source is the matrix, not its blocks.
    AS_MATRIX = 2,
    // The mean of absolute values instead of the root of the sum of squares.
    MEAN = 4,
};

// Calls body(place in the block, place in the matrix) for this thread's elements of a block, those inside the matrix.
template <typename Body>
__device__ __forceinline__ void for_elements(const ScoreParams& p, size_t top, size_t left, uint32_t rows, uint32_t cols,
                                             Body body) {
    for (uint32_t i = threadIdx.x; i < p.b * p.b; i += BLOCK_SCORE_THREADS) {
        const uint32_t r = i / p.b, c = i % p.b;
        if (r < rows && c < cols) body(i, (top + r) * p.k + left + c);
    }
}

template <typename T, bool GRADIENT>
__device__ __forceinline__ void score(const ScoreParams& p) {
    __shared__ float scratch[BLOCK_SCORE_THREADS / 32];
    using Source = std::conditional_t<GRADIENT, float, T>;
    const Source* source = static_cast<const Source*>(p.source);
    const T* weight = static_cast<const T*>(p.weight);
    for (uint32_t block = blockIdx.x; block < p.count; block += gridDim.x) {
        const uint32_t e = p.first + block;
        const size_t top = static_cast<size_t>(p.rows[e]) * p.b, left = static_cast<size_t>(p.columns[e]) * p.b;
        const uint32_t rows = p.n - top < p.b ? static_cast<uint32_t>(p.n - top) : p.b;
        const uint32_t cols = p.k - left < p.b ? static_cast<uint32_t>(p.k - left) : p.b;
        const size_t base = static_cast<size_t>(block) * p.b * p.b;
        float sum = 0.0f;
        for_elements(p, top, left, rows, cols, [&](uint32_t within, size_t place) {
            const float v = widen(source[p.flags & AS_MATRIX ? place : base + within]);
            if (GRADIENT && weight != nullptr) {
                sum += fabsf(v * widen(weight[place]));
            } else {
                sum += !GRADIENT && (p.flags & MEAN) ? fabsf(v) : v * v;
            }
        });
        sum = block_sum<BLOCK_SCORE_THREADS / 32>(sum, scratch);
        if (threadIdx.x != 0) continue;
        if (GRADIENT) {
            p.out[e] = p.flags & ADD ? p.out[e] + sum : sum;
        } else {
            p.out[e] = p.flags & MEAN ? sum / static_cast<float>(rows * cols) : sqrtf(sum);
        }
    }
}

#define KERNELS(DTYPE, T)                                                             \
    extern "C" __global__ void __launch_bounds__(BLOCK_SCORE_THREADS)                 \
        block_score_norm_##DTYPE##_t256_sm80(const __grid_constant__ ScoreParams p) { \
        score<T, false>(p);                                                           \
    }                                                                                 \
    extern "C" __global__ void __launch_bounds__(BLOCK_SCORE_THREADS)                 \
        block_score_gradient_##DTYPE##_t256_sm80(const __grid_constant__ ScoreParams p) { \
        score<T, true>(p);                                                            \
    }

KERNELS(f32, float)
KERNELS(f16, __half)
KERNELS(bf16, __nv_bfloat16)
