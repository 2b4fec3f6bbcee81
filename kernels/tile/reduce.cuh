// Sums over a warp or a block, in an order that depends on nothing but the number of threads.
#pragma once

namespace tile {

// Every lane gets the sum of all 32. In each round partners add the same two numbers, so all lanes end with the same bits.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, offset);
    return v;
}

// Every thread of the block gets the sum of all. `scratch` holds WARPS numbers; all threads of the block must come here.
template <int WARPS>
__device__ __forceinline__ float block_sum(float v, float* scratch) {
    v = warp_sum(v);
    // The scratch of the sum before is read by now.
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    // All warps' sums are written.
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) total += scratch[w];
    return total;
}

// The sum over GROUP threads that share something: a warp, or the whole block.
template <int GROUP>
__device__ __forceinline__ float group_sum(float v, float* scratch) {
    if constexpr (GROUP == 32) {
        return warp_sum(v);
    } else {
        return block_sum<GROUP / 32>(v, scratch);
    }
}

}  // namespace tile
