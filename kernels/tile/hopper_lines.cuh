// Products with a block-sparse matrix on Hopper, sums in f32. S has blocks of B x B, of which each is B rows of B values:
//
//   rows       y [m, n] = s · x Sᵀ,  x [m, k]     a line is a row of blocks
//   columns    y [m, k] = s · x S,   x [m, n]     a line is a column of blocks, found through the transpose index
//
// Both x and y may be stored across, as their transposes: that is S and Sᵀ on the left of a dense matrix.
//
// A cluster of two blocks makes 512 rows of one line of y. For each block of S on the line, both read the tile of x that it meets and
// share the block itself, of which each reads one half and sends it to both:
//
//                      one line: B columns                      stage: 64 of the sum, gathered
//                 +---------------------------+                   B = 128   half a block
//   block 0       | warpgroup 1: 2 x 64 rows  |                   B = 64    one block
//   256 rows      | warpgroup 2: 2 x 64 rows  |                   B = 32    two blocks
//                 +---------------------------+                   B = 16    four blocks
//   block 1       |           ...             |
//
// A tile in shared memory has lines of B, at most 64, elements (64 of m where x lies across), and one wgmma takes 64 x B of y and 16
// of the sum. Blocks of 128 are limited by the tensor cores, smaller ones by bringing x to them: each of its elements meets only B
// columns.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tile/hopper_parts.cuh"
#include "tile/hopper_store.cuh"

namespace tile {

struct HopperLinesParams {
    ptx::TensorMap x;
    ptx::TensorMap values;
    ptx::TensorMap out;
    // (line, position of its first block, count, -) of each line, longest first.
    const uint4* items;
    // By position on the line: where along x the block lies, and which block it is; null if its number is its position.
    const uint32_t* places;
    const uint32_t* blocks;
    // Null, or out itself, to which the result is added.
    const void* held;
    uint64_t m;
    uint64_t lines;
    uint32_t count;
    // Pairs of tiles along m, and how many of them run beside one another.
    uint32_t pairs;
    uint32_t band;
    // Whether y lies across.
    uint32_t across;
    float scale;
    uint32_t unused[15];
};
static_assert(sizeof(HopperLinesParams) == 512 && offsetof(HopperLinesParams, items) == 384 &&
                  offsetof(HopperLinesParams, count) == 432 && offsetof(HopperLinesParams, scale) == 448,
              "three maps, then HopperLinesParams of src/ops/block_sparse/hopper/lines.rs");

template <typename T, int B, bool COLUMNS, bool X_ACROSS, int STAGES>
struct HopperLines {
    static constexpr int BM = 256, CLUSTER = 2;
    using Parts = LineParts<B, COLUMNS, BM>;
    static constexpr int SPAN = Parts::SPAN, LINE = Parts::LINE, STAGE_BYTES = Parts::STAGE_BYTES;
    // Across, 64 of m are one line, and 64 x SPAN a panel.
    static constexpr int PANEL = 64, PANEL_BYTES = SPAN * PANEL * 2;
    using Stages = Ring<STAGES, STAGE_BYTES, CLUSTER>;
    using At = Cursor<STAGES>;
    using Out = PanelStore<T, SPAN>;
    static constexpr int OUT_BYTES = CONSUMERS * 4 * Out::WARP_BYTES;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES + OUT_BYTES + Stages::BARRIER_BYTES;

    // Which line, and which rows of y, this block computes in turn number `turn`. Clusters that run at the same time share a band
    // of x in the second-level cache.
    static __device__ __forceinline__ uint4 item(const HopperLinesParams& p, uint32_t turn, uint32_t rank, int32_t& row) {
        const uint32_t band = turn / (p.band * p.count), within = turn % (p.band * p.count);
        const uint32_t left = p.pairs - band * p.band, height = left < p.band ? left : p.band;
        row = static_cast<int32_t>(((band * p.band + within % height) * CLUSTER + rank) * BM);
        return p.items[within / height];
    }

