// The tile product on tensor cores, for f16 and bf16.
//
//   block: BM x BN of out              warp: WM x WN of it          step: BK of k
//
//        BN                                 WN
//      +----+----+----+                   +--------+  one mma: 16 x 8 of out, 16 of k
//   BM | w0 | w1 | .. |                WM |        |
//      +----+----+----+                   +--------+
//
// Operand tiles pass through a ring of STAGES slots in shared memory, filled ahead by cp.async. They lie there as they lie in
// global memory, k along the rows or along the columns; ldmatrix transposes where the tensor core wants it otherwise. The
// 16-byte chunks of a row are permuted, so that the eight rows that ldmatrix reads at once lie in different banks.
#pragma once

#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"
#include "tile/gemm.cuh"
#include "tile/ride.cuh"

namespace tile {

// One operand's tile in shared memory: ROWS rows of COLS 16-bit elements.
template <typename T, int ROWS, int COLS, int THREADS>
struct SharedTile {
    static constexpr int CHUNKS_PER_ROW = COLS / 8;
    static constexpr int CHUNKS = ROWS * CHUNKS_PER_ROW;
    static constexpr int MINE = CHUNKS / THREADS;
    static constexpr int BYTES = ROWS * COLS * 2;
    static_assert(COLS == 16 || COLS == 32 || COLS % 64 == 0, "the permutation knows rows of 32, 64 and multiples of 128 bytes");
    static_assert(CHUNKS % THREADS == 0, "every thread copies the same number of chunks");

    // Where chunk `chunk` of row `row` lies. Rows of 32 or 64 bytes go four or two to a line of all banks, so that the permutation
    // changes every fourth or every other row; longer rows begin at the same bank, so that it changes with each.
    static __device__ __forceinline__ uint4* at(uint4* tile, int row, int chunk) {
        const int turn = CHUNKS_PER_ROW == 2 ? (row >> 2) & 1 : CHUNKS_PER_ROW == 4 ? (row >> 1) & 3 : row & 7;
        return tile + row * CHUNKS_PER_ROW + (chunk ^ turn);
    }

    // Starts the copy of the tile at (row, col), a corner inside a matrix. What lies outside becomes zero.
    static __device__ __forceinline__ void fill(uint4* tile, const Matrix& from, size_t row, size_t col) {
        const uint16_t* corner = static_cast<const uint16_t*>(from.data) + row * from.stride + col;
        const int rows = left(from.rows, row, ROWS), cols = left(from.cols, col, COLS);
        if (from.vector) {
            // A vector operand's rows are short enough to count a tile's elements in 32 bits, and whole chunks long, so that a chunk
            // lies inside or outside.
            const uint32_t stride = static_cast<uint32_t>(from.stride);
#pragma unroll
            for (int i = 0; i < MINE; ++i) {
                const int r = mine(i) / CHUNKS_PER_ROW, c = mine(i) % CHUNKS_PER_ROW;
                const bool inside = r < rows && c * 8 < cols;
                const uint32_t offset = inside ? r * stride + c * 8 : 0;
                ptx::cp_async_16(at(tile, r, c), corner + offset, inside ? 16 : 0);
            }
            return;
        }
#pragma unroll 1
        for (int i = 0; i < MINE; ++i) {
            const int r = mine(i) / CHUNKS_PER_ROW, c = mine(i) % CHUNKS_PER_ROW;
            const int count = r < rows ? cols - c * 8 : 0;
            const uint16_t* chunk = corner + r * from.stride + c * 8;
            uint32_t words[4];
#pragma unroll
            for (int w = 0; w < 4; ++w) {
                const uint32_t low = 2 * w < count ? chunk[2 * w] : 0, high = 2 * w + 1 < count ? chunk[2 * w + 1] : 0;
                words[w] = low | high << 16;
            }
            *at(tile, r, c) = make_uint4(words[0], words[1], words[2], words[3]);
        }
    }

