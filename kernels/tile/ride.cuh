// The block-sparse product that rides on a frozen one: further steps of k on the same accumulators.
//
//   out += scale · A · op(S)         nt: op(S) = Sᵀ, lines are rows of blocks         nn: op(S) = S, lines are columns of blocks
//
//      columns of a tile of out:    | line 0 | line 1 | line 2 | ..      one line's blocks after another; a step takes STEP of the
//                                     ####                               sum (two blocks where b = 16), and only the warps whose
//                                                                        columns lie in the line have anything to do
#pragma once

#include "tile/block.cuh"
#include "tile/gemm.cuh"

namespace tile {

struct RideParams {
    // low_scale is divided by `scale`: the sparse sums are added to the low-rank ones before both are multiplied by it.
    GemmParams gemm;
    // [nnz, b, b], multiples of 16 bytes.
    const void* values;
    // Of the lines; by position the block's place along the sum, and its number, or null where position and number are the same.
    const uint32_t* offsets;
    const uint32_t* others;
    const uint32_t* blocks;
    uint32_t b;
    float scale;
};
static_assert(sizeof(RideParams) == 208 && offsetof(RideParams, values) == 168 && offsetof(RideParams, b) == 200,
              "mirrors RideParams in src/ops/product.rs");

// Nothing rides.
struct NoRide {
    static constexpr bool PRESENT = false;
};

// The steps of one tile of out, in order.
template <int STEP>
struct Ride {
    static constexpr bool PRESENT = true;
    // Blocks in one step.
    static constexpr int SLOTS = STEP > 16 ? STEP / 16 : 1;

    const RideParams* p;
    uint32_t line;
    uint32_t last;
    uint32_t at;
    uint32_t end;
    uint32_t part;

    // At the first step of the tile whose columns are col .. col + width.
    __device__ __forceinline__ Ride(const RideParams& params, size_t col, int width) : p(&params), part(0) {
        const size_t right = col + width < params.gemm.n ? col + width : params.gemm.n;
        line = static_cast<uint32_t>(col / params.b);
        last = static_cast<uint32_t>((right - 1) / params.b);
        at = params.offsets[line];
        end = params.offsets[line + 1];
        skip_empty();
    }

    __device__ __forceinline__ void skip_empty() {
        while (at >= end && line < last) {
            ++line;
            at = end;
            end = p->offsets[line + 1];
        }
    }

    __device__ __forceinline__ uint32_t slots() const { return p->b < STEP ? STEP / p->b : 1; }

    __device__ __forceinline__ void advance() {
        part += STEP;
        if (part >= p->b) {
            part = 0;
            at += slots();
            if (at > end) at = end;
        }
        skip_empty();
    }

    // How many steps there are from the first on.
    __device__ __forceinline__ uint32_t steps() const {
        uint32_t sum = 0;
        for (uint32_t l = line; l <= last; ++l) {
            const uint32_t count = p->offsets[l + 1] - p->offsets[l];
            sum += p->b < STEP ? (count + slots() - 1) / slots() : count * (p->b / STEP);
        }
        return sum;
    }

    // Whether the k-th of the step is there, and whether column x of out belongs to the line.
    __device__ __forceinline__ bool has(int k) const { return at + static_cast<uint32_t>(k) / p->b < end || p->b >= STEP; }
    __device__ __forceinline__ bool owns(size_t x) const { return x / p->b == line; }

    // Where the k-th of the step lies along the sum; k may not cross a block.
    __device__ __forceinline__ size_t along(int k) const {
        const uint32_t slot = static_cast<uint32_t>(k) / p->b;
        return static_cast<size_t>(p->others[at + slot]) * p->b + (p->b < STEP ? k % p->b : part + k);
    }

    // Offset in the values of (line's column x of out, k-th of the step).
    template <bool BY_K>
    __device__ __forceinline__ size_t value(size_t x, int k) const {
        const uint32_t position = at + static_cast<uint32_t>(k) / p->b;
        const size_t block = p->blocks != nullptr ? p->blocks[position] : position;
        const uint32_t of_line = static_cast<uint32_t>(x % p->b), of_sum = p->b < STEP ? k % p->b : part + k;
        return block * p->b * p->b + (BY_K ? of_sum * p->b + of_line : of_line * p->b + of_sum);
    }

    // Element (row, k-th of the step) of A [m, extent], and how many of `span` from there on exist.
    template <typename T>
    __device__ __forceinline__ Place<T> from_a(size_t row, int k, int span) const {
        if (row >= p->gemm.m || !has(k)) return Place<T>{static_cast<const T*>(p->gemm.a2), 0};
        const size_t column = along(k);
        return Place<T>{static_cast<const T*>(p->gemm.a2) + row * p->gemm.k2 + column, clamp_left(p->gemm.k2, column, span)};
    }

    // Element (k-th of the step, column x of out) of op(S) likewise: blocks are whole.
    template <typename T, bool BY_K>
    __device__ __forceinline__ Place<T> from_values(size_t x, int k, int span) const {
        if (!owns(x) || !has(k)) return Place<T>{static_cast<const T*>(p->values), 0};
        return Place<T>{static_cast<const T*>(p->values) + value<BY_K>(x, k), span};
    }
};

}  // namespace tile
