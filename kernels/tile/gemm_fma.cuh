// The tile product on the ordinary units, for f32: exact to f32 as the reference is, which tf32 tensor cores would not be.
//
//   block: BM x BN of out, 128 threads           thread: 8 x 4 of it          step: BK of k
//
// Operand tiles are brought into registers while the step before is computed, and stored to shared memory with k along the
// rows, [BK][BM] and [BK][BN], so that a thread reads its rows and columns of one k as vectors. Two buffers take turns.
#pragma once

#include "ptx/store.cuh"
#include "tile/gemm.cuh"
#include "tile/ride.cuh"

namespace tile {

// One operand's way into shared memory. K_ROWS: k runs along the rows of the matrix. SPAN is BM or BN.
template <bool K_ROWS, int SPAN, int BK, int THREADS>
struct StagedTile {
    // Four floats of space after each row keep rows aligned and spread the stores of transposed chunks over the banks; chunks that
    // stay as they are meet no bank twice in rows that follow each other at once, of 16 floats or of a multiple of 32.
    static constexpr int PITCH = K_ROWS ? SPAN : SPAN + 4;
    static_assert(SPAN == 16 || SPAN % 32 == 0, "the banks above");
    static constexpr int FLOATS = BK * PITCH;
    static constexpr int ROWS = K_ROWS ? BK : SPAN, CHUNKS_PER_ROW = (K_ROWS ? SPAN : BK) / 4;
    static constexpr int MINE = ROWS * CHUNKS_PER_ROW / THREADS;
    static_assert(ROWS * CHUNKS_PER_ROW % THREADS == 0, "every thread copies the same number of chunks");

    float4 chunks[MINE];

    // Row and column of the i-th chunk that this thread copies. Where chunks are transposed on their way, 16 neighbouring lanes take
    // 16 rows and the others of the warp the neighbouring chunks: whole sectors of global memory, and every bank once.
    static __device__ __forceinline__ int row_of(int i) {
        const int mine = threadIdx.x + i * THREADS;
        return K_ROWS ? mine / CHUNKS_PER_ROW : mine / (16 * CHUNKS_PER_ROW) * 16 + mine % 16;
    }
    static __device__ __forceinline__ int col_of(int i) {
        const int mine = threadIdx.x + i * THREADS;
        return (K_ROWS ? mine % CHUNKS_PER_ROW : mine / 16 % CHUNKS_PER_ROW) * 4;
    }

