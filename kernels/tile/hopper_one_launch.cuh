// A frozen product and its low-rank update in one launch on Hopper:
//
//   h[m, r] = low_scale · (mask ⊙ x) · Aᵀ          out[m, n] = x · Wᵀ + h · Bᵀ + bias + held          activated[m, n] = φ(out)
//
//   turns:   | 0 .. pairs: h, 256 rows each |  pairs of tiles of out, 256 x BN each, as in tile/hopper_gemm.cuh           |
//   of one:  | all k: x · Aᵀ, mask in place |  all k: x · Wᵀ  ->  are these rows of h there?  ->  up to 64 more: h · Bᵀ    |
//
// The first `drawers` clusters, which have fewer tiles of out where their number is uneven, draw turns of the first kind from a
// counter until none is left, and only then may they wait. So nothing waits for ever, as long as the first cluster runs when any does,
// whatever else has the multiprocessors. A wait comes after all of x Wᵀ has been sent for: the ring goes on while h is finished
// elsewhere. h is kept: backward needs it.
//
// The tiles of h are WIDTH columns wide, 16, 32 or 64, and limited by reading x, which the tiles of out then find in the
// second-level cache. With dropout they are limited by drawing the mask, once for each element of x: the draws are by the warpgroup
// that multiplies, in shared memory, between the copy engine and the tensor cores.
#pragma once

#include "ptx/flags.cuh"
#include "tile/hopper_gemm.cuh"

namespace tile {

struct OneLaunchParams {
    // h as it is read, B, x, W, out, A, h as it is written, φ of out.
    ptx::TensorMap low;
    ptx::TensorMap up;
    ptx::TensorMap x;
    ptx::TensorMap weight;
    ptx::TensorMap out;
    ptx::TensorMap down;
    ptx::TensorMap low_out;
    ptx::TensorMap activated;
    // Of out, as in tile/hopper_gemm.cuh.
    const void* bias;
    const void* held;
    // All zero before: a counter of turns, then for each 128 rows how many warps have written theirs of h.
    uint32_t* progress;
    uint64_t m;
    uint64_t n;
    uint64_t k;
    uint64_t rank;
    uint64_t seed;
    // Pairs of tiles along m, tiles along n.
    uint32_t pairs;
    uint32_t columns;
    // Steps of k, of 64 each, and of the rank, of 16.
    uint32_t steps;
    uint32_t low_steps;
    uint32_t step;
    uint32_t site;
    uint32_t threshold;
    float low_scale;
    uint32_t width;
    uint32_t drawers;
    uint32_t activation;
    uint32_t keeps;
    uint32_t unused[4];
};
static_assert(sizeof(OneLaunchParams) == 1152 && offsetof(OneLaunchParams, bias) == 1024 &&
                  offsetof(OneLaunchParams, pairs) == 1088 && offsetof(OneLaunchParams, width) == 1120,
              "eight maps, then OneLaunchParams of src/ops/product/one_launch.rs");

template <typename T, int BN, int STAGES>
struct OneLaunch {
    using Gemm = HopperGemm<T, false, BN, STAGES>;
    using Stages = typename Gemm::Stages;
    using At = typename Gemm::At;
    static constexpr int PANEL = Gemm::PANEL, BM = Gemm::BM, CLUSTER = Gemm::CLUSTER;
    // Two numbers of turns, in turn.
    static constexpr int SHARED_BYTES = Gemm::SHARED_BYTES + 2 * sizeof(uint32_t);

