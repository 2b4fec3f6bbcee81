// The product of 16-bit operands on Hopper, sums in f32:
//
//   out[m, n] = out_scale · ( mask ⊙ low_scale · (A1 · B1)  +  A2 · B2 )  + bias + held      activated[m, n] = φ(out)
//
// held, which may be out itself, and the bias are there or not; so is φ, of nt alone, which may make out needless.
//
//   | layout | A      | B      |
//   | nt     | [m, k] | [n, k] |
//   | nn     | [m, k] | [k, n] |
//
// The mask is that of tile/gemm.cuh; a threshold of 0 keeps everything.
//
// One cluster of two blocks makes 256 x BN of out, a block 128 x BN of it, a consumer warpgroup 64 x BN, where BN is 256 or, for
// problems that would leave many multiprocessors without a tile, 128:
//
//                    BN columns
//            +-------------------------+
//   block 0  | warpgroup 1: 64 rows    |   A: each block its own 128 rows, 64 of k a stage
//            | warpgroup 2: 64 rows    |   B: BN columns, of which each block reads half and sends it to both
//            +-------------------------+
//   block 1  | warpgroup 1: 64 rows    |
//            | warpgroup 2: 64 rows    |
//            +-------------------------+
//
// Clusters are persistent: they take pairs of tiles in turn, in bands that keep the operands of what runs at the same time in the
// second-level cache. While consumers write a tile out, the producer already fills the ring for the next. What limits it is the
// tensor cores; of the wide tile, a stage is 48 KiB for 128 x 256 x 64 multiply-adds.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tile/hopper_ring.cuh"
#include "tile/hopper_store.cuh"
#include "tile/philox.cuh"

namespace tile {

struct HopperGemmParams {
    ptx::TensorMap a1;
    ptx::TensorMap b1;
    ptx::TensorMap a2;
    ptx::TensorMap b2;
    ptx::TensorMap out;
    ptx::TensorMap activated;
    const void* bias;
    // Null, or laid out as out.
    const void* held;
    uint64_t m;
    uint64_t n;
    uint64_t seed;
    // Pairs of tiles along m, tiles along n.
    uint32_t pairs;
    uint32_t columns;
    // Steps of the low-rank product, of 16 each, and of the other one, of 64.
    uint32_t low_steps;
    uint32_t steps;
    uint32_t step;
    uint32_t site;
    uint32_t threshold;
    float low_scale;
    float out_scale;
    // As tile/activation.cuh counts them; whether out is written as well.
    uint32_t activation;
    uint32_t keeps;
    uint32_t unused[11];
};
static_assert(sizeof(HopperGemmParams) == 896 && offsetof(HopperGemmParams, bias) == 768 &&
                  offsetof(HopperGemmParams, pairs) == 808 && offsetof(HopperGemmParams, activation) == 844,
              "six maps, then HopperGemmParams of src/ops/product/hopper.rs");

// Nothing rides.
struct HopperNoRide {
    static constexpr bool PRESENT = false;
};

template <typename T, bool B_TRANSPOSED, int BN, int STAGES>
struct HopperGemm {
    using Element = T;
    static constexpr bool TRANSPOSED = B_TRANSPOSED;
    static constexpr int BM = 128, COLS = BN, BAND = 8, CLUSTER = 2;
    static constexpr uint16_t BOTH_BLOCKS = 3;
    // A panel is 64 lines of 128 bytes: 64 of k for each of 64 rows or, of a transposed operand, 64 rows for each of 64 of k.
    static constexpr int PANEL = 64 * 128, A_BYTES = BM / 64 * PANEL, STAGE_BYTES = A_BYTES + BN / 64 * PANEL;
    using Stages = Ring<STAGES, STAGE_BYTES, CLUSTER>;
    using At = Cursor<STAGES>;
    using Out = PanelStore<T, 64>;
    static constexpr int OUT_BYTES = CONSUMERS * 4 * Out::WARP_BYTES;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES + OUT_BYTES + Stages::BARRIER_BYTES;

