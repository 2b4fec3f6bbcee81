// Frozen products with a block-sparse update on the same accumulators: y in one pass, dx in one pass. See tile/ride.cuh.
//
// Limited as the frozen product is (kernels/frozen_linear.cu); an update adds its own share of the tensor cores' time.

#include "tile/gemm_fma.cuh"
#include "tile/gemm_mma.cuh"

#ifndef GEMM_LARGE
#error "GEMM_LARGE comes from the kernel table"
#endif
#ifndef GEMM_SMALL
#error "GEMM_SMALL comes from the kernel table"
#endif
#ifndef GEMM_STEP
#error "GEMM_STEP comes from the kernel table"
#endif
#ifndef GEMM_STAGES
#error "GEMM_STAGES comes from the kernel table"
#endif
#ifndef GEMM_LARGE_SHARED
#error "GEMM_LARGE_SHARED comes from the kernel table"
#endif
#ifndef GEMM_SMALL_SHARED
#error "GEMM_SMALL_SHARED comes from the kernel table"
#endif
#ifndef GEMM_F32_STEP
#error "GEMM_F32_STEP comes from the kernel table"
#endif

using namespace tile;

template <Layout LAYOUT, typename T>
using Large = MmaGemm<LAYOUT, T, T, GEMM_LARGE, GEMM_LARGE, GEMM_STEP, 64, 32, GEMM_STAGES>;
template <Layout LAYOUT, typename T>
using Small = MmaGemm<LAYOUT, T, T, GEMM_SMALL, GEMM_SMALL, GEMM_STEP, 32, 32, GEMM_STAGES>;
template <Layout LAYOUT>
using Single = FmaGemm<LAYOUT, GEMM_SMALL, GEMM_SMALL, GEMM_F32_STEP>;

extern __shared__ __align__(16) uint4 ring[];

#define MMA_KERNELS(LAYOUT_NAME, LAYOUT, DTYPE, T)                                                     \
    extern "C" __global__ void __launch_bounds__(256, 1)                                               \
        ride_##LAYOUT_NAME##_##DTYPE##_128x128x32_sm80(const __grid_constant__ RideParams p) {         \
        using Gemm = Large<LAYOUT, T>;                                                                 \
        static_assert(Gemm::THREADS == 256 && Gemm::SHARED_BYTES == GEMM_LARGE_SHARED, "as in the kernel table"); \
        Gemm::run(p, ring);                                                                            \
    }                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128, 3)                                               \
        ride_##LAYOUT_NAME##_##DTYPE##_64x64x32_sm80(const __grid_constant__ RideParams p) {           \
        using Gemm = Small<LAYOUT, T>;                                                                 \
        static_assert(Gemm::THREADS == 128 && Gemm::SHARED_BYTES == GEMM_SMALL_SHARED, "as in the kernel table"); \
        Gemm::run(p, ring);                                                                            \
    }
#define FMA_KERNEL(LAYOUT_NAME, LAYOUT)                                                     \
    extern "C" __global__ void __launch_bounds__(128)                                       \
        ride_##LAYOUT_NAME##_f32_64x64x16_sm80(const __grid_constant__ RideParams p) {      \
        static_assert(Single<LAYOUT>::THREADS == 128, "as in the kernel table");            \
        __shared__ __align__(16) float buffers[2 * Single<LAYOUT>::BUFFER_FLOATS];          \
        Single<LAYOUT>::run(p, buffers);                                                    \
    }

MMA_KERNELS(nt, Layout::NT, f16, __half)
MMA_KERNELS(nn, Layout::NN, f16, __half)
MMA_KERNELS(nt, Layout::NT, bf16, __nv_bfloat16)
MMA_KERNELS(nn, Layout::NN, bf16, __nv_bfloat16)
FMA_KERNEL(nt, Layout::NT)
FMA_KERNEL(nn, Layout::NN)
