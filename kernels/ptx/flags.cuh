// Numbers in global memory by which blocks tell one another how far they are.
#pragma once

#include <cstdint>

namespace ptx {

// Adds to the number. Whoever sees the sum with `ld_acquire` sees what this thread had done and seen before.
__device__ __forceinline__ void red_release_add(uint32_t* to, uint32_t value) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "r"(value) : "memory");
}

__device__ __forceinline__ uint32_t ld_acquire(const uint32_t* from) {
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(__cvta_generic_to_global(from)) : "memory");
    return value;
}

// Orders the copy engine's accesses to global memory with those of this thread, on both sides.
__device__ __forceinline__ void fence_proxy_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

}  // namespace ptx
