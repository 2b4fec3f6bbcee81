// The ring of stages through which a producer feeds tiles to two consumer warpgroups.
//
//   warpgroup 0      one thread starts the copies of a stage as soon as all consumers have let go of it
//   warpgroups 1, 2  multiply; each holds its own part of the block's tile of out
//
// The blocks of a cluster share one operand: each reads its part of it and sends that part to all. Therefore a stage is full when
// the bytes of all producers have arrived, and empty when the consumers of all blocks have let go of it.
#pragma once

#include <cstdint>

#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tensor_copy.cuh"
#include "ptx/wgmma.cuh"

namespace tile {

constexpr int CONSUMERS = 2, WARPGROUP = 128, HOPPER_THREADS = WARPGROUP * (1 + CONSUMERS);
// 64 Ki registers among three warpgroups: a producer needs few.
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;

// Elements of the sum that one stage covers, and that one wgmma does.
constexpr int STEP = 64, MMA_K = 16;

// How the lines of so many bytes that a tile consists of are permuted.
template <int LINE>
inline constexpr ptx::Swizzle SWIZZLE = LINE == 128 ? ptx::Swizzle::B128 : LINE == 64 ? ptx::Swizzle::B64 : ptx::Swizzle::B32;

// Where a role is in the ring.
template <int STAGES>
struct Cursor {
    int stage = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

template <int STAGES, int STAGE_BYTES, int CLUSTER>
struct Ring {
    static constexpr int BARRIER_BYTES = 2 * STAGES * static_cast<int>(sizeof(ptx::Barrier));

    unsigned char* stages;
    ptx::Barrier* full;
    ptx::Barrier* empty;

    __device__ __forceinline__ Ring(unsigned char* stages_, unsigned char* barriers)
        : stages(stages_), full(reinterpret_cast<ptx::Barrier*>(barriers)), empty(full + STAGES) {
        if (threadIdx.x == 0) {
            for (int s = 0; s < STAGES; ++s) {
                ptx::mbarrier_init(full + s, 1);
                ptx::mbarrier_init(empty + s, CONSUMERS * CLUSTER);
            }
            ptx::fence_mbarrier_init();
        }
        // All blocks' barriers are ready before one block signals another's.
        ptx::barrier_cluster();
    }

    // No block leaves while another may still send to its stages or signal its barriers.
    __device__ __forceinline__ void leave() const {
        __syncwarp();
        ptx::barrier_cluster();
    }

    __device__ __forceinline__ unsigned char* stage(const Cursor<STAGES>& at) const { return stages + at.stage * STAGE_BYTES; }

    // Producer: the stage is free in all blocks; `bytes` will come to this one.
    __device__ __forceinline__ void claim(const Cursor<STAGES>& at, uint32_t bytes) const {
        // The first time around, the phase before the first counts as over.
        ptx::mbarrier_wait(empty + at.stage, at.parity ^ 1);
        ptx::mbarrier_arrive_expect_tx(full + at.stage, bytes);
    }

    // Consumer: the bytes of the stage have arrived.
    __device__ __forceinline__ void await(const Cursor<STAGES>& at) const { ptx::mbarrier_wait(full + at.stage, at.parity); }

    // Consumer: this warpgroup's products that read the stage are done; every producer may write to it.
    __device__ __forceinline__ void release(const Cursor<STAGES>& at) const {
        const uint32_t block = threadIdx.x % WARPGROUP;
        if (block < CLUSTER) ptx::mbarrier_arrive_cluster(empty + at.stage, block);
    }

    // Consumer: the products of so many stages, which `start(step)` starts where the cursor is.
    template <typename Start>
    __device__ __forceinline__ void multiply(Cursor<STAGES>& at, uint32_t steps, Start start) const {
        Cursor<STAGES> before = at;
        for (uint32_t step = 0; step < steps; ++step, at.advance()) {
            await(at);
            ptx::wgmma_fence();
            start(step);
            ptx::wgmma_commit_group();
            // One step stays under way; the one before it is done with its stage.
            ptx::wgmma_wait_group<1>();
            if (step > 0) {
                release(before);
                before.advance();
            }
        }
        ptx::wgmma_wait_group<0>();
        if (steps > 0) release(before);
    }

    // Consumer: passes over a stage that this warpgroup does not read. Nothing keeps its warps together then, so that the thread that
    // lets go is the one that has waited.
    __device__ __forceinline__ void skip(const Cursor<STAGES>& at) const {
        if (threadIdx.x % WARPGROUP < CLUSTER) {
            await(at);
            release(at);
        }
    }
};

}  // namespace tile
