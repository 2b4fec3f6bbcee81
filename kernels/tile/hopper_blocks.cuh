// Products with a block-sparse matrix on Hopper, sums in f32. S has blocks of B x B, of which each is B rows of B values:
//
//   rows       y [m, n] = s · x Sᵀ,  x [m, k]     a line is a row of blocks
//   columns    y [m, k] = s · x S,   x [m, n]     a line is a column of blocks, found through the transpose index
//   strips     V [nnz, B, B] = s · (yᵀ x) at the blocks, y [m, n], x [m, k]
//
// rows and columns: a cluster of two blocks makes 512 rows of one line of out. For each block of S on the line, both read the tile of
// x that it meets and share the block itself, of which each reads one half and sends it to both:
//
//                      one line: B columns                      stage: 64 of the sum, gathered
//                 +---------------------------+                   B = 128   half a block
//   block 0       | warpgroup 1: 2 x 64 rows  |                   B = 64    one block
//   256 rows      | warpgroup 2: 2 x 64 rows  |                   B = 32    two blocks
//                 +---------------------------+                   B = 16    four blocks
//   block 1       |           ...             |
//
// A tile in shared memory has lines of B, at most 64, elements, and one wgmma takes 64 x B of out and 16 of the sum. Blocks of 128
// are limited by the tensor cores, smaller ones by bringing x to them: each of its elements meets only B columns.
//
// strips: tokens are summed over, so that both operands lie transposed. A block makes B rows of S times 256 columns: two or four
// neighbouring blocks of one line, whose panels of x are gathered beside each other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tile/hopper_ring.cuh"
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
    // Pairs of tiles along m.
    uint32_t pairs;
    float scale;
    uint32_t unused[17];
};
static_assert(sizeof(HopperLinesParams) == 512 && offsetof(HopperLinesParams, items) == 384 &&
                  offsetof(HopperLinesParams, count) == 432 && offsetof(HopperLinesParams, scale) == 440,
              "three maps, then HopperLinesParams of src/ops/block_sparse/hopper.rs");

template <int LINE>
inline constexpr ptx::Swizzle SWIZZLE = LINE == 128 ? ptx::Swizzle::B128 : LINE == 64 ? ptx::Swizzle::B64 : ptx::Swizzle::B32;

template <typename T, int B, bool COLUMNS, int STAGES>
struct HopperLines {
    static constexpr int BM = 256, BAND = 4, CLUSTER = 2;
    static constexpr uint16_t BOTH_BLOCKS = 3;
    // A part is SPAN elements of the sum, from one block of S.
    static constexpr int SPAN = B < 64 ? B : 64, LINE = SPAN * 2, PARTS = STEP / SPAN, PARTS_PER_BLOCK = B / SPAN;
    static constexpr int X_BYTES = BM * LINE, VALUE_BYTES = B * LINE, HALF_BYTES = VALUE_BYTES / 2;
    static constexpr int STAGE_BYTES = PARTS * (X_BYTES + VALUE_BYTES);
    using Stages = Ring<STAGES, STAGE_BYTES, CLUSTER>;
    using At = Cursor<STAGES>;
    using Out = PanelStore<T, SPAN>;
    static constexpr int OUT_BYTES = CONSUMERS * 4 * Out::WARP_BYTES;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES + OUT_BYTES + Stages::BARRIER_BYTES;

