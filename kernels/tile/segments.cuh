// A low-rank update whose factor depends on the row: the adapters of a bank, each for its own run of rows.
//
//   rows offsets[g] .. offsets[g + 1] of out belong to slot g:    out[row] += factor_g · mask ⊙ (A[row] · B_g)
//
//       rows of a tile of out              steps of the sum
//       +------------------+
//       |  slot 3          |               all of B_3: every row of the tile is multiplied, the rows of slot 3 are added
//       |  slot 5          |               all of B_5: ..
//       +------------------+               slots without rows have no steps
//
// The tile is computed by the plain product first, which knows nothing of slots. No row is padded, and rows of other slots are left
// out after the product rather than given to it as zeros: what an adapter makes of a NaN stays with its own rows.
//
//   | layout | A          | B_g          | used for                                   | dropout acts on             |
//   | nt     | [m, depth] | [n, depth]   | h = s_g · dropout(x) A_gᵀ,  y += h B_gᵀ     | A, index i·depth + j        |
//   | nn     | [m, depth] | [depth, n]   | u = s_g · dy B_g,  dx += mask ⊙ (u A_g)     | the update, index i·n + j   |
//
// i counts the rows of the slot, so that a slot draws what it would draw alone.
#pragma once

#include "tile/gemm_fma.cuh"
#include "tile/gemm_mma.cuh"

namespace tile {

struct SegmentParams {
    // k1 is 0. a1 and b1 are A and the bank of all B_g, one after the other; k2 is 0 where the update is all there is.
    GemmParams gemm;
    // [slots + 1]
    const uint32_t* offsets;
    // A factor for each slot besides low_scale, or null.
    const float* scales;
    uint32_t slots;
    uint32_t depth;
};
static_assert(sizeof(SegmentParams) == 192 && offsetof(SegmentParams, offsets) == 168 && offsetof(SegmentParams, slots) == 184,
              "mirrors SegmentParams in src/ops/product.rs");

// The steps of a tile of `height` rows from `row` on: slot by slot.
template <int STEP>
struct SegmentWalk {
    const SegmentParams* p;
    uint32_t bottom;
    uint32_t slot;
    uint32_t at;

    __device__ __forceinline__ SegmentWalk(const SegmentParams& params, size_t row, int height) : p(&params), at(0) {
        const size_t below = row + height < params.gemm.m ? row + height : params.gemm.m;
        bottom = static_cast<uint32_t>(below);
        // The first slot that ends after `row`.
        uint32_t low = 0, high = params.slots;
        while (low < high) {
            const uint32_t middle = low + (high - low) / 2;
            if (params.offsets[middle + 1] > row) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        slot = low;
    }

    __device__ __forceinline__ bool done() const { return slot >= p->slots || begin() >= bottom; }
    __device__ __forceinline__ uint32_t begin() const { return p->offsets[slot]; }
    __device__ __forceinline__ uint32_t end() const { return p->offsets[slot + 1]; }

    __device__ __forceinline__ void advance() {
        at += STEP;
        if (at < p->depth) return;
        at = 0;
        do ++slot;
        while (slot < p->slots && end() == begin());
    }

    __device__ __forceinline__ float factor() const {
        return p->scales != nullptr ? p->gemm.low_scale * p->scales[slot] : p->gemm.low_scale;
    }

    __device__ __forceinline__ Matrix a() const {
        return Matrix{p->gemm.a1, p->depth, p->gemm.m, p->depth, (p->gemm.flags & VECTOR_A1) != 0};
    }

    // B of the slot; BY_K: its rows run along the sum.
    template <typename T, bool BY_K>
    __device__ __forceinline__ Matrix b() const {
        const size_t depth = p->depth, n = p->gemm.n;
        const T* data = static_cast<const T*>(p->gemm.b1) + slot * (n * depth);
        return Matrix{data, BY_K ? n : depth, BY_K ? depth : n, BY_K ? n : depth, (p->gemm.flags & VECTOR_B1) != 0};
    }
};

// On tensor cores, for f16 and bf16.
template <Layout LAYOUT, typename T, typename Gemm, int BM, int BN, int BK, int WM, int WN, int STAGES>
struct MmaSegments {
    static constexpr bool BY_K = LAYOUT == Layout::NN;
    static constexpr int TILES_M = Gemm::TILES_M, TILES_N = Gemm::TILES_N;
    using TileA = typename Gemm::TileA;
    using TileB = typename Gemm::TileB;
    using Sums = typename Gemm::Sums;

