// The products of the linear layers: see tile/gemm.cuh for the formula and the layouts, tile/gemm_mma.cuh and tile/gemm_fma.cuh for
// the mapping of threads.
//
// The large tile is limited by the tensor cores, the small one (few rows, few columns, low rank) by reading its operands, the
// f32 one by the f32 units.

#include "tile/gemm_tiles.cuh"

using namespace tile;

template <Layout LAYOUT, typename T>
using OutOf = std::conditional_t<LAYOUT == Layout::TN, float, T>;

#define MMA_KERNEL(NAME, GEMM, THREADS_, BLOCKS, SHARED)                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS_, BLOCKS) NAME(const __grid_constant__ GemmParams p) { \
        static_assert(GEMM::THREADS == THREADS_ && GEMM::SHARED_BYTES == SHARED, "as in the kernel table");   \
        GEMM::run(p, ring);                                                                                   \
    }
#define MMA_KERNELS(LAYOUT_NAME, LAYOUT, DTYPE, T)                                                                  \
    using Large_##LAYOUT_NAME##_##DTYPE = Large<LAYOUT, T, OutOf<LAYOUT, T>>;                                       \
    using Small_##LAYOUT_NAME##_##DTYPE = Small<LAYOUT, T, OutOf<LAYOUT, T>>;                                       \
    MMA_KERNEL(frozen_linear_##LAYOUT_NAME##_##DTYPE##_128x128x32_sm80, Large_##LAYOUT_NAME##_##DTYPE, 256, 2,      \
               GEMM_LARGE_SHARED)                                                                                   \
    MMA_KERNEL(frozen_linear_##LAYOUT_NAME##_##DTYPE##_64x64x32_sm80, Small_##LAYOUT_NAME##_##DTYPE, 128, 4,        \
               GEMM_SMALL_SHARED)
#define FMA_KERNEL(LAYOUT_NAME, LAYOUT)                                                                     \
    extern "C" __global__ void __launch_bounds__(128)                                                       \
        frozen_linear_##LAYOUT_NAME##_f32_64x64x16_sm80(const __grid_constant__ GemmParams p) {             \
        static_assert(Single<LAYOUT>::THREADS == 128, "as in the kernel table");                            \
        __shared__ __align__(16) float buffers[2 * Single<LAYOUT>::BUFFER_FLOATS];                          \
        Single<LAYOUT>::run(p, buffers);                                                                    \
    }

MMA_KERNELS(nt, Layout::NT, f16, __half)
MMA_KERNELS(nn, Layout::NN, f16, __half)
MMA_KERNELS(tn, Layout::TN, f16, __half)
MMA_KERNELS(nt, Layout::NT, bf16, __nv_bfloat16)
MMA_KERNELS(nn, Layout::NN, bf16, __nv_bfloat16)
MMA_KERNELS(tn, Layout::TN, bf16, __nv_bfloat16)
FMA_KERNEL(nt, Layout::NT)
FMA_KERNEL(nn, Layout::NN)
FMA_KERNEL(tn, Layout::TN)