    // Which line, and which rows of out, this block computes in turn number `turn`. Clusters that run at the same time share a band
    // of x in the second-level cache.
    static __device__ __forceinline__ uint4 item(const HopperLinesParams& p, uint32_t turn, uint32_t rank, int32_t& row) {
        const uint32_t band = turn / (BAND * p.count), within = turn % (BAND * p.count);
        const uint32_t left = p.pairs - band * BAND, height = left < BAND ? left : BAND;
        row = static_cast<int32_t>(((band * BAND + within % height) * CLUSTER + rank) * BM);
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
                At at;
                for (uint32_t turn = first; turn < all; turn += clusters) {
                    const uint4 line = item(p, turn, rank, row);
                    fetch(ring, at, p, line, rank, row);
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
                multiply(ring, at, upper, lower, line.z * PARTS_PER_BLOCK, group);
                const size_t own = row + group * 128 + warp * PANEL_ROWS, col = static_cast<size_t>(line.x) * B;
                Out::template store<0>(panels, &p.out, finish, upper, own, col);
                Out::template store<PARTS_PER_BLOCK>(panels, &p.out, finish, lower, own + 64, col);
            }
            Out::drain();
        }
        ring.leave();
    }

    // Producer: the parts of one line, PARTS a stage.
    static __device__ __forceinline__ void fetch(const Stages& ring, At& at, const HopperLinesParams& p, const uint4& line,
                                                 uint32_t rank, int32_t row) {
        const uint32_t parts = line.z * PARTS_PER_BLOCK;
        for (uint32_t part = 0; part < parts; part += PARTS, at.advance()) {
            const int here = parts - part < PARTS ? static_cast<int>(parts - part) : PARTS;
            ring.claim(at, here * (X_BYTES + VALUE_BYTES));
            unsigned char* to = ring.stage(at);
            ptx::Barrier* full = ring.full + at.stage;
            // Not unrolled: the producer has few registers.
#pragma unroll 1
            for (int i = 0; i < here; ++i) {
                const uint32_t position = line.y + (part + i) / PARTS_PER_BLOCK;
                const int32_t half = (part + i) % PARTS_PER_BLOCK * SPAN;
                const int32_t place = static_cast<int32_t>(p.places[position]) * B + half;
                const int32_t block = static_cast<int32_t>(p.blocks == nullptr ? position : p.blocks[position]) * B;
                ptx::cp_async_bulk_tensor_2d_load(to + i * X_BYTES, &p.x, full, place, row);
                // This block's half: of a block's rows, or, where half the rows are all that the part needs, of its columns.
                const bool by_columns = COLUMNS && B > SPAN;
                const int32_t own = static_cast<int32_t>(rank) * (B / 2);
                ptx::cp_async_bulk_tensor_2d_multicast(to + PARTS * X_BYTES + i * VALUE_BYTES + rank * HALF_BYTES, &p.values, full,
                                                       by_columns ? own : half, block + (by_columns ? half : own), BOTH_BLOCKS);
            }
        }
    }

    // Consumer: all parts of a line, none of which makes zeros.
    static __device__ __forceinline__ void multiply(const Stages& ring, At& at, float (&upper)[B / 2], float (&lower)[B / 2],
                                                    uint32_t parts, int group) {
#pragma unroll
        for (int i = 0; i < B / 2; ++i) upper[i] = lower[i] = 0.0f;
        const uint32_t steps = parts / PARTS;
        At before = at;
        for (uint32_t step = 0; step < steps; ++step, at.advance()) {
            ring.await(at);
            ptx::wgmma_fence();
#pragma unroll
            for (int i = 0; i < PARTS; ++i) add_part(ring, at, upper, lower, i, group);
            ptx::wgmma_commit_group();
            // One step stays under way; the one before it is done with its stage.
            ptx::wgmma_wait_group<1>();
            if (step > 0) {
                ring.release(before);
                before.advance();
            }
        }
        ptx::wgmma_wait_group<0>();
        if (steps > 0) ring.release(before);
        const int rest = static_cast<int>(parts % PARTS);
        if (rest > 0) {
            ring.await(at);
            for (int i = 0; i < rest; ++i) {
                ptx::wgmma_fence();
                add_part(ring, at, upper, lower, i, group);
                ptx::wgmma_commit_group();
                ptx::wgmma_wait_group<0>();
            }
            ring.release(at);
            at.advance();
        }
    }

    // Starts the products of one part of a stage.
    static __device__ __forceinline__ void add_part(const Stages& ring, const At& at, float (&upper)[B / 2], float (&lower)[B / 2],
                                                    int part, int group) {
        const uint32_t stage = ptx::shared_address(ring.stage(at));
        const uint32_t x = stage + part * X_BYTES + group * 128 * LINE, values = stage + PARTS * X_BYTES + part * VALUE_BYTES;
#pragma unroll
        for (int k = 0; k < SPAN / MMA_K; ++k) {
            const uint64_t above = ptx::matrix_descriptor(x + k * MMA_K * 2, SWIZZLE<LINE>, 0);
            const uint64_t below = ptx::matrix_descriptor(x + 64 * LINE + k * MMA_K * 2, SWIZZLE<LINE>, 0);
            const uint64_t right = ptx::matrix_descriptor(values + k * MMA_K * (COLUMNS ? LINE : 2), SWIZZLE<LINE>, 64 * LINE);
            ptx::wgmma_m64k16<T, false, COLUMNS>(upper, above, right, true);
            ptx::wgmma_m64k16<T, false, COLUMNS>(lower, below, right, true);
        }
    }
};