    static __device__ __forceinline__ void run(const SegmentParams& p, uint4* shared) {
        const Work<LAYOUT, BM, BN, BK> work(p.gemm);
        Sums sums;
        if (p.gemm.k2 > 0) {
            Gemm::accumulate(plain(p.gemm), work, shared, sums);
            // The slots of the ring have been read: they are filled again, in another order.
            ptx::cp_async_wait<0>();
            __syncthreads();
        } else {
#pragma unroll
            for (int i = 0; i < TILES_M; ++i)
#pragma unroll
                for (int j = 0; j < TILES_N; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.0f;
        }
        add_segments(p, work, shared, sums);
        Gemm::each_pair(sums, [&](int row, int col, const float(&pair)[2]) {
            finish<T, T>(p.gemm, 0, work.row + row, work.col + col, pair);
        });
    }

    // Without dropout, which is the update's alone.
    static __device__ __forceinline__ GemmParams plain(GemmParams p) {
        p.flags &= ~static_cast<uint32_t>(DROPOUT);
        return p;
    }

    static __device__ __forceinline__ void add_segments(const SegmentParams& p, const Work<LAYOUT, BM, BN, BK>& work,
                                                        uint4* shared, Sums& sums) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int warp_row = warp / Gemm::WARPS_N * WM, warp_col = warp % Gemm::WARPS_N * WN;
        const bool drops = p.gemm.flags & DROPOUT;
        SegmentWalk<BK> walk(p, work.row, BM);
        // The step that is fetched runs ahead of the one that is computed.
        SegmentWalk<BK> ahead = walk;
        const auto slot = [&](uint32_t step) { return shared + step % STAGES * Gemm::STAGE_CHUNKS; };
        const auto fetch = [&](uint32_t step) {
            if (!ahead.done()) {
                TileA::fill(slot(step), ahead.a(), work.row, ahead.at);
                TileB::fill(slot(step) + TileA::CHUNKS, ahead.template b<T, BY_K>(), BY_K ? ahead.at : work.col,
                            BY_K ? work.col : ahead.at);
                ahead.advance();
            }
            // A group for each step, empty or not, keeps the count of groups under way.
            ptx::cp_async_commit();
        };
#pragma unroll 1
        for (int step = 0; step < STAGES - 1; ++step) fetch(step);
        uint64_t kept = ~0ull;
        for (uint32_t step = 0; !walk.done(); ++step, walk.advance()) {
            // This thread's chunks of the step have arrived.
            ptx::cp_async_wait<STAGES - 2>();
            const uint32_t begin = walk.begin(), end = walk.end();
            // Rows of other slots are dropped by some mask too, and then left out.
            if (LAYOUT == Layout::NT && drops) TileA::drop(slot(step), dropout_of(p.gemm), walk.a(), work.row - begin, walk.at);
            // All threads' chunks of the step have arrived, and all warps have read the slot that is filled next.
            __syncthreads();
            fetch(step + STAGES - 1);
            const size_t top = work.row + warp_row;
            if (top >= end || top + WM <= begin) continue;
            const auto mine = [&](int i, int half) {
                const size_t row = top + 16 * i + 8 * half + lane / 4;
                return row >= begin && row < end;
            };
            if (LAYOUT == Layout::NN && drops && walk.at == 0) {
                kept = 0;
                // Not unrolled: one copy of the generator is enough, and needs few registers.
#pragma unroll 1
                for (int pair = 0; pair < TILES_M * TILES_N * 2; ++pair) {
                    const int half = pair % 2, j = pair / 2 % TILES_N, i = pair / 2 / TILES_N;
                    if (!mine(i, half)) continue;
                    const size_t y = top + 16 * i + 8 * half + lane / 4 - begin;
                    const size_t x = work.col + warp_col + 8 * j + lane % 4 * 2;
                    kept |= static_cast<uint64_t>(dropout_of(p.gemm).kept<2>(y * p.gemm.n + x) & 3) << (2 * pair);
                }
            }
            const float factor = walk.factor();
            uint4* tile_a = slot(step);
            uint4* tile_b = tile_a + TileA::CHUNKS;
#pragma unroll
            for (int i = 0; i < TILES_M; ++i) {
                const bool own[2] = {mine(i, 0), mine(i, 1)};
                uint32_t a[BK / 16][4];
#pragma unroll
                for (int k = 0; k < BK / 16; ++k) load_a<false, TileA>(a[k], tile_a, warp_row + 16 * i, 16 * k);
#pragma unroll
                for (int j = 0; j < TILES_N / 2; ++j) {
                    float part[2][4] = {};
#pragma unroll
                    for (int k = 0; k < BK / 16; ++k) {
                        uint32_t b[4];
                        load_b<BY_K, TileB>(b, tile_b, 16 * k, warp_col + 16 * j);
                        ptx::mma_m16n8k16<T>(part[0], a[k], b[0], b[1]);
                        ptx::mma_m16n8k16<T>(part[1], a[k], b[2], b[3]);
                    }
#pragma unroll
                    for (int e = 0; e < 8; ++e) {
                        const int column = 2 * j + e / 4, bit = 4 * (i * TILES_N + column) + e % 4;
                        if (own[e % 4 / 2]) sums[i][column][e % 4] += factor * masked(part[e / 4][e % 4], kept >> bit & 1);
                    }
                }
            }
        }
    }
};

// On the ordinary units, for f32.
template <Layout LAYOUT, typename Gemm, int BM, int BN, int BK>
struct FmaSegments {
    static constexpr bool BY_K = LAYOUT == Layout::NN;
    static constexpr int TM = Gemm::TM, TN = Gemm::TN;
    using TileA = typename Gemm::TileA;
    using TileB = typename Gemm::TileB;
    using Sums = typename Gemm::Sums;

