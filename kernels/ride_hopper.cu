// The large products of the linear layers on Hopper with a block-sparse one on the same sums, for one block edge: see
// tile/hopper_gemm.cuh for the formula and what limits them, tile/hopper_ride.cuh for what rides.

#include "tile/hopper_ride.cuh"

#ifndef BLOCK
#error "BLOCK comes from the kernel table"
#endif
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

#define PASTE(LAYOUT, DTYPE, COLS, B_) ride_##LAYOUT##_##DTYPE##_128x##COLS##x64b##B_##_sm90a
#define SYMBOL(LAYOUT, DTYPE, COLS, B_) PASTE(LAYOUT, DTYPE, COLS, B_)

#define KERNEL(LAYOUT, TRANSPOSED, DTYPE, T)                                                                       \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(HOPPER_THREADS, 1)                      \
        SYMBOL(LAYOUT, DTYPE, HOPPER_COLS, BLOCK)(const __grid_constant__ HopperRideParams p) {                    \
        using Gemm = HopperGemm<T, TRANSPOSED, HOPPER_COLS, HOPPER_STAGES>;                                        \
        static_assert(Gemm::SHARED_BYTES == HOPPER_SHARED, "as in the kernel table");                              \
        Gemm::run(p.gemm, shared, HopperRide<Gemm, BLOCK>{p});                                                     \
    }

KERNEL(nt, false, f16, __half)
KERNEL(nn, true, f16, __half)
KERNEL(nt, false, bf16, __nv_bfloat16)
KERNEL(nn, true, bf16, __nv_bfloat16)
