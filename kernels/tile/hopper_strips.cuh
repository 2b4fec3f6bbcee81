// Blocks of a product of two dense matrices on Hopper, sums in f32: V [nnz, B, B] = s · op(A) · op(B) at the blocks, where op(A) is
// [n, m] and op(B) is [m, k], each perhaps stored as its transpose.
//
// A block of threads takes a strip: up to 256 columns of op(B), gathered from neighbouring blocks of one row of blocks. They are the
// tall side of the tensor cores' product, the B rows of op(A) the short one, so that its 64 rows are one, two or four blocks:
//
//       gathered columns          B rows of op(A)
//     +------------------+      +-----------------+
//     | unit 0: 64       |      |                 |     warpgroup 1: units 0 and 2         a stage: 64 of m
//     | unit 1: 64       |  x   |                 |     warpgroup 2: units 1 and 3
//     | unit 2, unit 3   |      |                 |
//     +------------------+      +-----------------+
//
// Blocks of 16 or 32 may fill a strip's last unit in part. The warpgroup that has it then multiplies warp by warp, 16 columns at a time, and
// a warp's product holds its sums as the warpgroup's does: what no block reaches is neither read nor multiplied.
//
// Few strips are cut along m into pieces, which are added elsewhere in their order. What limits it is bringing op(B) to the blocks: each
// of its elements meets B rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"
#include "tile/elements.cuh"
#include "tile/hopper_ring.cuh"

namespace tile {

struct HopperStripsParams {
    ptx::TensorMap a;
    ptx::TensorMap b;
    // (row of blocks, first block, count, -) of each strip.
    const uint4* items;
    // Where along op(B)'s columns each block lies.
    const uint32_t* places;
    void* out;
    // Elements of out from one piece of m to the next.
    uint64_t piece;
    uint32_t count;
    // Strips times pieces.
    uint32_t turns;
    // Steps of 64 of m: of a piece, and in all.
    uint32_t steps;
    uint32_t all_steps;
    // Bits: out is f32; the result is added to what it holds.
    uint32_t flags;
    float scale;
    // The block that out begins with.
    uint32_t begin;
    uint32_t unused[17];
};
static_assert(sizeof(HopperStripsParams) == 384 && offsetof(HopperStripsParams, items) == 256 &&
                  offsetof(HopperStripsParams, count) == 288 && offsetof(HopperStripsParams, scale) == 308,
              "two maps, then HopperStripsParams of src/ops/block_sparse/hopper/strips.rs");

enum HopperStripsFlag : uint32_t { STRIPS_WIDE = 1, STRIPS_ACCUMULATE = 2 };

// A_T and B_T say how A and B are stored.
template <typename T, int B, bool A_T, bool B_T, int STAGES>
struct HopperStrips {
    static constexpr int COLS = 256, UNIT = 64, UNIT_BYTES = UNIT * STEP * 2, BLOCK_BYTES = B * STEP * 2;
    static constexpr int GATHERED_BYTES = COLS * STEP * 2, STAGE_BYTES = GATHERED_BYTES + BLOCK_BYTES;
    // Lines of shared memory hold 64 of m or, of an operand that has its columns beside one another, at most 64 of those.
    static constexpr int SPAN = B < 64 ? B : 64, LINE = SPAN * 2, PANELS = B / SPAN, PANEL_BYTES = STEP * LINE;
    using Stages = Ring<STAGES, STAGE_BYTES, 1>;
    using At = Cursor<STAGES>;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES + Stages::BARRIER_BYTES;

    // One turn: a strip, and a piece of m.
    struct Work {
        uint4 strip;
        uint32_t piece;
        uint32_t first;
        uint32_t steps;

        __device__ __forceinline__ Work(const HopperStripsParams& p, uint32_t turn)
            : strip(p.items[turn % p.count]), piece(turn / p.count), first(piece * p.steps) {
            const uint32_t left = p.all_steps - first;
            steps = left < p.steps ? left : p.steps;
        }

        // Of the strip's units a warpgroup has every second.
        __device__ __forceinline__ uint32_t units(uint32_t group) const { return ((strip.z * B + UNIT - 1) / UNIT + 1 - group) / 2; }

        // This warpgroup has the strip's last unit, and no block reaches its end.
        __device__ __forceinline__ bool narrow(uint32_t group) const {
            return strip.z * B % UNIT != 0 && strip.z * B / UNIT % 2 == group;
        }
    };

