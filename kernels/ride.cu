// Frozen products with a block-sparse update on the same accumulators: y in one pass, dx in one pass. See tile/ride.cuh.
//
// Limited as the frozen product is (kernels/frozen_linear.cu); an update adds its own share of the tensor cores' time.

#include "tile/gemm_tiles.cuh"

using namespace tile;

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
