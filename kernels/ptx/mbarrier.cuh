// Barriers in shared memory that count arrivals of threads and bytes of asynchronous copies. A phase is over when both are in.
#pragma once

#include <cstdint>

namespace ptx {

using Barrier = uint64_t;

__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// A phase of the barrier is `arrivals` arrivals. One thread does this, before anybody else looks.
__device__ __forceinline__ void mbarrier_init(Barrier* barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// The barriers that this thread has initialised are so for the whole cluster and for asynchronous copies, once a barrier of
// threads follows.
__device__ __forceinline__ void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives, and adds `bytes` to what the phase waits for.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(Barrier* barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

// Arrives at the barrier that lies in block `rank` of the cluster where `barrier` lies in this one.
__device__ __forceinline__ void mbarrier_arrive_cluster(Barrier* barrier, uint32_t rank) {
    asm volatile(
        "{\n\t"
        ".reg .b32 remote;\n\t"
        "mapa.shared::cluster.u32 remote, %0, %1;\n\t"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n\t"
        "}" ::"r"(shared_address(barrier)),
        "r"(rank)
        : "memory");
}

// Waits for the end of the phase of this parity: of the first, third, … phase, if it is 0. Sees what happened before the arrivals,
// in the other block of the cluster too.
__device__ __forceinline__ void mbarrier_wait(Barrier* barrier, uint32_t parity) {
    asm volatile(
        "{\n\t"
        ".reg .pred over;\n\t"
        "AGAIN:\n\t"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 over, [%0], %1;\n\t"
        "@over bra DONE;\n\t"
        "bra AGAIN;\n\t"
        "DONE:\n\t"
        "}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

}  // namespace ptx
