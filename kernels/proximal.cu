// Proximal steps on f32 parameters and the 16-bit copy that ops read.
//
//   blocks:  W_b <- max(0, 1 - t_b / |W_b|) · W_b            0 where the norm is 0
//   soft:    v <- sign(v) · max(|v| - t, 0)
//
// A block of threads takes one block of the parameters at a time and reads it twice, the second time from the first-level cache as
// far as it fits: limited by memory. NaN stays.

#include "tile/elements.cuh"
#include "tile/reduce.cuh"

#ifndef PROXIMAL_THREADS
#error "PROXIMAL_THREADS comes from the kernel table"
#endif

using namespace tile;

struct ProximalParams {
    float* master;
    // In T, or null.
    void* working;
    // One for each block, or null.
    const float* thresholds;
    size_t blocks;
    // Elements of one block.
    size_t each;
    float threshold;
    uint32_t padding;
};
static_assert(sizeof(ProximalParams) == 48 && offsetof(ProximalParams, blocks) == 24, "mirrors src/ops/proximal/gpu.rs");

template <typename T>
__device__ __forceinline__ void put_both(const ProximalParams& p, size_t i, float v) {
    p.master[i] = v;
    if (p.working != nullptr) static_cast<T*>(p.working)[i] = narrow<T>(v);
}

template <typename T>
__device__ __forceinline__ void shrink(const ProximalParams& p) {
    __shared__ float scratch[PROXIMAL_THREADS / 32];
    for (size_t block = blockIdx.x; block < p.blocks; block += gridDim.x) {
        const size_t base = block * p.each;
        float sum = 0.0f;
        for (size_t i = threadIdx.x; i < p.each; i += PROXIMAL_THREADS) sum += p.master[base + i] * p.master[base + i];
        const float norm = sqrtf(block_sum<PROXIMAL_THREADS / 32>(sum, scratch));
        const float rest = 1.0f - (p.thresholds != nullptr ? p.thresholds[block] : p.threshold) / norm;
        const float factor = norm == 0.0f || rest < 0.0f ? 0.0f : rest;
        for (size_t i = threadIdx.x; i < p.each; i += PROXIMAL_THREADS) put_both<T>(p, base + i, factor * p.master[base + i]);
    }
}

template <typename T>
__device__ __forceinline__ void soft(const ProximalParams& p) {
    for_units(p.blocks * p.each, [&](size_t i) {
        const float v = p.master[i], down = v - p.threshold, up = v + p.threshold;
        put_both<T>(p, i, down > 0.0f ? down : up < 0.0f ? up : v * 0.0f);
    });
}

#define KERNELS(DTYPE, T)                                                               \
    extern "C" __global__ void __launch_bounds__(PROXIMAL_THREADS)                      \
        proximal_blocks_##DTYPE##_t256_sm80(const __grid_constant__ ProximalParams p) { \
        shrink<T>(p);                                                                   \
    }                                                                                   \
    extern "C" __global__ void __launch_bounds__(PROXIMAL_THREADS)                      \
        proximal_soft_##DTYPE##_t256_sm80(const __grid_constant__ ProximalParams p) {   \
        soft<T>(p);                                                                     \
    }

KERNELS(f32, float)
KERNELS(f16, __half)
KERNELS(bf16, __nv_bfloat16)
