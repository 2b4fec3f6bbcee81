// Running sums of counts, which are whole numbers: in whatever order they are added, the sums are the same.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tile {

// The sum over the block's threads before this one, and in `all` that over all of them. `scratch` holds WARPS numbers; all threads of the
// block must come here.
template <int WARPS, typename N>
__device__ __forceinline__ N block_prefix(N v, N* scratch, N& all) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    N sum = v;
#pragma unroll
    for (uint32_t offset = 1; offset < 32; offset *= 2) {
        const N other = __shfl_up_sync(0xFFFFFFFFu, sum, offset);
        if (lane >= offset) sum += other;
    }
    // The warps' sums of the call before have been read.
    __syncthreads();
    if (lane == 31) scratch[warp] = sum;
    // All warps' sums are there.
    __syncthreads();
    N before = 0;
    all = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
        if (w < warp) before += scratch[w];
        all += scratch[w];
    }
    return before + sum - v;
}

// Offsets from counts, by one block: store(i, count(0) + .. + count(i - 1)) for i from 0 to length. Both are called for an i by one thread, count
// first, so that offsets may lie where the counts lie.
template <int THREADS, typename N, typename Count, typename Store>
__device__ __forceinline__ void block_offsets(size_t length, N* scratch, Count count, Store store) {
    // Neighbours of a thread.
    constexpr int EACH = 4;
    N done = 0;
    for (size_t from = 0; from < length; from += EACH * THREADS) {
        const size_t first = from + EACH * threadIdx.x;
        N own[EACH], sum = 0, all;
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            own[i] = first + i < length ? static_cast<N>(count(first + i)) : 0;
            sum += own[i];
        }
        N at = done + block_prefix<THREADS / 32>(sum, scratch, all);
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            if (first + i < length) store(first + i, at);
            at += own[i];
        }
        done += all;
    }
    if (threadIdx.x == 0) store(length, done);
}

}  // namespace tile