    // Corner of this block's tile in pair number `pair`.
    template <typename Params>
    static __device__ __forceinline__ void corner(const Params& p, uint32_t pair, uint32_t rank, int32_t& row, int32_t& col) {
        const uint32_t band = pair / (BAND * p.columns), within = pair % (BAND * p.columns);
        const uint32_t left = p.pairs - band * BAND, height = left < BAND ? left : BAND;
        row = static_cast<int32_t>(((band * BAND + within % height) * CLUSTER + rank) * BM);
        col = static_cast<int32_t>(within / height * BN);
    }

    // `ride` brings further stages after those of the low-rank product: see tile/hopper_ride.cuh.
    template <typename Ride = HopperNoRide>
    static __device__ __forceinline__ void run(const HopperGemmParams& p, unsigned char* shared, const Ride& ride = Ride{}) {
        const Stages ring(shared, shared + STAGES * STAGE_BYTES + OUT_BYTES);
        const uint32_t rank = ptx::cluster_ctarank(), first = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;
        const uint32_t all = p.pairs * p.columns;
        if (threadIdx.x < WARPGROUP) {
            ptx::setmaxnreg_dec<PRODUCER_REGISTERS>();
            if (threadIdx.x == 0) {
                At at;
                for (uint32_t pair = first; pair < all; pair += clusters) {
                    int32_t row, col;
                    corner(p, pair, rank, row, col);
                    fetch(ring, at, &p.a1, &p.b1, (p.low_steps * MMA_K + STEP - 1) / STEP, rank, row, col);
                    if constexpr (Ride::PRESENT) ride.fetch(ring, at, rank, row, col);
                    fetch(ring, at, &p.a2, &p.b2, p.steps, rank, row, col);
                }
            }
        } else {
            ptx::setmaxnreg_inc<CONSUMER_REGISTERS>();
            const int group = threadIdx.x / WARPGROUP - 1, warp = threadIdx.x / 32 % 4;
            unsigned char* panels = shared + STAGES * STAGE_BYTES + (group * 4 + warp) * Out::WARP_BYTES;
            At at;
            for (uint32_t pair = first; pair < all; pair += clusters) {
                int32_t row, col;
                corner(p, pair, rank, row, col);
                // Told apart here, with all that follows: where sums of two origins met, ptxas would make every product wait.
                if (Ride::PRESENT || p.low_steps > 0) {
                    make_tile<true>(p, ring, at, panels, row, col, group, ride);
                } else {
                    make_tile<false>(p, ring, at, panels, row, col, group, ride);
                }
            }
            Out::drain();
        }
        ring.leave();
    }

    // Consumer: this warpgroup's part of one tile.
    template <bool LOW, typename Ride>
    static __device__ __forceinline__ void make_tile(const HopperGemmParams& p, const Stages& ring, At& at, unsigned char* panels,
                                                     int32_t row, int32_t col, int group, const Ride& ride) {
        const Finish<T> finish{static_cast<const T*>(p.bias), static_cast<const T*>(p.held), p.m, p.n, p.out_scale};
        const int32_t own = row + group * 64 + threadIdx.x / 32 % 4 * PANEL_ROWS;
        float sums[BN / 2];
        if constexpr (LOW) {
            multiply_low(ring, at, sums, p.low_steps, group);
            scale_low(p, sums, own, col);
        }
        if constexpr (Ride::PRESENT) ride.multiply(ring, at, sums, col, group);
        multiply<LOW>(ring, at, sums, p.steps, group);
        if constexpr (B_TRANSPOSED || Ride::PRESENT) {
            Out::template store<0>(panels, &p.out, finish, sums, own, col);
        } else {
            Out::store_activated(panels, &p.out, Activate{p.activation, p.keeps, &p.activated}, finish, sums, own, col);
        }
    }