    static __device__ __forceinline__ void run(const OneLaunchParams& p, unsigned char* shared) {
        const Stages ring(shared, shared + STAGES * Gemm::STAGE_BYTES + Gemm::OUT_BYTES);
        uint32_t* drawn = reinterpret_cast<uint32_t*>(shared + Gemm::SHARED_BYTES);
        const uint32_t rank = ptx::cluster_ctarank(), own = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;
        const uint32_t first = clusters - 1 - own;
        const uint32_t all = p.pairs * p.columns;
        At at;
        if (threadIdx.x < WARPGROUP) {
            ptx::setmaxnreg_dec<PRODUCER_REGISTERS>();
            for (uint32_t i = 0; own < p.drawers; ++i) {
                const uint32_t turn = draw(p, drawn + i % 2, rank);
                if (turn >= p.pairs) break;
                if (threadIdx.x == 0) fetch_low(ring, at, p, (turn * CLUSTER + rank) * BM);
            }
            if (threadIdx.x == 0) {
                for (uint32_t pair = first; pair < all; pair += clusters) {
                    int32_t row, col;
                    Gemm::corner(p, pair, rank, row, col);
                    Gemm::fetch(ring, at, &p.x, &p.weight, p.steps, rank, row, col);
                    await_low(p, row);
                    Gemm::fetch(ring, at, &p.low, &p.up, 1, rank, row, col);
                }
            }
        } else {
            ptx::setmaxnreg_inc<CONSUMER_REGISTERS>();
            const int group = threadIdx.x / WARPGROUP - 1, warp = threadIdx.x / 32 % 4;
            unsigned char* panels = shared + STAGES * Gemm::STAGE_BYTES + (group * 4 + warp) * Gemm::Out::WARP_BYTES;
            for (uint32_t i = 0; own < p.drawers; ++i) {
                const uint32_t turn = draw(p, drawn + i % 2, rank);
                if (turn >= p.pairs) break;
                const int32_t row = (turn * CLUSTER + rank) * BM;
                if (p.width == 16) {
                    make_low<16>(p, ring, at, panels, row, group);
                } else if (p.width == 32) {
                    make_low<32>(p, ring, at, panels, row, group);
                } else {
                    make_low<64>(p, ring, at, panels, row, group);
                }
            }
            const Finish<T> finish{static_cast<const T*>(p.bias), static_cast<const T*>(p.held), p.m, p.n, 1.0f};
            const Activate phi{p.activation, p.keeps, &p.activated};
            for (uint32_t pair = first; pair < all; pair += clusters) {
                int32_t row, col;
                Gemm::corner(p, pair, rank, row, col);
                float sums[BN / 2];
                Gemm::template multiply<false>(ring, at, sums, p.steps, group);
                add_low(ring, at, sums, p.low_steps, group);
                Gemm::Out::store_activated(panels, &p.out, phi, finish, sums, row + group * 64 + warp * PANEL_ROWS, col);
            }
            Gemm::Out::drain();
        }
        ring.leave();
    }

    // The number of the next turn that nobody has, the same for all threads of the cluster. `drawn` is read before it is written
    // again: the barrier of the draw between lies between.
    static __device__ __forceinline__ uint32_t draw(const OneLaunchParams& p, uint32_t* drawn, uint32_t rank) {
        if (rank == 0 && threadIdx.x == 0) {
            const uint32_t turn = atomicAdd(p.progress, 1);
            for (uint32_t block = 0; block < CLUSTER; ++block) ptx::st_cluster(drawn, block, turn);
        }
        __syncwarp();
        // The number is there, in both blocks.
        ptx::barrier_cluster();
        return *drawn;
    }

    // Producer: 128 rows of x, 64 of k a stage, and as much of A.
    static __device__ __forceinline__ void fetch_low(const Stages& ring, At& at, const OneLaunchParams& p, int32_t row) {
        for (uint32_t step = 0; step < p.steps; ++step, at.advance()) {
            const int32_t k = static_cast<int32_t>(step) * STEP;
            ring.claim(at, Gemm::A_BYTES + p.width * 128);
            unsigned char* to = ring.stage(at);
            ptx::cp_async_bulk_tensor_2d_load(to, &p.x, ring.full + at.stage, k, row);
            ptx::cp_async_bulk_tensor_2d_load(to + Gemm::A_BYTES, &p.down, ring.full + at.stage, k, 0);
        }
    }

    // Producer: the rows of h from `row` on have been written, and may be read by the copy engine.
    static __device__ __forceinline__ void await_low(const OneLaunchParams& p, int32_t row) {
        const uint32_t* written = p.progress + 1 + row / BM;
        while (ptx::ld_acquire(written) < CONSUMERS * 4) __nanosleep(32);
        ptx::fence_proxy_async_global();
    }

