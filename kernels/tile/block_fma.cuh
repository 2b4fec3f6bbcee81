// The same products on the ordinary units, for f32: see tile/block_mma.cuh for the sides, tile/gemm_fma.cuh for the way of a tile.
//
//   block: BM x BN of the result, BN = min(b, 64)          thread: 8 x 4 of it          step: 16 of the sum, inside one block
#pragma once

#include "tile/block.cuh"
#include "tile/gemm_fma.cuh"

namespace tile {

template <int B, bool A_BY_K, bool B_BY_K>
struct BlockFma {
    static constexpr int BM = B >= 64 ? 64 : 128, BN = B >= 64 ? 64 : B, BK = 16, TM = 8, TN = 4;
    static constexpr int ACROSS = BN / TN, THREADS = BM / TM * ACROSS;
    using TileA = StagedTile<A_BY_K, BM, BK, THREADS>;
    using TileB = StagedTile<B_BY_K, BN, BK, THREADS>;
    static constexpr int BUFFER_FLOATS = TileA::FLOATS + TileB::FLOATS;

    float sums[TM][TN];

    static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) / ACROSS * TM; }
    static __device__ __forceinline__ int col() { return static_cast<int>(threadIdx.x) % ACROSS * TN; }

    // `read(a, b, step)` brings a step's tiles into registers.
    template <typename Read>
    __device__ __forceinline__ void multiply(float* shared, uint32_t steps, Read read) {
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
            for (int j = 0; j < TN; ++j) sums[i][j] = 0.0f;
        if (steps == 0) return;
        TileA a;
        TileB b;
        const auto store = [&](uint32_t step) {
            float* buffer = shared + step % 2 * BUFFER_FLOATS;
            a.store(buffer);
            b.store(buffer + TileA::FLOATS);
        };
        read(a, b, 0u);
        store(0);
        // The first step's tiles are in shared memory.
        __syncthreads();
#pragma unroll 1
        for (uint32_t step = 0; step < steps; ++step) {
            if (step + 1 < steps) read(a, b, step + 1);
            const float* tile_a = shared + step % 2 * BUFFER_FLOATS + row();
            const float* tile_b = shared + step % 2 * BUFFER_FLOATS + TileA::FLOATS + col();
#pragma unroll
            for (int k = 0; k < BK; ++k) {
                const float4 low = *reinterpret_cast<const float4*>(tile_a + k * TileA::PITCH);
                const float4 high = *reinterpret_cast<const float4*>(tile_a + k * TileA::PITCH + 4);
                const float4 right = *reinterpret_cast<const float4*>(tile_b + k * TileB::PITCH);
                const float rows[TM] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
                const float cols[TN] = {right.x, right.y, right.z, right.w};
#pragma unroll
                for (int i = 0; i < TM; ++i)
#pragma unroll
                    for (int j = 0; j < TN; ++j) sums[i][j] = fmaf(rows[i], cols[j], sums[i][j]);
            }
            // The other buffer was read in the step before, which the barrier at that step's end has closed.
            if (step + 1 < steps) store(step + 1);
            // The next step's tiles are in shared memory, and this step's have been read.
            __syncthreads();
        }
    }

    // Hands the sums out, four neighbouring ones at a time: put(i, j, v) gets those from (i, j) on, along j, or along i for ALONG_M.
    template <bool ALONG_M, typename Put>
    __device__ __forceinline__ void hand_out(Put put) {
        if constexpr (ALONG_M) {
#pragma unroll
            for (int j = 0; j < TN; ++j)
#pragma unroll
                for (int i = 0; i < TM; i += 4) {
                    float v[4] = {sums[i][j], sums[i + 1][j], sums[i + 2][j], sums[i + 3][j]};
                    put(row() + i, col() + j, v);
                }
        } else {
#pragma unroll
            for (int i = 0; i < TM; ++i) put(row() + i, col(), sums[i]);
        }
    }
};

template <int B, bool A_BY_K, bool B_BY_K>
struct DenseFma {
    using Tile = BlockFma<B, A_BY_K, B_BY_K>;
    static constexpr int PARTS = B / Tile::BK;

