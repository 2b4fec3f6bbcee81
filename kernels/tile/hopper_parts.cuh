// The blocks of a line of a block-sparse matrix as operands on Hopper: what a stage of the ring holds of them, who brings it there,
// and how it is gone through.
//
//   a stage: 64 of the sum, in parts of at most 64 from one block each      | x 0 | x 1 | .. | values 0 | values 1 | .. |
//
// A part of x has the rows of one block of threads and is gathered from where the block lies along the sum; the block's values are
// shared by the cluster, of which each block of threads reads one half and sends it to both. The last stage of a line may hold fewer.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tile/hopper_ring.cuh"

namespace tile {

// ROWS of x to blocks of B x B, read by COLUMNS or by rows.
template <int B, bool COLUMNS, int ROWS>
struct LineParts {
    static constexpr uint16_t BOTH_BLOCKS = 3;
    static constexpr int SPAN = B < 64 ? B : 64, LINE = SPAN * 2, PARTS = STEP / SPAN, PER_BLOCK = B / SPAN;
    static constexpr int X_BYTES = ROWS * LINE, VALUE_BYTES = B * LINE, HALF_BYTES = VALUE_BYTES / 2;
    static constexpr int VALUES_AT = PARTS * X_BYTES, STAGE_BYTES = VALUES_AT + PARTS * VALUE_BYTES;

    // By position on the lines: where along the sum a block lies, and which block it is; null if its number is its position.
    const ptx::TensorMap* values;
    const uint32_t* places;
    const uint32_t* blocks;

    // Producer: `count` blocks from position `first` on; load_x(to, full, place) starts the copy of a part of x.
    template <typename Stages, typename At, typename LoadX>
    __device__ __forceinline__ void fetch(const Stages& ring, At& at, uint32_t first, uint32_t count, uint32_t rank,
                                          LoadX load_x) const {
        const uint32_t parts = count * PER_BLOCK;
        for (uint32_t part = 0; part < parts; part += PARTS, at.advance()) {
            const int here = parts - part < PARTS ? static_cast<int>(parts - part) : PARTS;
            ring.claim(at, here * (X_BYTES + VALUE_BYTES));
            unsigned char* to = ring.stage(at);
            ptx::Barrier* full = ring.full + at.stage;
            // Not unrolled: the producer has few registers.
#pragma unroll 1
            for (int i = 0; i < here; ++i) {
                const uint32_t position = first + (part + i) / PER_BLOCK;
                const int32_t half = (part + i) % PER_BLOCK * SPAN;
                const int32_t block = static_cast<int32_t>(blocks == nullptr ? position : blocks[position]) * B;
                load_x(to + i * X_BYTES, full, static_cast<int32_t>(places[position]) * B + half);
                // This block's half: of a block's rows, or, where half the rows are all that the part needs, of its columns.
                const bool by_columns = COLUMNS && B > SPAN;
                const int32_t own = static_cast<int32_t>(rank) * (B / 2);
                ptx::cp_async_bulk_tensor_2d_multicast(to + VALUES_AT + i * VALUE_BYTES + rank * HALF_BYTES, values, full,
                                                       by_columns ? own : half, block + (by_columns ? half : own), BOTH_BLOCKS);
            }
        }
    }

    // Consumer: all parts of `count` blocks, none of which makes zeros; add(i) starts the products of part i of the stage at the cursor.
    template <typename Stages, typename At, typename Add>
    static __device__ __forceinline__ void multiply(const Stages& ring, At& at, uint32_t count, Add add) {
        const uint32_t parts = count * PER_BLOCK;
        ring.multiply(at, parts / PARTS, [&](uint32_t) {
#pragma unroll
            for (int i = 0; i < PARTS; ++i) add(i);
        });
        const int rest = static_cast<int>(parts % PARTS);
        if (rest == 0) return;
        ring.await(at);
        for (int i = 0; i < rest; ++i) {
            ptx::wgmma_fence();
            add(i);
            ptx::wgmma_commit_group();
            ptx::wgmma_wait_group<0>();
        }
        ring.release(at);
        at.advance();
    }

    // The values of part `part`, and 16 of the sum, number `k`.
    static __device__ __forceinline__ uint64_t values_of(uint32_t stage, int part, int k) {
        const uint32_t from = stage + VALUES_AT + part * VALUE_BYTES + k * MMA_K * (COLUMNS ? LINE : 2);
        return ptx::matrix_descriptor(from, SWIZZLE<LINE>, 64 * LINE);
    }
};

}  // namespace tile
