// Copies of boxes of a tensor between global and shared memory, done by the copy engine from a tensor map.
//
// Coordinates count elements, the innermost dimension first. What of a box lies outside the tensor is read as zero and not written.
#pragma once

#include <cstdint>

#include "ptx/mbarrier.cuh"

namespace ptx {

// What the driver encodes of a tensor: address, sizes, strides, box, swizzle. A kernel takes it as part of its `__grid_constant__`
// parameters, where the launcher puts it.
struct alignas(128) TensorMap {
    unsigned char opaque[128];
};
static_assert(sizeof(TensorMap) == 128, "as the driver has it");

// Reads a box into shared memory of this block and adds its bytes to `barrier`.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_load(void* to, const TensorMap* map, Barrier* barrier, int32_t x,
                                                             int32_t y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y)
        : "memory");
}

// The same into every block of the cluster whose bit is set in `blocks`: at the same place, counted by the barrier at the same place.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_multicast(void* to, const TensorMap* map, Barrier* barrier, int32_t x,
                                                                  int32_t y, uint16_t blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, "
        "%4}], [%2], %5;" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "h"(blocks)
        : "memory");
}

// Writes a box from shared memory.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_store(const TensorMap* map, const void* from, int32_t x, int32_t y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
                 "r"(shared_address(from)), "r"(x), "r"(y)
                 : "memory");
}

// Closes the group of stores that this thread has started.
__device__ __forceinline__ void cp_async_bulk_commit_group() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until at most PENDING of this thread's groups have shared memory still to read.
template <int PENDING>
__device__ __forceinline__ void cp_async_bulk_wait_group_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// Waits until at most PENDING of this thread's groups are under way: what the others have written is there.
template <int PENDING>
__device__ __forceinline__ void cp_async_bulk_wait_group() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Lets the copy engine and the tensor cores see what this thread has written to shared memory; a barrier of threads carries it on.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace ptx
