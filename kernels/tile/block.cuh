// What the block-sparse kernels share: parameters, and how a tile finds its elements. BLOCK is the edge of a block.
//
//   dense:    Y = scale · op(D) · op(S), or its transpose          a tile: 128 of m by one line of blocks
//   sampled:  V = scale · op(A) · op(B) at the blocks              a tile: one row of blocks by 128 columns of a strip gathered from it
//
// Both are products of a tall tile (M side: 128 of m, or gathered columns) and a short one (N side: b wide), the N side being
// blocks of values or a strip of A. What lies along the sum, or beside the M side, is gathered through index arrays.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tile/elements.cuh"

namespace tile {

// Bits of `flags`. The first two mirror src/ops/target.rs.
enum BlockFlag : uint32_t {
    TO_ACCUMULATE = 1,
    // The target is f32 though the operands are not.
    TO_WIDE = 2,
    // The operand may be read 16 bytes at a time, and its rows have at most 2^24 elements.
    VECTOR_FIRST = 4,
    VECTOR_SECOND = 8,
    // The target may be written 16 bytes at a time.
    VECTOR_OUT = 16,
    // dense: Y is [lines, m] instead of [m, lines].
    LINES_FIRST = 32,
};

// Columns that a strip gathers at most.
constexpr uint32_t STRIP = 256;

struct DenseParams {
    const void* values;
    const void* dense;
    void* out;
    // [pieces][m][b], or [pieces][b][m] for LINES_FIRST.
    float* pieces;
    // (line, first, count, piece) of each.
    const uint4* items;
    // By position: the block's place along the sum, and its number, or null where position and number are the same.
    const uint32_t* others;
    const uint32_t* blocks;
    size_t m;
    // Extent of Y along lines, and extent summed over.
    size_t lines;
    size_t depth;
    // Tiles of one item.
    uint32_t tiles;
    uint32_t flags;
    float scale;
    uint32_t padding;
};
static_assert(sizeof(DenseParams) == 96 && offsetof(DenseParams, m) == 56 && offsetof(DenseParams, tiles) == 80 &&
                  offsetof(DenseParams, scale) == 88,
              "mirrors DenseParams in src/ops/block_sparse/gpu.rs");

struct SampledParams {
    // op(A) is [n, m], op(B) is [m, k].
    const void* a;
    const void* b;
    // [nnz, b, b], or one such for each piece of m.
    void* out;
    // (row, first, count, -) of each.
    const uint4* strips;
    const uint32_t* columns;
    size_t n;
    size_t k;
    size_t m;
    // How much of m one tile sums over.
    size_t split;
    // Blocks of one piece of the output, the first of which has this number in the pattern.
    size_t nnz;
    uint32_t first;
    // Strips.
    uint32_t count;
    uint32_t flags;
    float scale;
};
static_assert(sizeof(SampledParams) == 96 && offsetof(SampledParams, n) == 40 && offsetof(SampledParams, first) == 80 &&
                  offsetof(SampledParams, scale) == 92,
              "mirrors SampledParams in src/ops/block_sparse/gpu.rs");

// Where a chunk's elements are, and how many of them exist.
template <typename T>
struct Place {
    const T* from;
    int count;
};

// v[i], for an index that is not known while compiling: values in registers have no address.
template <int N>
__device__ __forceinline__ uint32_t pick(const uint32_t (&v)[N], int i) {
    uint32_t out = v[0];
#pragma unroll
    for (int j = 1; j < N; ++j) out = i == j ? v[j] : out;
    return out;
}

__device__ __forceinline__ int clamp_left(size_t extent, size_t at, int span) {
    if (at >= extent) return 0;
    const size_t rest = extent - at;
    return rest < static_cast<size_t>(span) ? static_cast<int>(rest) : span;
}

// Writes, or adds, `count` of N neighbouring numbers.
template <typename T, int N>
__device__ __forceinline__ void write_run(T* to, int count, bool vector, bool accumulate, float (&v)[N]) {
    if (vector && count == N) {
        if constexpr (N % PACK<T> == 0) {
            if (accumulate) {
                float old[N];
                load<T, N>(to, old);
#pragma unroll
                for (int i = 0; i < N; ++i) v[i] += old[i];
            }
            store<T, N>(to, v);
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        if (i < count) to[i] = narrow<T>(accumulate ? v[i] + widen(to[i]) : v[i]);
    }
}

// One dense tile's share: its item, and where its results go.
template <typename T>
struct DenseWork {
    uint4 item;
    // First of its rows of m.
    size_t row;
    // First of its lines, and of those within the block.
    size_t line;
    uint32_t within;

    __device__ __forceinline__ DenseWork(const DenseParams& p, int bm, int bn) {
        const uint32_t tile = blockIdx.x % p.tiles;
        const uint32_t parts = BLOCK / bn;
        item = p.items[blockIdx.x / p.tiles];
        within = tile % parts * bn;
        row = static_cast<size_t>(tile / parts) * bm;
        line = static_cast<size_t>(item.x) * BLOCK;
    }

    __device__ __forceinline__ uint32_t count() const { return item.z; }
    __device__ __forceinline__ bool direct() const { return item.w == ~0u; }

    // Nothing to sum and nothing to write.
    __device__ __forceinline__ bool idle(const DenseParams& p) const {
        return (item.z == 0 && (p.flags & TO_ACCUMULATE)) || line + within >= p.lines;
    }

    // N neighbouring sums from (i of m, j of the block's lines) on: along the lines, or along m for LINES_FIRST.
    template <int N>
    __device__ __forceinline__ void put(const DenseParams& p, int i, int j, float (&v)[N]) const {
        const bool lines_first = p.flags & LINES_FIRST;
        const size_t y = row + i;
        const int lines = clamp_left(p.lines, line + j, lines_first ? 1 : N), rows = clamp_left(p.m, y, lines_first ? N : 1);
        if (lines == 0 || rows == 0) return;
        const int run = lines_first ? rows : lines;
        if (!direct()) {
            const size_t base = static_cast<size_t>(item.w) * p.m * BLOCK;
            float* to = p.pieces + base + (lines_first ? j * p.m + y : y * BLOCK + j);
            // Rows of the workspace are whole blocks long, or m.
            write_run(to, run, !lines_first || p.m % 4 == 0, false, v);
            return;
        }
#pragma unroll
        for (int q = 0; q < N; ++q) v[q] *= p.scale;
        const size_t at = lines_first ? (line + j) * p.m + y : y * p.lines + line + j;
        const bool vector = p.flags & VECTOR_OUT, accumulate = p.flags & TO_ACCUMULATE;
        if (p.flags & TO_WIDE) {
            write_run(static_cast<float*>(p.out) + at, run, vector, accumulate, v);
        } else {
            write_run(static_cast<T*>(p.out) + at, run, vector, accumulate, v);
        }
    }
};

// One sampled tile's share: blocks first .. first + count of a row, and a piece of m.
template <typename T>
struct SampledWork {
    uint4 strip;
    size_t begin;
    size_t end;
    size_t piece;
    size_t top;
    // First of its columns of the first block, and of its rows.
    uint32_t across;
    uint32_t within;

    __device__ __forceinline__ SampledWork(const SampledParams& p, int bm, int bn) {
        const uint32_t parts_m = STRIP / bm, parts_n = BLOCK / bn;
        uint32_t tile = blockIdx.x;
        within = tile % parts_n * bn;
        tile /= parts_n;
        across = tile % parts_m * bm;
        tile /= parts_m;
        strip = p.strips[tile % p.count];
        // Of the strip, what begins with this tile's first block.
        const uint32_t passed = across / BLOCK;
        strip.y += passed;
        strip.z = strip.z > passed ? strip.z - passed : 0;
        across %= BLOCK;
        piece = tile / p.count;
        begin = piece * p.split;
        end = begin + p.split < p.m ? begin + p.split : p.m;
        top = static_cast<size_t>(strip.x) * BLOCK;
    }

    __device__ __forceinline__ bool idle() const { return strip.z == 0; }

    // N neighbouring sums from (column c of the strip, row r of the block) on, along the columns: all of one block.
    template <int N>
    __device__ __forceinline__ void put(const SampledParams& p, uint32_t c, uint32_t r, float (&v)[N]) const {
        const uint32_t slot = c / BLOCK;
        if (slot >= strip.z) return;
        const size_t at = ((piece * p.nnz + (strip.y - p.first) + slot) * BLOCK + r) * BLOCK + c % BLOCK;
#pragma unroll
        for (int q = 0; q < N; ++q) v[q] *= p.scale;
        const bool vector = p.flags & VECTOR_OUT, accumulate = p.flags & TO_ACCUMULATE;
        if (p.flags & TO_WIDE) {
            write_run(static_cast<float*>(p.out) + at, N, vector, accumulate, v);
        } else {
            write_run(static_cast<T*>(p.out) + at, N, vector, accumulate, v);
        }
    }
};

}  // namespace tile