    static __device__ __forceinline__ void run(const HopperStripsParams& p, unsigned char* shared) {
        const Stages ring(shared, shared + STAGES * STAGE_BYTES);
        if (threadIdx.x < WARPGROUP) {
            ptx::setmaxnreg_dec<PRODUCER_REGISTERS>();
            if (threadIdx.x == 0) {
                At at;
                for (uint32_t turn = blockIdx.x; turn < p.turns; turn += gridDim.x) fetch(ring, at, p, Work(p, turn));
            }
        } else {
            ptx::setmaxnreg_inc<CONSUMER_REGISTERS>();
            const uint32_t group = threadIdx.x / WARPGROUP - 1;
            At at;
            for (uint32_t turn = blockIdx.x; turn < p.turns; turn += gridDim.x) {
                const Work work(p, turn);
                const uint32_t units = work.units(group);
                if (B < UNIT && work.narrow(group)) {
                    if (units == 2) make_narrow<2>(ring, at, p, work, group);
                    if (units == 1) make_narrow<1>(ring, at, p, work, group);
                } else if (units == 2) {
                    make<2>(ring, at, p, work, group);
                } else if (units == 1) {
                    make<1>(ring, at, p, work, group);
                } else {
                    for (uint32_t step = 0; step < work.steps; ++step, at.advance()) ring.skip(at);
                    // Warps that saw none of these phases must not mistake a later one for the next that they wait for.
                    meet(group);
                }
            }
        }
        ring.leave();
    }

    static __device__ __forceinline__ void meet(uint32_t group) { ptx::barrier_named<WARPGROUP>(1 + static_cast<int>(group)); }

    // Producer: all steps of a piece.
    static __device__ __forceinline__ void fetch(const Stages& ring, At& at, const HopperStripsParams& p, const Work& work) {
        const int32_t row = static_cast<int32_t>(work.strip.x) * B;
        for (uint32_t step = 0; step < work.steps; ++step, at.advance()) {
            const int32_t m = static_cast<int32_t>(work.first + step) * STEP;
            ring.claim(at, BLOCK_BYTES * (1 + work.strip.z));
            unsigned char* to = ring.stage(at);
            ptx::Barrier* full = ring.full + at.stage;
            load<A_T>(to + GATHERED_BYTES, &p.a, full, row, m);
            // Not unrolled: the producer has few registers.
#pragma unroll 1
            for (uint32_t slot = 0; slot < work.strip.z; ++slot) {
                const uint32_t place = p.places[work.strip.y + slot] * B;
                load<!B_T>(to + slot * BLOCK_BYTES, &p.b, full, static_cast<int32_t>(place), m);
            }
        }
    }

    // B neighbours, 64 of m: m along the lines of shared memory, or ACROSS them.
    template <bool ACROSS>
    static __device__ __forceinline__ void load(unsigned char* to, const ptx::TensorMap* map, ptx::Barrier* full, int32_t place,
                                                int32_t m) {
        if constexpr (ACROSS) {
#pragma unroll
            for (int i = 0; i < PANELS; ++i) {
                ptx::cp_async_bulk_tensor_2d_load(to + i * PANEL_BYTES, map, full, place + i * SPAN, m);
            }
        } else {
            ptx::cp_async_bulk_tensor_2d_load(to, map, full, m, place);
        }
    }

    // The operand that `load` has brought to `address`, number `k` of the steps of 16 in a stage.
    template <bool ACROSS>
    static __device__ __forceinline__ uint64_t operand(uint32_t address, int k) {
        return ACROSS ? ptx::matrix_descriptor(address + k * MMA_K * LINE, SWIZZLE<LINE>, PANEL_BYTES)
                      : ptx::matrix_descriptor(address + k * MMA_K * 2, ptx::Swizzle::B128, 0);
    }

    // Where a warp's lane finds its row of 8 elements for ldmatrix: of the 16 by 16 at `place` of the operand's own extent and `m` of the
    // stage. Lanes 8 to 15 have the next rows of eight along m if M_FIRST, and else along the extent; lanes from 16 on, the other.
    template <bool ACROSS, bool M_FIRST>
    static __device__ __forceinline__ const unsigned char* lane_row(const unsigned char* operand, uint32_t place, uint32_t m) {
        const uint32_t lane = threadIdx.x % 32, next = lane / 8 % 2 * 8, other = lane / 16 * 8;
        const uint32_t at = place + (M_FIRST ? other : next), along = m + (M_FIRST ? next : other);
        const uint32_t line_bytes = ACROSS ? LINE : STEP * 2, chunks = line_bytes / 16;
        const uint32_t to = ACROSS ? at / B * BLOCK_BYTES + (along + lane % 8) * LINE + at % B * 2
                                   : (at + lane % 8) * line_bytes + along * 2;
        // The tensor copy permutes the chunks of a line by the number of 128 bytes that it is in.
        return operand + (to ^ (to / 128 % chunks * 16));
    }

