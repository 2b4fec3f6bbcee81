// A frozen product with its low-rank update in one launch on Hopper: see tile/hopper_one_launch.cuh for formula, picture and what
// limits it.

#include "tile/hopper_one_launch.cuh"

#ifndef HOPPER_COLS
#error "HOPPER_COLS comes from the kernel table"
#endif
#ifndef HOPPER_STAGES
#error "HOPPER_STAGES comes from the kernel table"
#endif
#ifndef HOPPER_SHARED
#error "HOPPER_SHARED comes from the kernel table"
#endif

using namespace tile;

// Lines of a swizzled tile are permuted by their address, so that tiles start at multiples of 1024.
extern __shared__ __align__(1024) unsigned char shared[];

#define PASTE(DTYPE, COLS) frozen_linear_lora_##DTYPE##_128x##COLS##x64_sm90a
#define SYMBOL(DTYPE, COLS) PASTE(DTYPE, COLS)

#define KERNEL(DTYPE, T)                                                                                   \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(HOPPER_THREADS, 1)              \
        SYMBOL(DTYPE, HOPPER_COLS)(const __grid_constant__ OneLaunchParams p) {                            \
        using Both = OneLaunch<T, HOPPER_COLS, HOPPER_STAGES>;                                             \
        static_assert(Both::SHARED_BYTES == HOPPER_SHARED, "as in the kernel table");                      \
        Both::run(p, shared);                                                                              \
    }

KERNEL(f16, __half)
KERNEL(bf16, __nv_bfloat16)
