// The products of the block-sparse family on Hopper, for one block edge: see tile/hopper_lines.cuh and tile/hopper_strips.cuh for the
// formulas, the pictures and what limits them.

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

#include "tile/hopper_lines.cuh"
#include "tile/hopper_strips.cuh"

using namespace tile;

// Lines of a swizzled tile are permuted by their address, so that tiles start at multiples of 1024.
extern __shared__ __align__(1024) unsigned char shared[];

#define PASTE(PASS, LAYOUT, DTYPE, B_) block_sparse_##PASS##_##LAYOUT##_##DTYPE##_b##B_##_sm90a
#define SYMBOL(PASS, LAYOUT, DTYPE, B_) PASTE(PASS, LAYOUT, DTYPE, B_)

// How x and S are read: n as they lie, t by their transposes.
#define LINES_KERNEL(LAYOUT, ACROSS, COLUMNS, DTYPE, T)                                                      \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(HOPPER_THREADS, 1)                \
        SYMBOL(lines, LAYOUT, DTYPE, BLOCK)(const __grid_constant__ HopperLinesParams p) {                   \
        using Product = HopperLines<T, BLOCK, COLUMNS, ACROSS, HOPPER_STAGES>;                               \
        static_assert(Product::SHARED_BYTES == HOPPER_LINES_SHARED, "as in the kernel table");               \
        Product::run(p, shared);                                                                             \
    }

// How A and B are stored: n as they are, t as their transposes.
#define STRIPS_KERNEL(LAYOUT, A_T, B_T, DTYPE, T)                                                            \
    extern "C" __global__ void __launch_bounds__(HOPPER_THREADS, 1)                                          \
        SYMBOL(strips, LAYOUT, DTYPE, BLOCK)(const __grid_constant__ HopperStripsParams p) {                 \
        using Product = HopperStrips<T, BLOCK, A_T, B_T, HOPPER_STAGES>;                                     \
        static_assert(Product::SHARED_BYTES == HOPPER_STRIPS_SHARED, "as in the kernel table");              \
        Product::run(p, shared);                                                                             \
    }

#define KERNELS(DTYPE, T)                    \
    LINES_KERNEL(nn, false, false, DTYPE, T) \
    LINES_KERNEL(nt, false, true, DTYPE, T)  \
    LINES_KERNEL(tn, true, false, DTYPE, T)  \
    LINES_KERNEL(tt, true, true, DTYPE, T)   \
    STRIPS_KERNEL(nn, false, false, DTYPE, T) \
    STRIPS_KERNEL(nt, false, true, DTYPE, T) \
    STRIPS_KERNEL(tn, true, false, DTYPE, T) \
    STRIPS_KERNEL(tt, true, true, DTYPE, T)

KERNELS(f16, __half)
KERNELS(bf16, __nv_bfloat16)