    static __device__ __forceinline__ void run(const DenseParams& p, float* shared) {
        const DenseWork<float> work(p, Tile::BM, Tile::BN);
        if (work.idle(p)) return;
        const float* dense = static_cast<const float*>(p.dense);
        const float* values = static_cast<const float*>(p.values);
        const int rows = left(p.m, work.row, Tile::BM);
        const auto read = [&](typename Tile::TileA& a, typename Tile::TileB& b, uint32_t step) {
            const uint32_t position = work.item.y + step / PARTS, part = step % PARTS * Tile::BK;
            const size_t first = static_cast<size_t>(p.others[position]) * B + part;
            const size_t block = static_cast<size_t>(p.blocks != nullptr ? p.blocks[position] : position) * (B * B);
            a.gather(p.flags & VECTOR_SECOND, [&](int r, int c) {
                const size_t at = first + (A_BY_K ? r : c);
                if constexpr (A_BY_K) {
                    return Place<float>{dense + at * p.m + work.row + c, at < p.depth ? rows - c : 0};
                } else {
                    return Place<float>{dense + (work.row + r) * p.depth + at, r < rows ? clamp_left(p.depth, at, 4) : 0};
                }
            });
            b.gather(p.flags & VECTOR_FIRST, [&](int r, int c) {
                const uint32_t along = part + (B_BY_K ? r : c), line = work.within + (B_BY_K ? c : r);
                return Place<float>{values + block + (B_BY_K ? along * B + line : line * B + along), 4};
            });
        };
        Tile tile;
        tile.multiply(shared, work.count() * PARTS, read);
        const auto put = [&](int i, int j, float(&v)[4]) { work.put(p, i, static_cast<int>(work.within) + j, v); };
        if (p.flags & LINES_FIRST) {
            tile.template hand_out<true>(put);
        } else {
            tile.template hand_out<false>(put);
        }
    }
};

template <int B, bool A_T, bool B_T>
struct SampledFma {
    using Tile = BlockFma<B, !B_T, A_T>;
    // Blocks that a tile's columns fall in.
    static constexpr int SLOTS = Tile::BM > B ? Tile::BM / B : 1;

    static __device__ __forceinline__ void run(const SampledParams& p, float* shared) {
        const SampledWork<float> work(p, Tile::BM, Tile::BN);
        if (work.idle()) return;
        const uint32_t count = work.strip.z;
        uint32_t columns[SLOTS];
#pragma unroll
        for (int i = 0; i < SLOTS; ++i)
            columns[i] = p.columns[work.strip.y + (i < count ? i : 0)];
        const float* a = static_cast<const float*>(p.a);
        const float* b = static_cast<const float*>(p.b);
        const size_t top = work.top + work.within;
        const int rows = clamp_left(p.n, top, Tile::BN);
        const auto read = [&](typename Tile::TileA& gathered, typename Tile::TileB& strip, uint32_t step) {
            const size_t first = work.begin + static_cast<size_t>(step) * Tile::BK;
            gathered.gather(p.flags & VECTOR_SECOND, [&](int r, int c) {
                const uint32_t column = work.across + (B_T ? r : c), slot = column / B;
                const size_t at = static_cast<size_t>(pick(columns, slot)) * B + column % B;
                const size_t token = first + (B_T ? c : r);
                const int exists = B_T ? (at < p.k ? clamp_left(work.end, token, 4) : 0)
                                       : (token < work.end ? clamp_left(p.k, at, 4) : 0);
                return Place<float>{b + (B_T ? at * p.m + token : token * p.k + at), slot < count ? exists : 0};
            });
            strip.gather(p.flags & VECTOR_FIRST, [&](int r, int c) {
                const int row = A_T ? c : r;
                const size_t token = first + (A_T ? r : c);
                const int exists = A_T ? (token < work.end ? rows - c : 0) : (r < rows ? clamp_left(work.end, token, 4) : 0);
                return Place<float>{a + (A_T ? token * p.n + top + row : (top + row) * p.m + token), exists};
            });
        };
        Tile tile;
        tile.multiply(shared, static_cast<uint32_t>((work.end - work.begin + Tile::BK - 1) / Tile::BK), read);
        tile.template hand_out<true>([&](int i, int j, float(&v)[4]) {
            work.put(p, work.across + i, work.within + j, v);
        });
    }
};

}  // namespace tile