    template <bool ACROSS>
    static __device__ __forceinline__ void read(uint32_t (&words)[4], const unsigned char* row) {
        if constexpr (ACROSS) {
            ptx::ldmatrix_x4_trans(words, row);
        } else {
            ptx::ldmatrix_x4(words, row);
        }
    }

    // Consumer: a stage's part of the sums of this warp's 16 columns, the strip's from `first` on.
    static __device__ __forceinline__ void multiply_narrow(float (&sums)[B / 2], const unsigned char* stage, uint32_t first) {
#pragma unroll
        for (int m = 0; m < STEP; m += MMA_K) {
            uint32_t left[4], right[4];
            read<!B_T>(left, lane_row<!B_T, false>(stage, first, m));
#pragma unroll
            for (int n = 0; n < B; n += 16) {
                read<A_T>(right, lane_row<A_T, true>(stage + GATHERED_BYTES, n, m));
                ptx::mma_m16n8k16<T>(reinterpret_cast<float(&)[4]>(sums[n / 2]), left, right[0], right[1]);
                ptx::mma_m16n8k16<T>(reinterpret_cast<float(&)[4]>(sums[n / 2 + 4]), left, right[2], right[3]);
            }
        }
    }

    // Consumer: as `make`, warp by warp, and the columns that blocks reach alone.
    template <int LIVE>
    static __device__ __forceinline__ void make_narrow(const Stages& ring, At& at, const HopperStripsParams& p, const Work& work,
                                                       uint32_t group) {
        float sums[LIVE][B / 2] = {};
        const uint32_t columns = work.strip.z * B, warp = threadIdx.x / 32 % 4 * 16;
        for (uint32_t step = 0; step < work.steps; ++step, at.advance()) {
            ring.await(at);
#pragma unroll
            for (int i = 0; i < LIVE; ++i) {
                const uint32_t first = (group + 2 * i) * UNIT + warp;
                if (first < columns) multiply_narrow(sums[i], ring.stage(at), first);
            }
            // One thread lets go of the stage, for all warps.
            meet(group);
            ring.release(at);
        }
#pragma unroll
        for (int i = 0; i < LIVE; ++i) write(p, work, sums[i], (group + 2 * i) * UNIT);
    }

    // Consumer: LIVE units, the warpgroup's own number and the second next.
    template <int LIVE>
    static __device__ __forceinline__ void make(const Stages& ring, At& at, const HopperStripsParams& p, const Work& work,
                                                uint32_t group) {
        // Left undefined, they would share registers with the narrow sums, and wgmma would wait for those.
        float sums[LIVE][B / 2] = {};
        ring.multiply(at, work.steps, [&](uint32_t) {
            const uint32_t stage = ptx::shared_address(ring.stage(at));
#pragma unroll
            for (int k = 0; k < STEP / MMA_K; ++k) {
                const uint64_t right = operand<A_T>(stage + GATHERED_BYTES, k);
#pragma unroll
                for (int i = 0; i < LIVE; ++i) {
                    const uint64_t left = operand<!B_T>(stage + (group + 2 * i) * UNIT_BYTES, k);
                    ptx::wgmma_m64k16<T, !B_T, A_T>(sums[i], left, right, true);
                }
            }
        });
#pragma unroll
        for (int i = 0; i < LIVE; ++i) write(p, work, sums[i], (group + 2 * i) * UNIT);
    }

    // Sums of 64 columns of the strip from `first` on. Neighbouring lanes hold neighbouring columns; they trade so that each gets two of one
    // row, and eight lanes write whole sectors of it.
    static __device__ __forceinline__ void write(const HopperStripsParams& p, const Work& work, const float (&sums)[B / 2],
                                                 uint32_t first) {
        const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, odd = lane / 4 % 2;
        const uint32_t column = first + warp * 16 + odd * 8 + lane / 8 * 2, slot = column / B;
        const size_t block = static_cast<size_t>(work.strip.y - p.begin) + slot;
        const size_t corner = work.piece * p.piece + (block * B + lane % 4 * 2) * B + column % B;
#pragma unroll
        for (int i = 0; i < B / 2; i += 4) {
#pragma unroll
            for (int t = 0; t < 2; ++t) {
                const float upper = sums[i + t], lower = sums[i + 2 + t];
                const float own = odd ? lower : upper, other = __shfl_xor_sync(~0u, odd ? upper : lower, 4);
                const float left = p.scale * (odd ? other : own), right = p.scale * (odd ? own : other);
                if (slot < work.strip.z) put(p, corner + (i * 2 + t) * B, left, right);
            }
        }
    }

    static __device__ __forceinline__ void put(const HopperStripsParams& p, size_t at, float first, float second) {
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
