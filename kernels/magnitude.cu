// The lengths of the rows of W₀ + s·B·A, and what is divided by them.
//
//   norms    norms[i] = √(Σ_j (W₀[i, j] + s·Σ_q B[i, q]·A[q, j])²)
//   divide   target[i] (+)= x[i] / norms[i], or `without` where the norm is 0
//
// Norms: a block takes ROWS rows; its threads go through the columns side by side, each with the ROWS sums of its column, so that A
// is read once for all of them. B's rows lie in shared memory, where all threads read the same number at once.
//
//   rows of B (shared) | q = 0 | q = 1 | ..          columns of A, W₀ | thread 0 | thread 1 | .. | thread 0 | ..
//
// A thread's squares are added in the order of its columns, then those of the block's threads in an order that is fixed. Limited by
// r multiply-adds for each element of W₀, and by reading it once.

#include "tile/gradient.cuh"
#include "tile/reduce.cuh"

#ifndef MAGNITUDE_THREADS
#error "MAGNITUDE_THREADS comes from the kernel table"
#endif
#ifndef MAGNITUDE_ROWS
#error "MAGNITUDE_ROWS comes from the kernel table"
#endif
#ifndef MAGNITUDE_RANK
#error "MAGNITUDE_RANK comes from the kernel table"
#endif

struct Norms {
    const void* weight;
    const void* a;
    const void* b;
    float* norms;
    size_t n;
    size_t k;
    uint32_t r;
    float scale;
};
static_assert(sizeof(Norms) == 56 && offsetof(Norms, r) == 48, "mirrors gpu.rs");

struct Divide {
    const void* x;
    const float* norms;
    void* target;
    size_t n;
    float without;
    uint32_t flags;
};
static_assert(sizeof(Divide) == 40 && offsetof(Divide, without) == 32, "mirrors gpu.rs");

constexpr int ROWS = MAGNITUDE_ROWS;
constexpr int WARPS = MAGNITUDE_THREADS / 32;

template <typename T>
__device__ __forceinline__ void norms(const Norms& p, float (*b)[ROWS], float* scratch) {
    const T* weight = static_cast<const T*>(p.weight);
    const T* a = static_cast<const T*>(p.a);
    const T* factors = static_cast<const T*>(p.b);
    for (size_t first = static_cast<size_t>(blockIdx.x) * ROWS; first < p.n;
         first += static_cast<size_t>(gridDim.x) * ROWS) {
        // The factors of the rows before are read by now.
        __syncthreads();
        for (uint32_t at = threadIdx.x; at < ROWS * p.r; at += MAGNITUDE_THREADS) {
            const uint32_t i = at / p.r, q = at % p.r;
            b[q][i] = first + i < p.n ? tile::widen(factors[(first + i) * p.r + q]) : 0.0f;
        }
        // All factors of these rows are there.
        __syncthreads();
        float squares[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; ++i) squares[i] = 0.0f;
        for (size_t j = threadIdx.x; j < p.k; j += MAGNITUDE_THREADS) {
            float sums[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) sums[i] = 0.0f;
            for (uint32_t q = 0; q < p.r; ++q) {
                const float v = tile::widen(a[q * p.k + j]);
#pragma unroll
                for (int i = 0; i < ROWS; ++i) sums[i] += b[q][i] * v;
            }
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                if (first + i < p.n) {
                    const float v = tile::widen(weight[(first + i) * p.k + j]) + p.scale * sums[i];
                    squares[i] += v * v;
                }
            }
        }
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const float total = tile::block_sum<WARPS>(squares[i], scratch);
            if (threadIdx.x == 0 && first + i < p.n) p.norms[first + i] = sqrtf(total);
        }
    }
}

template <typename T>
__device__ __forceinline__ void divide(const Divide& p) {
    const T* x = static_cast<const T*>(p.x);
    tile::for_units(p.n, [&](size_t i) {
        const float norm = p.norms[i];
        tile::put<T>(p.target, i, norm == 0.0f ? p.without : tile::widen(x[i]) / norm, p.flags);
    });
}

#define MAGNITUDE(NAME, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(MAGNITUDE_THREADS)                                                    \
        magnitude_norms_##NAME##_r8_sm80(const __grid_constant__ Norms p) {                                            \
        __shared__ float b[MAGNITUDE_RANK][ROWS];                                                                      \
        __shared__ float scratch[WARPS];                                                                               \
        norms<T>(p, b, scratch);                                                                                       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(MAGNITUDE_THREADS)                                                    \
        magnitude_divide_##NAME##_t256_sm80(const __grid_constant__ Divide p) {                                        \
        divide<T>(p);                                                                                                  \
    }

MAGNITUDE(f32, float)
MAGNITUDE(f16, __half)
MAGNITUDE(bf16, __nv_bfloat16)
