// What the products of the linear layers share: the problem, its cutting into tiles, and what happens to a finished sum.
//
//   out[m, n] = out_scale · ( mask ⊙ low_scale · (A1 · B1)  +  A2 · B2 )  + bias + held      activated[m, n] = φ(out)
//
// held, which may be out itself, and the bias are there or not; so is φ, of nt alone, whose result may take the place of out. Both products run over the same accumulators, the low-rank one first, because its factor must not touch the other. The
// operands' layouts name the kernel:
//
//   | layout | A          | B          | used for                          | dropout acts on            |
//   | nt     | [m, k]     | [n, k]     | y, h = dropout(x) Aᵀ              | A2, index i·k2 + j          |
//   | nn     | [m, k]     | [k, n]     | dx, u = dy B                      | the first sum, index i·n + j |
//   | tn     | [k, m]     | [k, n]     | dA, dB, dW: k runs over tokens    | B2, index i·n + j           |
//
// All matrices are row-major; a2, b2 and out may be columns of wider ones. tn cuts k into pieces of `split` and writes one f32 result [m, n] for each.
// A mask drops elements to zero without scaling them: 1 / (1 - p) is part of low_scale or out_scale, so that nothing is
// rounded on its way into a product. A dropped NaN or infinity becomes NaN, as it would by a product with zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tile/activation.cuh"
#include "tile/elements.cuh"
#include "tile/philox.cuh"

namespace tile {

enum class Layout { NT, NN, TN };

struct GemmParams {
    const void* a1;
    const void* b1;
    const void* a2;
    const void* b2;
    const void* bias;
    // Null, or laid out as out.
    const void* held;
    void* out;
    void* activated;
    size_t m;
    size_t n;
    size_t k1;
    size_t k2;
    size_t split;
    // Elements from one row to the next of a2, b2 and out.
    size_t stride_a;
    size_t stride_b;
    size_t stride_out;
    uint64_t seed;
    uint32_t step;
    uint32_t site;
    uint32_t threshold;
    uint32_t flags;
    float low_scale;
    float out_scale;
    // As tile/activation.cuh counts them.
    uint32_t activation;
    uint32_t unused;
};
static_assert(sizeof(GemmParams) == 168 && offsetof(GemmParams, m) == 64 && offsetof(GemmParams, seed) == 128 &&
                  offsetof(GemmParams, flags) == 148 && offsetof(GemmParams, activation) == 160,
              "mirrors GemmParams in src/ops/product.rs");

// Bits of `flags`. The first four: the operand may be read 16 bytes at a time, and its rows have at most 2^24 elements.
enum GemmFlag : uint32_t {
    VECTOR_A1 = 1,
    VECTOR_B1 = 2,
    VECTOR_A2 = 4,
    VECTOR_B2 = 8,
    DROPOUT = 16,
    // Two neighbouring elements of out and activated, the first in an even column, may be written at once.
    PAIRS = 32,
};

// A row-major matrix in global memory, or the part of it that a block may read.
struct Matrix {
    const void* data;
    // Elements from one row to the next.
    size_t stride;
    size_t rows;
    size_t cols;
    bool vector;
};

// How many of the `span` lines of a tile that starts at `at` exist.
__device__ __forceinline__ int left(size_t extent, size_t at, int span) {
    const size_t rest = extent - at;
    return rest < static_cast<size_t>(span) ? static_cast<int>(rest) : span;
}

// One block's share of a problem.
template <Layout LAYOUT, int BM, int BN, int BK>
struct Work {
    // Corner of the tile of out.
    size_t row;
    size_t col;
    // tn: the piece of k, [begin, end), and its number. Otherwise all of k2.
    size_t begin;
    size_t end;
    size_t piece;
    // Steps of BK: of the low-rank product, and in all.
    uint32_t low_steps;
    uint32_t steps;

    __device__ __forceinline__ explicit Work(const GemmParams& p) {
        const uint32_t tiles_m = static_cast<uint32_t>((p.m + BM - 1) / BM);
        const uint32_t tiles_n = static_cast<uint32_t>((p.n + BN - 1) / BN);
        uint32_t tile = blockIdx.x;
        if constexpr (LAYOUT == Layout::TN) {
            const uint32_t tiles = tiles_m * tiles_n;
            piece = tile / tiles;
            tile %= tiles;
            begin = piece * p.split;
            end = begin + p.split < p.k2 ? begin + p.split : p.k2;
        } else {
            piece = 0;
            begin = 0;
            end = p.k2;
        }
        // Blocks that run at the same time take tiles of BAND rows of tiles, column by column, so that they share operands in the
        // second-level cache.
        constexpr uint32_t BAND = 8;
        const uint32_t band = tile / (BAND * tiles_n), within = tile % (BAND * tiles_n);
        const uint32_t left = tiles_m - band * BAND, height = left < BAND ? left : BAND;
        row = static_cast<size_t>(band * BAND + within % height) * BM;
        col = static_cast<size_t>(within / height) * BN;
        low_steps = LAYOUT == Layout::TN ? 0 : static_cast<uint32_t>((p.k1 + BK - 1) / BK);
        steps = low_steps + static_cast<uint32_t>((end - begin + BK - 1) / BK);
    }