    static __device__ __forceinline__ void run(const HopperLinesParams& p, unsigned char* shared) {
        const Stages ring(shared, shared + STAGES * STAGE_BYTES + OUT_BYTES);
        const uint32_t rank = ptx::cluster_ctarank(), first = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;
        const uint32_t all = p.pairs * p.count;
        int32_t row;
        if (threadIdx.x < WARPGROUP) {
            ptx::setmaxnreg_dec<PRODUCER_REGISTERS>();
            if (threadIdx.x == 0) {
                const Parts parts{&p.values, p.places, p.blocks};
                At at;
                for (uint32_t turn = first; turn < all; turn += clusters) {
                    const uint4 line = item(p, turn, rank, row);
                    parts.fetch(ring, at, line.y, line.z, rank, [&](unsigned char* to, ptx::Barrier* full, int32_t place) {
                        load_x(to, p, full, place, row);
                    });
                }
            }
        } else {
            ptx::setmaxnreg_inc<CONSUMER_REGISTERS>();
            const int group = threadIdx.x / WARPGROUP - 1, warp = threadIdx.x / 32 % 4;
            unsigned char* panels = shared + STAGES * STAGE_BYTES + (group * 4 + warp) * Out::WARP_BYTES;
            const Finish<T> finish{nullptr, static_cast<const T*>(p.held), p.m, p.lines, p.scale};
            At at;
            for (uint32_t turn = first; turn < all; turn += clusters) {
                const uint4 line = item(p, turn, rank, row);
                float upper[B / 2], lower[B / 2];
                multiply(ring, at, upper, lower, line.z, group);
                const size_t own = row + group * 128 + warp * PANEL_ROWS, col = static_cast<size_t>(line.x) * B;
                if (p.across) {
                    Out::template store<0, true>(panels, &p.out, finish, upper, own, col);
                    Out::template store<Parts::PER_BLOCK, true>(panels, &p.out, finish, lower, own + 64, col);
                } else {
                    Out::template store<0>(panels, &p.out, finish, upper, own, col);
                    Out::template store<Parts::PER_BLOCK>(panels, &p.out, finish, lower, own + 64, col);
                }
            }
            Out::drain();
        }
        ring.leave();
    }

    // Producer: a part of x.
    static __device__ __forceinline__ void load_x(unsigned char* to, const HopperLinesParams& p, ptx::Barrier* full, int32_t place,
                                                  int32_t row) {
        if constexpr (X_ACROSS) {
#pragma unroll
            for (int i = 0; i < BM / PANEL; ++i) {
                ptx::cp_async_bulk_tensor_2d_load(to + i * PANEL_BYTES, &p.x, full, row + i * PANEL, place);
            }
        } else {
            ptx::cp_async_bulk_tensor_2d_load(to, &p.x, full, place, row);
        }
    }

    // Sixty-four rows of a part of x, and 16 of the sum, number `k`.
    static __device__ __forceinline__ uint64_t rows_of_x(uint32_t x, int sixty_four, int k) {
        return X_ACROSS ? ptx::matrix_descriptor(x + sixty_four * PANEL_BYTES + k * MMA_K * 128, ptx::Swizzle::B128, 0)
                        : ptx::matrix_descriptor(x + sixty_four * 64 * LINE + k * MMA_K * 2, SWIZZLE<LINE>, 0);
    }

    // Consumer: all blocks of a line.
    static __device__ __forceinline__ void multiply(const Stages& ring, At& at, float (&upper)[B / 2], float (&lower)[B / 2],
                                                    uint32_t count, int group) {
#pragma unroll
        for (int i = 0; i < B / 2; ++i) upper[i] = lower[i] = 0.0f;
        Parts::multiply(ring, at, count, [&](int part) {
            const uint32_t stage = ptx::shared_address(ring.stage(at)), x = stage + part * Parts::X_BYTES;
#pragma unroll
            for (int k = 0; k < SPAN / MMA_K; ++k) {
                const uint64_t right = Parts::values_of(stage, part, k);
                ptx::wgmma_m64k16<T, X_ACROSS, COLUMNS>(upper, rows_of_x(x, group * 2, k), right, true);
                ptx::wgmma_m64k16<T, X_ACROSS, COLUMNS>(lower, rows_of_x(x, group * 2 + 1, k), right, true);
            }
        });
    }
};

}  // namespace tile