struct HopperStripsParams {
    ptx::TensorMap y;
    ptx::TensorMap x;
    // (line, first block, count, -) of each strip.
    const uint4* items;
    // Where along x each block lies.
    const uint32_t* places;
    void* out;
    uint32_t count;
    // Steps of 64 tokens.
    uint32_t steps;
    // Bits: out is f32; the result is added to what it holds.
    uint32_t flags;
    float scale;
    // The block that out begins with.
    uint32_t begin;
    uint32_t unused[21];
};
static_assert(sizeof(HopperStripsParams) == 384 && offsetof(HopperStripsParams, items) == 256 &&
                  offsetof(HopperStripsParams, count) == 280 && offsetof(HopperStripsParams, scale) == 292,
              "two maps, then HopperStripsParams of src/ops/block_sparse/hopper.rs");

enum HopperStripsFlag : uint32_t { STRIPS_WIDE = 1, STRIPS_ACCUMULATE = 2 };

template <typename T, int B, int STAGES>
struct HopperStrips {
    static_assert(B == 64 || B == 128, "a wgmma has 64 rows");
    static constexpr int COLS = 256, PANEL = 64 * 128, ROW_PANELS = B / 64, COL_PANELS = COLS / 64;
    static constexpr int STAGE_BYTES = (ROW_PANELS + COL_PANELS) * PANEL;
    using Stages = Ring<STAGES, STAGE_BYTES, 1>;
    using At = Cursor<STAGES>;
    // Blocks of 128: each warpgroup has 64 of the rows and all columns. Blocks of 64: all rows and half of the columns.
    static constexpr int OWN_COLS = B == 128 ? COLS : COLS / 2, OWN_BLOCKS = OWN_COLS / B;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES + Stages::BARRIER_BYTES;

    static __device__ __forceinline__ void run(const HopperStripsParams& p, unsigned char* shared) {
        const Stages ring(shared, shared + STAGES * STAGE_BYTES);
        if (threadIdx.x < WARPGROUP) {
            ptx::setmaxnreg_dec<PRODUCER_REGISTERS>();
            if (threadIdx.x == 0) {
                At at;
                for (uint32_t turn = blockIdx.x; turn < p.count; turn += gridDim.x) fetch(ring, at, p, p.items[turn]);
            }
        } else {
            ptx::setmaxnreg_inc<CONSUMER_REGISTERS>();
            const int group = threadIdx.x / WARPGROUP - 1;
            At at;
            for (uint32_t turn = blockIdx.x; turn < p.count; turn += gridDim.x) {
                const uint4 strip = p.items[turn];
                const int first = B == 128 ? 0 : group * OWN_BLOCKS, left = static_cast<int>(strip.z) - first;
                const uint32_t block = strip.y + first;
                if (left >= OWN_BLOCKS) {
                    strip_of<OWN_COLS>(ring, at, p, block, group);
                } else if (left > 0) {
                    strip_of<OWN_COLS / 2>(ring, at, p, block, group);
                } else {
                    for (uint32_t step = 0; step < p.steps; ++step, at.advance()) ring.skip(at);
                }
            }
        }
        ring.leave();
    }