    // Operand A of step `step`, and where the step's tile starts in it.
    __device__ __forceinline__ Matrix a(const GemmParams& p, uint32_t step, size_t& tile_row, size_t& tile_col) const {
        const bool low = step < low_steps;
        const size_t k = low ? p.k1 : end;
        const size_t at = low ? static_cast<size_t>(step) * BK : begin + static_cast<size_t>(step - low_steps) * BK;
        const void* data = low ? p.a1 : p.a2;
        const bool vector = p.flags & (low ? VECTOR_A1 : VECTOR_A2);
        if constexpr (LAYOUT == Layout::TN) {
            tile_row = at;
            tile_col = row;
            return Matrix{data, p.stride_a, k, p.m, vector};
        } else {
            tile_row = row;
            tile_col = at;
            return Matrix{data, low ? k : p.stride_a, p.m, k, vector};
        }
    }

    __device__ __forceinline__ Matrix b(const GemmParams& p, uint32_t step, size_t& tile_row, size_t& tile_col) const {
        const bool low = step < low_steps;
        const size_t k = low ? p.k1 : end;
        const size_t at = low ? static_cast<size_t>(step) * BK : begin + static_cast<size_t>(step - low_steps) * BK;
        const void* data = low ? p.b1 : p.b2;
        const bool vector = p.flags & (low ? VECTOR_B1 : VECTOR_B2);
        if constexpr (LAYOUT == Layout::NT) {
            tile_row = col;
            tile_col = at;
            return Matrix{data, low ? k : p.stride_b, p.n, k, vector};
        } else {
            tile_row = at;
            tile_col = col;
            return Matrix{data, low ? p.n : p.stride_b, k, p.n, vector};
        }
    }
};

__device__ __forceinline__ Dropout dropout_of(const GemmParams& p) {
    return Dropout{p.seed, p.step, p.site, p.threshold};
}

__device__ __forceinline__ void store_pair(float* to, float first, float second) {
    *reinterpret_cast<float2*>(to) = make_float2(first, second);
}
template <typename T>
__device__ __forceinline__ void store_pair(T* to, float first, float second) {
    *reinterpret_cast<uint32_t*>(to) = repack<T>(first, second);
}

// Writes COUNT neighbouring elements of out, those that exist.
template <typename T, typename Out, int COUNT>
__device__ __forceinline__ void finish(const GemmParams& p, size_t piece, size_t row, size_t col, const float (&sums)[COUNT]) {
    if (row >= p.m) return;
    const size_t at = (piece * p.m + row) * p.stride_out + col;
    Out* out = static_cast<Out*>(p.out) + at;
    const T* bias = static_cast<const T*>(p.bias);
    float v[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        v[i] = 0.0f;
        if (col + i < p.n) {
            v[i] = p.out_scale * sums[i];
            if (bias != nullptr) v[i] += widen(bias[col + i]);
            if (p.held != nullptr) v[i] += widen(static_cast<const Out*>(p.held)[at + i]);
        }
    }
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) {
        if (p.flags & PAIRS) {
            if (col + i < p.n) store_pair(out + i, v[i], v[i + 1]);
        } else {
            if (col + i < p.n) out[i] = narrow<Out>(v[i]);
            if (col + i + 1 < p.n) out[i + 1] = narrow<Out>(v[i + 1]);
        }
    }
}

// φ of the tile of out at (row, col), which this block has written: it still lies in the caches, and its sums in nobody's registers.
template <typename T, int BM, int BN, int THREADS>
__device__ __forceinline__ void activate(const GemmParams& p, size_t row, size_t col) {
    // All of the tile is written, and every thread sees it.
    __syncthreads();
    const int rows = left(p.m, row, BM), cols = left(p.n, col, BN);
    const T* from = static_cast<const T*>(p.out) + row * p.stride_out + col;
    T* to = static_cast<T*>(p.activated) + row * p.stride_out + col;
    // Not unrolled: one copy of the functions is enough. Neighbours take neighbouring pairs.
#pragma unroll 1
    for (int pair = threadIdx.x; pair < BM * BN / 2; pair += THREADS) {
        const int r = pair / (BN / 2), c = pair % (BN / 2) * 2;
        if (r >= rows || c >= cols) continue;
        const size_t at = r * p.stride_out + c;
        const bool both = c + 1 < cols;
        const float first = applied(p.activation, widen(from[at]));
        const float second = applied(p.activation, both ? widen(from[at + 1]) : 0.0f);
        if (p.flags & PAIRS) {
            store_pair(to + at, first, second);
        } else {
            to[at] = narrow<T>(first);
            if (both) to[at + 1] = narrow<T>(second);
        }
    }
}

}  // namespace tile