    // What the low-rank product counts for: masked and scaled.
    static __device__ __forceinline__ void scale_low(const HopperGemmParams& p, float (&sums)[BN / 2], size_t row, size_t col) {
        // Bit i of the mask of word w: sum 32 w + i is kept.
        uint32_t kept[BN / 64];
#pragma unroll
        for (int w = 0; w < BN / 64; ++w) kept[w] = ~0u;
        if (p.threshold > 0) {
            // Eight columns of one row are drawn at once, by one of the four lanes that hold them, and handed to the others.
            const Dropout dropout{p.seed, p.step, p.site, p.threshold};
            const int lane = threadIdx.x % 32, own = lane % 4;
#pragma unroll
            for (int w = 0; w < BN / 64; ++w) {
                kept[w] = 0;
#pragma unroll 1
                for (int q = 0; q < 4; ++q) {
                    const int eight = 16 * w + 4 * q + own;
                    const size_t y = row + eight % 2 * 8 + lane / 4, x = col + eight / 2 * 8;
                    const uint64_t block = (y * p.n + x) / 4;
                    const uint32_t bits = dropout.kept_of_block(block) | dropout.kept_of_block(block + 1) << 4;
#pragma unroll
                    for (int s = 0; s < 4; ++s) {
                        const uint32_t theirs = __shfl_sync(~0u, bits, s, 4);
                        kept[w] |= (theirs >> (2 * own) & 3) << (8 * q + 2 * s);
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < BN / 2; ++i) sums[i] = p.low_scale * masked(sums[i], kept[i / 32] >> (i % 32) & 1);
    }

    // Producer: the stages of one product.
    static __device__ __forceinline__ void fetch(const Stages& ring, At& at, const ptx::TensorMap* a, const ptx::TensorMap* b,
                                                 uint32_t steps, uint32_t rank, int32_t row, int32_t col) {
        for (uint32_t step = 0; step < steps; ++step, at.advance()) {
            const int32_t k = static_cast<int32_t>(step) * STEP;
            ring.claim(at, STAGE_BYTES);
            unsigned char* to = ring.stage(at);
            ptx::Barrier* full = ring.full + at.stage;
            ptx::cp_async_bulk_tensor_2d_load(to, a, full, k, row);
#pragma unroll
            for (int i = 0; i < BN / 128; ++i) {
                const int panel = static_cast<int>(rank) * (BN / 128) + i;
                const int32_t along = col + panel * 64;
                ptx::cp_async_bulk_tensor_2d_multicast(to + A_BYTES + panel * PANEL, b, full, B_TRANSPOSED ? along : k,
                                                       B_TRANSPOSED ? k : along, BOTH_BLOCKS);
            }
        }
    }

    // One step of 16, number `k` of those in a stage.
    static __device__ __forceinline__ void start(const Stages& ring, const At& at, float (&sums)[BN / 2], int k, int group, bool add) {
        const uint32_t stage = ptx::shared_address(ring.stage(at));
        const uint64_t left = ptx::matrix_descriptor(stage + group * PANEL + k * MMA_K * 2, ptx::Swizzle::B128, PANEL);
        const uint64_t right =
            ptx::matrix_descriptor(stage + A_BYTES + k * MMA_K * (B_TRANSPOSED ? 128 : 2), ptx::Swizzle::B128, PANEL);
        ptx::wgmma_m64k16<T, false, B_TRANSPOSED>(sums, left, right, add);
    }

    // Consumer: the low-rank product, no longer than the rank asks for. It is short: its steps may wait for one another.
    static __device__ __forceinline__ void multiply_low(const Stages& ring, At& at, float (&sums)[BN / 2], uint32_t steps,
                                                        int group) {
#pragma unroll
        for (int i = 0; i < BN / 2; ++i) sums[i] = 0.0f;
        if (steps == 0) return;
        int k = 0;
        ring.await(at);
#pragma unroll 1
        for (uint32_t step = 0; step < steps; ++step, ++k) {
            if (k == STEP / MMA_K) {
                ring.release(at);
                at.advance();
                ring.await(at);
                k = 0;
            }
            ptx::wgmma_fence();
            start(ring, at, sums, k, group, true);
            ptx::wgmma_commit_group();
            ptx::wgmma_wait_group<0>();
        }
        ring.release(at);
        at.advance();
    }

    // Consumer: all steps of the other product, on top of the sums or, if not ADD, in their place.
    template <bool ADD>
    static __device__ __forceinline__ void multiply(const Stages& ring, At& at, float (&sums)[BN / 2], uint32_t steps, int group) {
        ring.multiply(at, steps, [&](uint32_t step) {
#pragma unroll
            for (int k = 0; k < STEP / MMA_K; ++k) start(ring, at, sums, k, group, ADD || step > 0 || k > 0);
        });
    }
};

}  // namespace tile