    // Starts the copy of the tile chunk by chunk from where `place(row, column)` says: `count` elements from `from` on, the rest
    // becomes zero. `anywhere` is an address that may be read.
    template <typename Place>
    static __device__ __forceinline__ void gather(uint4* tile, bool vector, const void* anywhere, Place place) {
        if (vector) {
#pragma unroll
            for (int i = 0; i < MINE; ++i) {
                const int r = mine(i) / CHUNKS_PER_ROW, c = mine(i) % CHUNKS_PER_ROW;
                const auto [from, count] = place(r, c * 8);
                ptx::cp_async_16(at(tile, r, c), count > 0 ? from : anywhere, count > 0 ? 16 : 0);
            }
            return;
        }
#pragma unroll 1
        for (int i = 0; i < MINE; ++i) {
            const int r = mine(i) / CHUNKS_PER_ROW, c = mine(i) % CHUNKS_PER_ROW;
            const auto [from, count] = place(r, c * 8);
            const uint16_t* chunk = reinterpret_cast<const uint16_t*>(from);
            uint32_t words[4];
#pragma unroll
            for (int w = 0; w < 4; ++w) {
                const uint32_t low = 2 * w < count ? chunk[2 * w] : 0, high = 2 * w + 1 < count ? chunk[2 * w + 1] : 0;
                words[w] = low | high << 16;
            }
            *at(tile, r, c) = make_uint4(words[0], words[1], words[2], words[3]);
        }
    }

    // Drops elements of the chunks that this thread has copied.
    static __device__ __forceinline__ void drop(uint4* tile, const Dropout& dropout, const Matrix& from, size_t row,
                                                size_t col) {
#pragma unroll 1
        for (int i = 0; i < MINE; ++i) {
            const int r = mine(i) / CHUNKS_PER_ROW, c = mine(i) % CHUNKS_PER_ROW;
            const uint32_t bits = dropout.kept<8>((row + r) * from.stride + col + c * 8);
            uint4* chunk = at(tile, r, c);
            const uint4 v = *chunk;
            *chunk = make_uint4(drop_pair(v.x, bits), drop_pair(v.y, bits >> 2), drop_pair(v.z, bits >> 4),
                                drop_pair(v.w, bits >> 6));
        }
    }

    // Number of the i-th chunk that this thread copies.
    static __device__ __forceinline__ int mine(int i) { return static_cast<int>(threadIdx.x) + i * THREADS; }