    // Producer: all tokens of a strip.
    static __device__ __forceinline__ void fetch(const Stages& ring, At& at, const HopperStripsParams& p, const uint4& strip) {
        const int panels = static_cast<int>(strip.z) * ROW_PANELS;
        for (uint32_t step = 0; step < p.steps; ++step, at.advance()) {
            const int32_t token = static_cast<int32_t>(step) * STEP;
            ring.claim(at, (ROW_PANELS + panels) * PANEL);
            unsigned char* to = ring.stage(at);
            ptx::Barrier* full = ring.full + at.stage;
#pragma unroll
            for (int i = 0; i < ROW_PANELS; ++i) {
                ptx::cp_async_bulk_tensor_2d_load(to + i * PANEL, &p.y, full, static_cast<int32_t>(strip.x) * B + i * 64, token);
            }
            // Not unrolled: the producer has few registers.
#pragma unroll 1
            for (int i = 0; i < panels; ++i) {
                const int32_t place = static_cast<int32_t>(p.places[strip.y + i / ROW_PANELS]) * B + i % ROW_PANELS * 64;
                ptx::cp_async_bulk_tensor_2d_load(to + (ROW_PANELS + i) * PANEL, &p.x, full, place, token);
            }
        }
    }

    // Consumer: N columns of this warpgroup's part of a strip, which are N / B blocks from `block` on.
    template <int N>
    static __device__ __forceinline__ void strip_of(const Stages& ring, At& at, const HopperStripsParams& p, uint32_t block,
                                                    int group) {
        float sums[N / 2];
        At before = at;
        for (uint32_t step = 0; step < p.steps; ++step, at.advance()) {
            ring.await(at);
            const uint32_t stage = ptx::shared_address(ring.stage(at));
            const uint32_t y = stage + (B == 128 ? group * PANEL : 0);
            const uint32_t x = stage + ROW_PANELS * PANEL + (B == 128 ? 0 : group * (OWN_COLS / 64) * PANEL);
            ptx::wgmma_fence();
#pragma unroll
            for (int k = 0; k < STEP / MMA_K; ++k) {
                const uint64_t left = ptx::matrix_descriptor(y + k * MMA_K * 128, ptx::Swizzle::B128, PANEL);
                const uint64_t right = ptx::matrix_descriptor(x + k * MMA_K * 128, ptx::Swizzle::B128, PANEL);
                ptx::wgmma_m64k16<T, true, true>(sums, left, right, step > 0 || k > 0);
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

        // Four lanes write 32 bytes of a row at once: whole sectors.
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
        const int row = (B == 128 ? group * 64 : 0) + warp * 16 + lane / 4;
        const size_t corner = (static_cast<size_t>(block - p.begin) * B + row) * B + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < N / 2; i += 2) {
            const int across = i / 4 * 8, offset = (across / B * B + i / 2 % 2 * 8) * B + across % B;
            write(p, corner + offset, p.scale * sums[i], p.scale * sums[i + 1]);
        }
    }

    static __device__ __forceinline__ void write(const HopperStripsParams& p, size_t at, float first, float second) {
        if (p.flags & STRIPS_WIDE) {
            float2* to = reinterpret_cast<float2*>(static_cast<float*>(p.out) + at);
            const float2 held = p.flags & STRIPS_ACCUMULATE ? *to : make_float2(0.0f, 0.0f);
            *to = make_float2(first + held.x, second + held.y);
        } else {
            uint32_t* to = reinterpret_cast<uint32_t*>(static_cast<T*>(p.out) + at);
            const float2 held = p.flags & STRIPS_ACCUMULATE ? unpack<T>(*to) : make_float2(0.0f, 0.0f);
            *to = repack<T>(first + held.x, second + held.y);
        }
    }
};

}  // namespace tile
