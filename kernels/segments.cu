// Products whose low-rank update has a factor of its own for each run of rows: many adapters on one trunk. See tile/segments.cuh.
//
// Limited as the frozen product is (kernels/frozen_linear.cu); a tile that several adapters share takes the steps of each.

#include "tile/gemm_tiles.cuh"
#include "tile/segments.cuh"

using namespace tile;

#define MMA_KERNEL(NAME, TILES, EDGE, WM, WN, THREADS_, BLOCKS, SHARED, LAYOUT, T)                          \
    extern "C" __global__ void __launch_bounds__(THREADS_, BLOCKS) NAME(const __grid_constant__ SegmentParams p) { \
        using Gemm = TILES<LAYOUT, T>;                                                                      \
        static_assert(Gemm::THREADS == THREADS_ && Gemm::SHARED_BYTES == SHARED, "as in the kernel table");  \
        MmaSegments<LAYOUT, T, Gemm, EDGE, EDGE, GEMM_STEP, WM, WN, GEMM_STAGES>::run(p, ring);              \
    }
#define MMA_KERNELS(LAYOUT_NAME, LAYOUT, DTYPE, T)                                                          \
    MMA_KERNEL(segments_##LAYOUT_NAME##_##DTYPE##_128x128x32_sm80, Large, GEMM_LARGE, 64, 32, 256, 1,       \
               GEMM_LARGE_SHARED, LAYOUT, T)                                                                \
    MMA_KERNEL(segments_##LAYOUT_NAME##_##DTYPE##_64x64x32_sm80, Small, GEMM_SMALL, 32, 32, 128, 3,         \
               GEMM_SMALL_SHARED, LAYOUT, T)
#define FMA_KERNEL(LAYOUT_NAME, LAYOUT)                                                        \
    extern "C" __global__ void __launch_bounds__(128)                                          \
        segments_##LAYOUT_NAME##_f32_64x64x16_sm80(const __grid_constant__ SegmentParams p) {  \
        static_assert(Single<LAYOUT>::THREADS == 128, "as in the kernel table");               \
        __shared__ __align__(16) float buffers[2 * Single<LAYOUT>::BUFFER_FLOATS];             \
        FmaSegments<LAYOUT, Single<LAYOUT>, GEMM_SMALL, GEMM_SMALL, GEMM_F32_STEP>::run(p, buffers); \
    }

MMA_KERNELS(nt, Layout::NT, f16, __half)
MMA_KERNELS(nn, Layout::NN, f16, __half)
MMA_KERNELS(nt, Layout::NT, bf16, __nv_bfloat16)
MMA_KERNELS(nn, Layout::NN, bf16, __nv_bfloat16)
FMA_KERNEL(nt, Layout::NT)
FMA_KERNEL(nn, Layout::NN)
