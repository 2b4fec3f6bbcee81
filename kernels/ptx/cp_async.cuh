// Copies from global to shared memory that go on while the thread does other work.
#pragma once

#include <cstdint>

namespace ptx {

// 16 bytes; only the first `bytes` (0 or 16) are read, the rest of `to` becomes zero. Both addresses are multiples of 16.
__device__ __forceinline__ void cp_async_16(void* to, const void* from, uint32_t bytes) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}

// Closes the group of copies that this thread has started.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's groups are under way.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

}  // namespace ptx