    static __device__ __forceinline__ void run(const SegmentParams& p, float* shared) {
        const Work<LAYOUT, BM, BN, BK> work(p.gemm);
        Sums sums;
        if (p.gemm.k2 > 0) {
            GemmParams plain = p.gemm;
            plain.flags &= ~static_cast<uint32_t>(DROPOUT);
            Gemm::accumulate(plain, work, shared, sums);
        } else {
#pragma unroll
            for (int i = 0; i < TM; ++i)
#pragma unroll
                for (int j = 0; j < TN; ++j) sums[i][j] = 0.0f;
        }
        add_segments(p, work, shared, sums);
        Gemm::each_row(sums, [&](int row, int col, const float(&four)[TN]) {
            finish<float, float>(p.gemm, 0, work.row + row, work.col + col, four);
        });
    }

    static __device__ __forceinline__ void add_segments(const SegmentParams& p, const Work<LAYOUT, BM, BN, BK>& work,
                                                        float* shared, Sums& sums) {
        const int thread_row = threadIdx.x / Gemm::ACROSS * TM, thread_col = threadIdx.x % Gemm::ACROSS * TN;
        const bool drops = p.gemm.flags & DROPOUT;
        uint32_t kept = ~0u;
        for (SegmentWalk<BK> walk(p, work.row, BM); !walk.done(); walk.advance()) {
            const uint32_t begin = walk.begin(), end = walk.end();
            TileA a;
            TileB b;
            a.load(walk.a(), work.row, walk.at);
            // Rows of other slots are dropped by some mask too, and then left out.
            if (LAYOUT == Layout::NT && drops) a.drop(dropout_of(p.gemm), walk.a(), work.row - begin, walk.at);
            b.load(walk.template b<float, BY_K>(), BY_K ? walk.at : work.col, BY_K ? work.col : walk.at);
            // The tiles of the step before have been read.
            __syncthreads();
            a.store(shared);
            b.store(shared + TileA::FLOATS);
            // This step's tiles are in shared memory.
            __syncthreads();
            const size_t top = work.row + thread_row;
            if (LAYOUT == Layout::NN && drops && walk.at == 0) {
                kept = 0;
                // Not unrolled: one copy of the generator is enough, and needs few registers.
#pragma unroll 1
                for (int i = 0; i < TM; ++i) {
                    const uint64_t first = (top + i - begin) * p.gemm.n + work.col + thread_col;
                    kept |= (dropout_of(p.gemm).kept<TN>(first) & 15) << (TN * i);
                }
            }
            float part[TM][TN] = {};
            const float* tile_a = shared + thread_row;
            const float* tile_b = shared + TileA::FLOATS + thread_col;
#pragma unroll
            for (int k = 0; k < BK; ++k) {
                const float4 right = *reinterpret_cast<const float4*>(tile_b + k * TileB::PITCH);
                const float cols[TN] = {right.x, right.y, right.z, right.w};
#pragma unroll
                for (int half = 0; half < TM / 4; ++half) {
                    const float4 left = *reinterpret_cast<const float4*>(tile_a + k * TileA::PITCH + 4 * half);
                    const float rows[4] = {left.x, left.y, left.z, left.w};
#pragma unroll
                    for (int i = 0; i < 4; ++i)
#pragma unroll
                        for (int j = 0; j < TN; ++j) part[4 * half + i][j] = fmaf(rows[i], cols[j], part[4 * half + i][j]);
                }
            }
            const float factor = walk.factor();
#pragma unroll
            for (int i = 0; i < TM; ++i) {
                if (top + i < begin || top + i >= end) continue;
#pragma unroll
                for (int j = 0; j < TN; ++j) sums[i][j] += factor * masked(part[i][j], kept >> (TN * i + j) & 1);
            }
        }
    }
};

}  // namespace tile
