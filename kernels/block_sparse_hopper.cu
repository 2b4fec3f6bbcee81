// The products of the block-sparse family on Hopper, for one block edge: see tile/hopper_blocks.cuh for the formulas, the picture and
// what limits them.

#ifndef BLOCK
#error "BLOCK comes from the kernel table"
#endif
#ifndef HOPPER_STAGES
#error "HOPPER_STAGES comes from the kernel table"
#endif
#ifndef HOPPER_LINES_SHARED
#error "HOPPER_LINES_SHARED comes from the kernel table"
#endif
#ifndef HOPPER_STRIPS_SHARED
#error "HOPPER_STRIPS_SHARED comes from the kernel table"
#endif

#include "tile/hopper_blocks.cuh"

using namespace tile;

// Lines of a swizzled tile are permuted by their address, so that tiles start at multiples of 1024.
extern __shared__ __align__(1024) unsigned char shared[];

#define PASTE(PASS, DTYPE, B_) block_sparse_linear_##PASS##_##DTYPE##_b##B_##_sm90a
#define SYMBOL(PASS, DTYPE, B_) PASTE(PASS, DTYPE, B_)

#define LINES_KERNEL(PASS, COLUMNS, DTYPE, T)                                                                \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(HOPPER_THREADS, 1)                \
        SYMBOL(PASS, DTYPE, BLOCK)(const __grid_constant__ HopperLinesParams p) {                            \
        using Product = HopperLines<T, BLOCK, COLUMNS, HOPPER_STAGES>;                                       \
        static_assert(Product::SHARED_BYTES == HOPPER_LINES_SHARED, "as in the kernel table");               \
        Product::run(p, shared);                                                                             \
    }

LINES_KERNEL(rows, false, f16, __half)
LINES_KERNEL(columns, true, f16, __half)
LINES_KERNEL(rows, false, bf16, __nv_bfloat16)
LINES_KERNEL(columns, true, bf16, __nv_bfloat16)

#if BLOCK >= 64
#define STRIPS_KERNEL(DTYPE, T)                                                                              \
    extern "C" __global__ void __launch_bounds__(HOPPER_THREADS, 1)                                          \
        SYMBOL(strips, DTYPE, BLOCK)(const __grid_constant__ HopperStripsParams p) {                         \
        using Product = HopperStrips<T, BLOCK, HOPPER_STAGES>;                                               \
        static_assert(Product::SHARED_BYTES == HOPPER_STRIPS_SHARED, "as in the kernel table");              \
        Product::run(p, shared);                                                                             \
    }

STRIPS_KERNEL(f16, __half)
STRIPS_KERNEL(bf16, __nv_bfloat16)
#endif