    // The low two bits say which of the two elements of a word are kept.
    static __device__ __forceinline__ uint32_t drop_pair(uint32_t word, uint32_t bits) {
        const float2 v = unpack<T>(word);
        return repack<T>(masked(v.x, bits & 1), masked(v.y, bits >> 1 & 1));
    }
};

// The 16 x 16 elements of A at (row, k) of its tile, in the order that mma takes them. BY_K: the tile's rows run along k.
template <bool BY_K, typename Tile>
__device__ __forceinline__ void load_a(uint32_t (&words)[4], uint4* tile, int row, int k) {
    const int lane = threadIdx.x % 32;
    if constexpr (BY_K) {
        ptx::ldmatrix_x4_trans(words, Tile::at(tile, k + lane % 8 + lane / 16 * 8, row / 8 + lane / 8 % 2));
    } else {
        ptx::ldmatrix_x4(words, Tile::at(tile, row + lane % 16, k / 8 + lane / 16));
    }
}

// The 16 x 16 elements of B at (k, col): two words for columns col .. col + 8, two for the eight after.
template <bool BY_K, typename Tile>
__device__ __forceinline__ void load_b(uint32_t (&words)[4], uint4* tile, int k, int col) {
    const int lane = threadIdx.x % 32;
    if constexpr (BY_K) {
        ptx::ldmatrix_x4_trans(words, Tile::at(tile, k + lane % 16, col / 8 + lane / 16));
    } else {
        ptx::ldmatrix_x4(words, Tile::at(tile, col + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
    }
}

template <Layout LAYOUT, typename T, typename Out, int BM, int BN, int BK, int WM, int WN, int STAGES>
struct MmaGemm {
    static constexpr int WARPS_M = BM / WM, WARPS_N = BN / WN, THREADS = 32 * WARPS_M * WARPS_N;
    static constexpr int TILES_M = WM / 16, TILES_N = WN / 8;
    static constexpr bool A_BY_K = LAYOUT == Layout::TN, B_BY_K = LAYOUT != Layout::NT;
    using TileA = SharedTile<T, A_BY_K ? BK : BM, A_BY_K ? BM : BK, THREADS>;
    using TileB = SharedTile<T, B_BY_K ? BK : BN, B_BY_K ? BN : BK, THREADS>;
    static constexpr int STAGE_CHUNKS = TileA::CHUNKS + TileB::CHUNKS;
    static constexpr int SHARED_BYTES = STAGES * STAGE_CHUNKS * 16;
    static_assert(TILES_N % 2 == 0 && BK % 16 == 0, "ldmatrix brings two tiles of B at once");
    static_assert(TILES_M * TILES_N * 4 <= 64, "one bit of a mask for each sum of a thread");

    // Sixteen of k on those columns of the warp, sixteen at a time, that `owned(j)` says.
    template <typename Owned>
    static __device__ __forceinline__ void ride_on(float (&sums)[TILES_M][TILES_N][4], uint4* tile_a, uint4* tile_b, int row,
                                                   int col, int k, Owned owned) {
#pragma unroll
        for (int j = 0; j < TILES_N / 2; ++j) {
            if (!owned(j)) continue;
            uint32_t b[4];
            load_b<B_BY_K, TileB>(b, tile_b, k, col + 16 * j);
#pragma unroll
            for (int i = 0; i < TILES_M; ++i) {
                uint32_t a[4];
                load_a<A_BY_K, TileA>(a, tile_a, row + 16 * i, k);
                ptx::mma_m16n8k16<T>(sums[i][2 * j], a, b[0], b[1]);
                ptx::mma_m16n8k16<T>(sums[i][2 * j + 1], a, b[2], b[3]);
            }
        }
    }

    using Sums = float[TILES_M][TILES_N][4];

    static __device__ __forceinline__ void run(const GemmParams& p, uint4* shared) {
        const Work<LAYOUT, BM, BN, BK> work(p);
        run(p, work, NoRide{}, shared);
    }

    // With a block-sparse product on the same accumulators, between the low-rank one and the base.
    static __device__ __forceinline__ void run(const RideParams& p, uint4* shared) {
        const Work<LAYOUT, BM, BN, BK> work(p.gemm);
        run(p.gemm, work, Ride<BK>(p, work.col, BN), shared);
    }

    template <typename Rider>
    static __device__ __forceinline__ void run(const GemmParams& p, const Work<LAYOUT, BM, BN, BK>& work, Rider rider,
                                               uint4* shared) {
        Sums sums;
        accumulate(p, work, rider, shared, sums);
        each_pair(sums, [&](int row, int col, const float(&pair)[2]) {
            finish<T, Out>(p, work.piece, work.row + row, work.col + col, pair);
        });
        if constexpr (LAYOUT == Layout::NT) {
            if (p.activation != NO_ACTIVATION) activate<T, BM, BN, THREADS>(p, work.row, work.col);
        }
    }

    // Calls body(row, column, sums) for every two neighbouring sums of this thread, by their place in the tile.
    template <typename Body>
    static __device__ __forceinline__ void each_pair(const Sums& sums, Body body) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int row = warp / WARPS_N * WM + lane / 4, col = warp % WARPS_N * WN + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < TILES_M; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
                for (int j = 0; j < TILES_N; ++j) {
                    const float pair[2] = {sums[i][j][2 * half], sums[i][j][2 * half + 1]};
                    body(row + 16 * i + 8 * half, col + 8 * j, pair);
                }
    }

    // The tile's products, in the registers of its threads.
    static __device__ __forceinline__ void accumulate(const GemmParams& p, const Work<LAYOUT, BM, BN, BK>& work, uint4* shared,
                                                      Sums& sums) {
        accumulate(p, work, NoRide{}, shared, sums);
    }

    template <typename Rider>
    static __device__ __forceinline__ void accumulate(const GemmParams& p, const Work<LAYOUT, BM, BN, BK>& work, Rider rider,
                                                      uint4* shared, Sums& sums) {
        constexpr bool RIDES = Rider::PRESENT;
        uint32_t ride_end = work.low_steps, steps = work.steps;
        // The step that is fetched runs ahead of the one that is computed.
        [[maybe_unused]] Rider ahead = rider;
        if constexpr (RIDES) {
            const uint32_t ride_steps = rider.steps();
            ride_end += ride_steps;
            steps += ride_steps;
        }
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int warp_row = warp / WARPS_N * WM, warp_col = warp % WARPS_N * WN;
        const bool drops_operand = LAYOUT != Layout::NN && (p.flags & DROPOUT);

#pragma unroll
        for (int i = 0; i < TILES_M; ++i)
#pragma unroll
            for (int j = 0; j < TILES_N; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.0f;

        const auto slot = [&](uint32_t step) { return shared + step % STAGES * STAGE_CHUNKS; };
        const auto fetch_dense = [&](uint32_t step, uint4* to) {
            size_t row, col;
            const Matrix a = work.a(p, step, row, col);
            TileA::fill(to, a, row, col);
            const Matrix b = work.b(p, step, row, col);
            TileB::fill(to + TileA::CHUNKS, b, row, col);
        };
        const auto fetch = [&](uint32_t step) {
            if (step < work.low_steps) {
                fetch_dense(step, slot(step));
            } else if (RIDES && step < ride_end) {
                if constexpr (RIDES) {
                    TileA::gather(slot(step), p.flags & VECTOR_A2, p.a2,
                                  [&](int r, int c) { return ahead.template from_a<uint16_t>(work.row + r, c, 8); });
                    TileB::gather(slot(step) + TileA::CHUNKS, true, p.b2, [&](int r, int c) {
                        return ahead.template from_values<uint16_t, B_BY_K>(work.col + (B_BY_K ? c : r), B_BY_K ? r : c, 8);
                    });
                    ahead.advance();
                }
            } else if (step < steps) {
                fetch_dense(step - (ride_end - work.low_steps), slot(step));
            }
            // A group for each step, empty or not, keeps the count of groups under way.
            ptx::cp_async_commit();
        };

#pragma unroll 1
        for (int step = 0; step < STAGES - 1; ++step) fetch(step);
        for (uint32_t step = 0; step < steps; ++step) {
            // This thread's chunks of the step have arrived.
            ptx::cp_async_wait<STAGES - 2>();
            if (drops_operand) {
                size_t row, col;
                if constexpr (LAYOUT == Layout::NT) {
                    const Matrix a = work.a(p, step, row, col);
                    TileA::drop(slot(step), dropout_of(p), a, row, col);
                } else {
                    const Matrix b = work.b(p, step, row, col);
                    TileB::drop(slot(step) + TileA::CHUNKS, dropout_of(p), b, row, col);
                }
            }
            // All threads' chunks of the step have arrived, and all warps have read the slot that is filled next.
            __syncthreads();
            fetch(step + STAGES - 1);

            if (step == work.low_steps && step > 0) {
                uint64_t kept = ~0ull;
                if (LAYOUT == Layout::NN && (p.flags & DROPOUT)) {
                    kept = 0;
                    // Not unrolled: one copy of the generator is enough, and needs few registers.
#pragma unroll 1
                    for (int pair = 0; pair < TILES_M * TILES_N * 2; ++pair) {
                        const int half = pair % 2, j = pair / 2 % TILES_N, i = pair / 2 / TILES_N;
                        const size_t y = work.row + warp_row + 16 * i + 8 * half + lane / 4;
                        const size_t x = work.col + warp_col + 8 * j + lane % 4 * 2;
                        kept |= static_cast<uint64_t>(dropout_of(p).kept<2>(y * p.n + x) & 3) << (2 * pair);
                    }
                }
#pragma unroll
                for (int i = 0; i < TILES_M; ++i)
#pragma unroll
                    for (int j = 0; j < TILES_N; ++j)
#pragma unroll
                        for (int e = 0; e < 4; ++e)
                            sums[i][j][e] = p.low_scale * masked(sums[i][j][e], kept >> (4 * (i * TILES_N + j) + e) & 1);
            }
            uint4* tile_a = slot(step);
            uint4* tile_b = tile_a + TileA::CHUNKS;
            if constexpr (RIDES) {
                if (step >= work.low_steps && step < ride_end) {
#pragma unroll
                    for (int k = 0; k < BK; k += 16) {
                        if (!rider.has(k)) continue;
                        ride_on(sums, tile_a, tile_b, warp_row, warp_col, k,
                                [&](int j) { return rider.owns(work.col + warp_col + 16 * j); });
                    }
                    rider.advance();
                    continue;
                }
                if (step == ride_end && step > 0) {
#pragma unroll
                    for (int i = 0; i < TILES_M; ++i)
#pragma unroll
                        for (int j = 0; j < TILES_N; ++j)
#pragma unroll
                            for (int e = 0; e < 4; ++e) sums[i][j][e] *= rider.p->scale;
                }
            }
#pragma unroll
            for (int k = 0; k < BK; k += 16) {
                uint32_t a[TILES_M][4], b[TILES_N / 2][4];
#pragma unroll
                for (int i = 0; i < TILES_M; ++i) load_a<A_BY_K, TileA>(a[i], tile_a, warp_row + 16 * i, k);
#pragma unroll
                for (int j = 0; j < TILES_N / 2; ++j) load_b<B_BY_K, TileB>(b[j], tile_b, k, warp_col + 16 * j);
#pragma unroll
                for (int i = 0; i < TILES_M; ++i)
#pragma unroll
                    for (int j = 0; j < TILES_N; ++j)
                        ptx::mma_m16n8k16<T>(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
            }
        }
    }
};

}  // namespace tile
