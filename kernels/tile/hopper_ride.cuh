// The block-sparse product that rides on a frozen one on Hopper: further stages on the same sums.
//
//   out += scale · A · op(S)         nt: op(S) = Sᵀ, lines are rows of blocks         nn: op(S) = S, lines are columns of blocks
//
//      columns of a tile of out:    | line 0 | line 1 | line 2 | ..      one line's blocks after another: a wgmma takes 64 x B of the
//                                     ####                               tile, so that its sums are those of the line and no others
//
// The stages come before those of A2 · B2, after the low-rank ones, and have the same ring.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tile/hopper_gemm.cuh"
#include "tile/hopper_parts.cuh"

namespace tile {

struct HopperRideParams {
    ptx::TensorMap x;
    ptx::TensorMap values;
    // low_scale is divided by `scale`: the sparse sums are added to the low-rank ones before both are multiplied by it.
    HopperGemmParams gemm;
    // Of the lines; by position the block's place along the sum, and its number, or null where position and number are the same.
    const uint32_t* offsets;
    const uint32_t* places;
    const uint32_t* blocks;
    uint32_t lines;
    float scale;
    uint32_t unused[24];
};
static_assert(sizeof(HopperRideParams) == 1280 && offsetof(HopperRideParams, offsets) == 1152 &&
                  offsetof(HopperRideParams, lines) == 1176,
              "two maps, those of HopperGemmParams, then HopperRideParams of src/ops/product/hopper.rs");

template <typename Gemm, int B>
struct HopperRide {
    static constexpr bool PRESENT = true;
    using Parts = LineParts<B, Gemm::TRANSPOSED, Gemm::BM>;
    static constexpr int LINES = Gemm::COLS / B;
    static_assert(Parts::STAGE_BYTES <= Gemm::STAGE_BYTES, "the stages are those of the frozen product");

    const HopperRideParams& p;

    // Blocks of a line, of which there are none beyond the last.
    __device__ __forceinline__ uint32_t count(uint32_t line, uint32_t& first) const {
        first = line < p.lines ? p.offsets[line] : 0;
        return line < p.lines ? p.offsets[line + 1] - first : 0;
    }

    // Producer.
    template <typename Stages, typename At>
    __device__ __forceinline__ void fetch(const Stages& ring, At& at, uint32_t rank, int32_t row, int32_t col) const {
        const Parts parts{&p.values, p.places, p.blocks};
        // Not unrolled: the producer has few registers.
#pragma unroll 1
        for (int i = 0; i < LINES; ++i) {
            uint32_t first;
            const uint32_t blocks = count(col / B + i, first);
            parts.fetch(ring, at, first, blocks, rank, [&](unsigned char* to, ptx::Barrier* full, int32_t place) {
                ptx::cp_async_bulk_tensor_2d_load(to, &p.x, full, place, row);
            });
        }
    }

    // Consumer: adds to the sums of 64 rows of the tile, then scales all.
    template <typename Stages, typename At, int COUNT>
    __device__ __forceinline__ void multiply(const Stages& ring, At& at, float (&sums)[COUNT], int32_t col, int group) const {
#pragma unroll
        for (int i = 0; i < LINES; ++i) {
            uint32_t first;
            const uint32_t blocks = count(col / B + i, first);
            float(&line)[B / 2] = reinterpret_cast<float(&)[B / 2]>(sums[i * (B / 2)]);
            Parts::multiply(ring, at, blocks, [&](int part) {
                const uint32_t stage = ptx::shared_address(ring.stage(at));
                const uint32_t x = stage + part * Parts::X_BYTES + group * 64 * Parts::LINE;
#pragma unroll
                for (int k = 0; k < Parts::SPAN / MMA_K; ++k) {
                    const uint64_t left = ptx::matrix_descriptor(x + k * MMA_K * 2, SWIZZLE<Parts::LINE>, 0);
                    ptx::wgmma_m64k16<typename Gemm::Element, false, Gemm::TRANSPOSED>(line, left, Parts::values_of(stage, part, k), true);
                }
            });
        }
#pragma unroll
        for (int i = 0; i < COUNT; ++i) sums[i] *= p.scale;
    }
};

}  // namespace tile