    // Consumer: this warpgroup's 64 rows of h.
    template <int WIDTH>
    static __device__ __forceinline__ void make_low(const OneLaunchParams& p, const Stages& ring, At& at, unsigned char* panels,
                                                    int32_t row, int group) {
        float sums[WIDTH / 2];
        At before = at;
        for (uint32_t step = 0; step < p.steps; ++step, at.advance()) {
            ring.await(at);
            if (p.threshold > 0) drop(p, ring.stage(at) + group * PANEL, row + group * 64, step, group);
            const uint32_t stage = ptx::shared_address(ring.stage(at));
            ptx::wgmma_fence();
#pragma unroll
            for (int k = 0; k < STEP / MMA_K; ++k) {
                const uint64_t left = ptx::matrix_descriptor(stage + group * PANEL + k * MMA_K * 2, ptx::Swizzle::B128, PANEL);
                const uint64_t right = ptx::matrix_descriptor(stage + Gemm::A_BYTES + k * MMA_K * 2, ptx::Swizzle::B128, PANEL);
                ptx::wgmma_m64k16<T, false, false>(sums, left, right, step > 0 || k > 0);
            }
            ptx::wgmma_commit_group();
            // One step stays under way; the one before it is done with its stage.
            ptx::wgmma_wait_group<1>();
            if (step > 0) {
                ring.release(before);
                before.advance();
            }
        }
        ptx::wgmma_wait_group<0>();
        ring.release(before);
        const Finish<T> finish{nullptr, nullptr, p.m, p.rank, p.low_scale};
        const int32_t own = row + group * 64 + threadIdx.x / 32 % 4 * PANEL_ROWS;
        PanelStore<T, WIDTH>::template store<0>(panels, &p.low_out, finish, sums, own, 0);
        if (threadIdx.x % 32 == 0) {
            ptx::cp_async_bulk_wait_group<0>();
            // This warp's rows of h are written, by the copy engine; whoever waits for them sees that.
            ptx::fence_proxy_async_global();
            ptx::red_release_add(p.progress + 1 + row / BM, 1);
        }
        __syncwarp();
    }

    // Consumer: drops elements of this warpgroup's 64 rows of x, where they lie.
    static __device__ __forceinline__ void drop(const OneLaunchParams& p, unsigned char* panel, size_t row, uint32_t step, int group) {
        const Dropout dropout{p.seed, p.step, p.site, p.threshold};
        const int line = threadIdx.x % WARPGROUP / 2;
        // Not unrolled: one copy of the generator is enough.
#pragma unroll 1
        for (int i = 0; i < 4; ++i) {
            const int eight = threadIdx.x % 2 * 4 + i;
            const uint64_t block = ((row + line) * p.k + static_cast<size_t>(step) * STEP + eight * 8) / 4;
            const uint32_t bits = dropout.kept_of_block(block) | dropout.kept_of_block(block + 1) << 4;
            uint4* chunk = reinterpret_cast<uint4*>(panel + line * 128 + ((eight ^ (line & 7)) << 4));
            const uint4 v = *chunk;
            *chunk = make_uint4(drop_pair(v.x, bits), drop_pair(v.y, bits >> 2), drop_pair(v.z, bits >> 4), drop_pair(v.w, bits >> 6));
        }
        // The tensor cores see what all threads of the warpgroup have dropped.
        ptx::fence_proxy_async();
        ptx::barrier_named<WARPGROUP>(1 + group);
    }

    // The low two bits say which of the two elements of a word are kept.
    static __device__ __forceinline__ uint32_t drop_pair(uint32_t word, uint32_t bits) {
        const float2 v = unpack<T>(word);
        return repack<T>(masked(v.x, bits & 1), masked(v.y, bits >> 1 & 1));
    }

    // Consumer: h · Bᵀ on top of the sums, no longer than the rank asks for. It is short: its steps may wait for one another.
    static __device__ __forceinline__ void add_low(const Stages& ring, At& at, float (&sums)[BN / 2], uint32_t steps, int group) {
        ring.await(at);
#pragma unroll 1
        for (uint32_t k = 0; k < steps; ++k) {
            ptx::wgmma_fence();
            Gemm::start(ring, at, sums, k, group, true);
            ptx::wgmma_commit_group();
            ptx::wgmma_wait_group<0>();
        }
        ring.release(at);
        at.advance();
    }
};

}  // namespace tile
