// The blocks of a cluster among themselves, and a warpgroup's barrier and registers.
#pragma once

#include <cstdint>

namespace ptx {

__device__ __forceinline__ uint32_t cluster_ctarank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// A barrier of all threads of all blocks of the cluster.
__device__ __forceinline__ void barrier_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Writes to where `to` lies in block `rank` of the cluster.
__device__ __forceinline__ void st_cluster(uint32_t* to, uint32_t rank, uint32_t value) {
    asm volatile(
        "{\n\t"
        ".reg .b32 remote;\n\t"
        "mapa.shared::cluster.u32 remote, %0, %1;\n\t"
        "st.shared::cluster.u32 [remote], %2;\n\t"
        "}" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
        "r"(rank), "r"(value)
        : "memory");
}

// A barrier of the threads of some warps of this block, which all name the same number from 1 on.
template <int THREADS>
__device__ __forceinline__ void barrier_named(int number) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "n"(THREADS) : "memory");
}

// Registers of each thread of this warpgroup from here on: fewer, or more.
template <int REGISTERS>
__device__ __forceinline__ void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ __forceinline__ void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

}  // namespace ptx