    // Reads the tile chunk by chunk from where `place(row, column)` says: `count` floats from `from` on, the rest is zero.
    template <typename Place>
    __device__ __forceinline__ void gather(bool vector, Place place) {
#pragma unroll
        for (int i = 0; i < MINE; ++i) {
            const auto [from, count] = place(row_of(i), col_of(i));
            chunks[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (vector) {
                if (count > 0) chunks[i] = *reinterpret_cast<const float4*>(from);
            } else {
                if (count > 0) chunks[i].x = from[0];
                if (count > 1) chunks[i].y = from[1];
                if (count > 2) chunks[i].z = from[2];
                if (count > 3) chunks[i].w = from[3];
            }
        }
    }

    // Reads the tile at (row, col), a corner inside a matrix; what lies outside is zero.
    __device__ __forceinline__ void load(const Matrix& from, size_t row, size_t col) {
        const float* corner = static_cast<const float*>(from.data) + row * from.stride + col;
        const int rows = left(from.rows, row, ROWS), cols = left(from.cols, col, CHUNKS_PER_ROW * 4);
#pragma unroll
        for (int i = 0; i < MINE; ++i) {
            const int r = row_of(i), c = col_of(i);
            const int count = r < rows ? cols - c : 0;
            chunks[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (from.vector) {
                // Rows are whole chunks long, so a chunk lies inside or outside; a tile's elements are counted in 32 bits.
                const uint32_t offset = r * static_cast<uint32_t>(from.stride) + c;
                if (count > 0) chunks[i] = *reinterpret_cast<const float4*>(corner + offset);
            } else {
                const float* chunk = corner + r * from.stride + c;
                if (count > 0) chunks[i].x = chunk[0];
                if (count > 1) chunks[i].y = chunk[1];
                if (count > 2) chunks[i].z = chunk[2];
                if (count > 3) chunks[i].w = chunk[3];
            }
        }
    }

    __device__ __forceinline__ void drop(const Dropout& dropout, const Matrix& from, size_t row, size_t col) {
#pragma unroll
        for (int i = 0; i < MINE; ++i) {
            const size_t y = row + row_of(i), x = col + col_of(i);
            const uint32_t bits = dropout.kept<4>(y * from.stride + x);
            chunks[i].x = masked(chunks[i].x, bits & 1);
            chunks[i].y = masked(chunks[i].y, bits >> 1 & 1);
            chunks[i].z = masked(chunks[i].z, bits >> 2 & 1);
            chunks[i].w = masked(chunks[i].w, bits >> 3 & 1);
        }
    }

    __device__ __forceinline__ void store(float* tile) const {
#pragma unroll
        for (int i = 0; i < MINE; ++i) {
            const int r = row_of(i), c = col_of(i);
            if constexpr (K_ROWS) {
                ptx::store_shared_16(tile + r * PITCH + c, chunks[i]);
            } else {
                tile[c * PITCH + r] = chunks[i].x;
                tile[(c + 1) * PITCH + r] = chunks[i].y;
                tile[(c + 2) * PITCH + r] = chunks[i].z;
                tile[(c + 3) * PITCH + r] = chunks[i].w;
            }
        }
    }
};

template <Layout LAYOUT, int BM, int BN, int BK>
struct FmaGemm {
    static constexpr int TM = 8, TN = 4;
    static constexpr int ACROSS = BN / TN, THREADS = BM / TM * ACROSS;
    using TileA = StagedTile<LAYOUT == Layout::TN, BM, BK, THREADS>;
    using TileB = StagedTile<LAYOUT != Layout::NT, BN, BK, THREADS>;
    static constexpr int BUFFER_FLOATS = TileA::FLOATS + TileB::FLOATS;

    using Sums = float[TM][TN];

    static __device__ __forceinline__ void run(const GemmParams& p, float* shared) {
        const Work<LAYOUT, BM, BN, BK> work(p);
        run(p, work, NoRide{}, shared);
    }

    // With a block-sparse product on the same accumulators, between the low-rank one and the base.
    static __device__ __forceinline__ void run(const RideParams& p, float* shared) {
        const Work<LAYOUT, BM, BN, BK> work(p.gemm);
        run(p.gemm, work, Ride<BK>(p, work.col, BN), shared);
    }

    template <typename Rider>
    static __device__ __forceinline__ void run(const GemmParams& p, const Work<LAYOUT, BM, BN, BK>& work, Rider rider,
                                               float* shared) {
        Sums sums;
        accumulate(p, work, rider, shared, sums);
        each_row(sums, [&](int row, int col, const float(&four)[TN]) {
            finish<float, float>(p, work.piece, work.row + row, work.col + col, four);
        });
        if constexpr (LAYOUT == Layout::NT) {
            if (p.activation != NO_ACTIVATION) activate<float, BM, BN, THREADS>(p, work.row, work.col);
        }
    }

    // Calls body(row, column, sums) for every row of this thread's sums, by their place in the tile.
    template <typename Body>
    static __device__ __forceinline__ void each_row(const Sums& sums, Body body) {
#pragma unroll
        for (int i = 0; i < TM; ++i) body(threadIdx.x / ACROSS * TM + i, threadIdx.x % ACROSS * TN, sums[i]);
    }

    // The tile's products, in the registers of its threads.
    static __device__ __forceinline__ void accumulate(const GemmParams& p, const Work<LAYOUT, BM, BN, BK>& work, float* shared,
                                                      Sums& sums) {
        accumulate(p, work, NoRide{}, shared, sums);
    }

    template <typename Rider>
    static __device__ __forceinline__ void accumulate(const GemmParams& p, const Work<LAYOUT, BM, BN, BK>& work, Rider rider,
                                                      float* shared, Sums& sums) {
        constexpr bool RIDES = Rider::PRESENT;
        uint32_t ride_end = work.low_steps, steps = work.steps;
        // The step that is brought in runs ahead of the one that is computed.
        [[maybe_unused]] Rider ahead = rider;
        if constexpr (RIDES) {
            const uint32_t ride_steps = rider.steps();
            ride_end += ride_steps;
            steps += ride_steps;
        }
        const int thread_row = threadIdx.x / ACROSS * TM, thread_col = threadIdx.x % ACROSS * TN;
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
            for (int j = 0; j < TN; ++j) sums[i][j] = 0.0f;

        TileA a;
        TileB b;
        const auto load_dense = [&](uint32_t step) {
            size_t row, col;
            const Matrix from_a = work.a(p, step, row, col);
            a.load(from_a, row, col);
            if (LAYOUT == Layout::NT && (p.flags & DROPOUT)) a.drop(dropout_of(p), from_a, row, col);
            const Matrix from_b = work.b(p, step, row, col);
            b.load(from_b, row, col);
            if (LAYOUT == Layout::TN && (p.flags & DROPOUT)) b.drop(dropout_of(p), from_b, row, col);
        };
        const auto load = [&](uint32_t step) {
            if constexpr (RIDES) {
                if (step >= work.low_steps && step < ride_end) {
                    constexpr bool BY_K = LAYOUT != Layout::NT;
                    a.gather(p.flags & VECTOR_A2, [&](int r, int c) { return ahead.template from_a<float>(work.row + r, c, 4); });
                    b.gather(true, [&](int r, int c) {
                        return ahead.template from_values<float, BY_K>(work.col + (BY_K ? c : r), BY_K ? r : c, 4);
                    });
                    ahead.advance();
                    return;
                }
            }
            load_dense(step < work.low_steps ? step : step - (ride_end - work.low_steps));
        };
        const auto store = [&](uint32_t step) {
            float* buffer = shared + step % 2 * BUFFER_FLOATS;
            a.store(buffer);
            b.store(buffer + TileA::FLOATS);
        };

        load(0);
        store(0);
        // The first step's tiles are in shared memory.
        __syncthreads();
        for (uint32_t step = 0; step < steps; ++step) {
            if (step + 1 < steps) load(step + 1);
            if (step == work.low_steps && step > 0) {
                uint32_t kept = ~0u;
                if (LAYOUT == Layout::NN && (p.flags & DROPOUT)) {
                    kept = 0;
                    // Not unrolled: one copy of the generator is enough, and needs few registers.
#pragma unroll 1
                    for (int i = 0; i < TM; ++i) {
                        const uint64_t first = (work.row + thread_row + i) * p.n + work.col + thread_col;
                        kept |= (dropout_of(p).kept<TN>(first) & 15) << (TN * i);
                    }
                }
#pragma unroll
                for (int i = 0; i < TM; ++i)
#pragma unroll
                    for (int j = 0; j < TN; ++j)
                        sums[i][j] = p.low_scale * masked(sums[i][j], kept >> (TN * i + j) & 1);
            }
            // Columns of other lines stay as they are, whatever a NaN times zero would make of them.
            bool mine = true;
            if constexpr (RIDES) {
                if (step >= work.low_steps && step < ride_end) {
                    mine = rider.owns(work.col + thread_col);
                    rider.advance();
                }
                if (step == ride_end && step > 0) {
#pragma unroll
                    for (int i = 0; i < TM; ++i)
#pragma unroll
                        for (int j = 0; j < TN; ++j) sums[i][j] *= rider.p->scale;
                }
            }
            const float* tile_a = shared + step % 2 * BUFFER_FLOATS + thread_row;
            const float* tile_b = shared + step % 2 * BUFFER_FLOATS + TileA::FLOATS + thread_col;
#pragma unroll
            for (int k = 0; k < BK; ++k) {
                if (!mine) break;
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
};

}  // namespace tile
