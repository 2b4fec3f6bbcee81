// The tall-by-short product of the block-sparse kernels on tensor cores, for f16 and bf16.
//
//            b                  warp: WM x WN of the tile        a step of BK along the sum holds BK / b blocks (b <= BK),
//         +-----+                                                or a part of one (b = 128)
//    128  |w0|w1|
//         |w2|w3|
//         +-----+
//
// Tiles pass through a ring in shared memory as in tile/gemm_mma.cuh; only where their chunks come from differs: `fill_a` and
// `fill_b` start the copies of a step, and `live(i, k)` says whether a step has anything for 16 rows and 16 of k, so that the
// tensor cores do the existing blocks and nothing else.
#pragma once

#include "tile/block.cuh"
#include "tile/gemm_mma.cuh"

namespace tile {

template <typename T, int B, int BK, int STAGES, bool A_BY_K, bool B_BY_K>
struct BlockMma {
    static constexpr int BM = 128, BN = B, WM = B >= 64 ? 64 : 32, WN = B == 16 ? 16 : 32;
    static constexpr int WARPS_N = BN / WN, WARPS = BM / WM * WARPS_N, THREADS = 32 * WARPS;
    static constexpr int TILES_M = WM / 16, TILES_N = WN / 8;
    using TileA = SharedTile<T, A_BY_K ? BK : BM, A_BY_K ? BM : BK, THREADS>;
    using TileB = SharedTile<T, B_BY_K ? BK : BN, B_BY_K ? BN : BK, THREADS>;
    static constexpr int STAGE_CHUNKS = TileA::CHUNKS + TileB::CHUNKS;
    static constexpr int SHARED_BYTES = STAGES * STAGE_CHUNKS * 16;
    // Sixteen rows of a warp's sums on their way out. Eight floats of space let every bank take part in a store.
    static constexpr int PITCH = WN + 8;
    static_assert(WARPS * 16 * PITCH * 4 <= SHARED_BYTES, "results leave through the ring");

    float sums[TILES_M][TILES_N][4];

    static __device__ __forceinline__ int warp_row() { return static_cast<int>(threadIdx.x) / 32 / WARPS_N * WM; }
    static __device__ __forceinline__ int warp_col() { return static_cast<int>(threadIdx.x) / 32 % WARPS_N * WN; }

    template <typename FillA, typename FillB, typename Live>
    __device__ __forceinline__ void multiply(uint4* shared, uint32_t steps, FillA fill_a, FillB fill_b, Live live) {
#pragma unroll
        for (int i = 0; i < TILES_M; ++i)
#pragma unroll
            for (int j = 0; j < TILES_N; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.0f;

        const auto slot = [&](uint32_t step) { return shared + step % STAGES * STAGE_CHUNKS; };
        const auto fetch = [&](uint32_t step) {
            if (step < steps) {
                fill_a(slot(step), step);
                fill_b(slot(step) + TileA::CHUNKS, step);
            }
            // A group for each step, empty or not, keeps the count of groups under way.
            ptx::cp_async_commit();
        };
#pragma unroll 1
        for (int step = 0; step < STAGES - 1; ++step) fetch(step);
#pragma unroll 1
        for (uint32_t step = 0; step < steps; ++step) {
            // This thread's chunks of the step have arrived.
            ptx::cp_async_wait<STAGES - 2>();
            // All threads' chunks of the step have arrived, and all warps have read the slot that is filled next.
            __syncthreads();
            fetch(step + STAGES - 1);
            uint4* tile_a = slot(step);
            uint4* tile_b = tile_a + TileA::CHUNKS;
#pragma unroll
            for (int k = 0; k < BK; k += 16) {
                if (!live(step, warp_row(), k)) continue;
                uint32_t a[TILES_M][4], b[TILES_N / 2][4];
#pragma unroll
                for (int i = 0; i < TILES_M; ++i) load_a<A_BY_K, TileA>(a[i], tile_a, warp_row() + 16 * i, k);
#pragma unroll
                for (int j = 0; j < TILES_N / 2; ++j) load_b<B_BY_K, TileB>(b[j], tile_b, k, warp_col() + 16 * j);
#pragma unroll
                for (int i = 0; i < TILES_M; ++i) {
                    if (!live(step, warp_row() + 16 * i, k)) continue;
#pragma unroll
                    for (int j = 0; j < TILES_N; ++j)
                        ptx::mma_m16n8k16<T>(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
                }
            }
        }
        // All warps have read the last tiles: the ring is free.
        __syncthreads();
    }

    // Hands the sums out, RUN neighbouring ones at a time: put(i, j, v) gets those from (i, j) on, along j, or along i for ALONG_M. Eight are
    // 16 bytes of the narrow types, four of f32: neighbouring lanes then write whole sectors at once.
    template <bool ALONG_M, int RUN = 8, typename Put>
    __device__ __forceinline__ void hand_out(uint4* shared, Put put) {
        const int lane = threadIdx.x % 32;
        float* stage = reinterpret_cast<float*>(shared) + static_cast<int>(threadIdx.x) / 32 * 16 * PITCH;
#pragma unroll
        for (int i = 0; i < TILES_M; ++i) {
            // The sixteen rows before have been read.
            __syncwarp();
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
                for (int j = 0; j < TILES_N; ++j)
                    *reinterpret_cast<float2*>(stage + (8 * half + lane / 4) * PITCH + 8 * j + lane % 4 * 2) =
                        make_float2(sums[i][j][2 * half], sums[i][j][2 * half + 1]);
            // These sixteen are written.
            __syncwarp();
#pragma unroll 1
            for (int unit = lane; unit < 16 / RUN * WN; unit += 32) {
                constexpr int DOWN = 16 / RUN, ALONG = WN / RUN;
                const int row = ALONG_M ? unit % DOWN * RUN : unit / ALONG, col = ALONG_M ? unit / DOWN : unit % ALONG * RUN;
                float v[RUN];
#pragma unroll
                for (int q = 0; q < RUN; ++q) v[q] = ALONG_M ? stage[(row + q) * PITCH + col] : stage[row * PITCH + col + q];
                put(warp_row() + 16 * i + row, warp_col() + col, v);
            }
        }
    }
};

// One step's blocks along the sum: where each lies, and its number.
template <int PER_STEP>
struct Along {
    uint32_t other[PER_STEP];
    uint32_t block[PER_STEP];

    // Those from position `first` on, `count` of them at most; the others are not read.
    __device__ __forceinline__ void load(const DenseParams& p, uint32_t first, uint32_t count) {
#pragma unroll
        for (int i = 0; i < PER_STEP; ++i) {
            const uint32_t at = first + (i < count ? i : 0);
            other[i] = count > 0 ? p.others[at] : 0;
            block[i] = count > 0 && p.blocks != nullptr ? p.blocks[at] : at;
        }
    }
};

template <typename T, int B, int BK, int STAGES, bool A_BY_K, bool B_BY_K>
struct DenseMma {
    using Tile = BlockMma<T, B, BK, STAGES, A_BY_K, B_BY_K>;
    static constexpr int PER_STEP = BK > B ? BK / B : 1, PARTS = B > BK ? B / BK : 1;

    static __device__ __forceinline__ void run(const DenseParams& p, uint4* shared) {
        const DenseWork<T> work(p, Tile::BM, Tile::BN);
        if (work.idle(p)) return;
        const uint32_t count = work.count();
        const uint32_t steps = PARTS * ((count + PER_STEP - 1) / PER_STEP);
        const auto left_of = [&](uint32_t step) {
            const uint32_t done = step / PARTS * PER_STEP;
            return done < count ? count - done : 0;
        };
        Along<PER_STEP> now, next;
        next.load(p, work.item.y, left_of(0));
        const uint16_t* dense = static_cast<const uint16_t*>(p.dense);
        const uint16_t* values = static_cast<const uint16_t*>(p.values);
        const int rows = left(p.m, work.row, Tile::BM);

        const auto fill_a = [&](uint4* tile, uint32_t step) {
            // The indices were asked for a step ago; the next step's are on their way from here on.
            now = next;
            next.load(p, work.item.y + (step + 1) / PARTS * PER_STEP, left_of(step + 1));
            const uint32_t live = left_of(step), part = step % PARTS * BK;
            Tile::TileA::gather(tile, p.flags & VECTOR_SECOND, dense, [&](int r, int c) {
                const int k = A_BY_K ? r : c;
                const uint32_t slot = k / B;
                const size_t at = static_cast<size_t>(pick(now.other, slot)) * B + part + k % B;
                int exists;
                const uint16_t* from;
                if constexpr (A_BY_K) {
                    exists = at < p.depth ? rows - c : 0;
                    from = dense + at * p.m + work.row + c;
                } else {
                    exists = r < rows ? clamp_left(p.depth, at, 8) : 0;
                    from = dense + (work.row + r) * p.depth + at;
                }
                return Place<uint16_t>{from, slot < live ? exists : 0};
            });
        };
        const auto fill_b = [&](uint4* tile, uint32_t step) {
            const uint32_t live = left_of(step), part = step % PARTS * BK;
            Tile::TileB::gather(tile, p.flags & VECTOR_FIRST, values, [&](int r, int c) {
                const int k = B_BY_K ? r : c;
                const uint32_t slot = k / B, along = part + k % B, line = B_BY_K ? c : r;
                const size_t block = static_cast<size_t>(pick(now.block, slot)) * (B * B);
                const uint16_t* from = values + block + (B_BY_K ? along * B + line : line * B + along);
                return Place<uint16_t>{from, slot < live ? 8 : 0};
            });
        };
        const auto live = [&](uint32_t step, int, int k) { return PER_STEP == 1 || k / B < left_of(step); };
        Tile tile;
        tile.multiply(shared, steps, fill_a, fill_b, live);
        const auto put = [&](int i, int j, float(&v)[8]) { work.put(p, i, j, v); };
        if (p.flags & LINES_FIRST) {
            tile.template hand_out<true>(shared, put);
        } else {
            tile.template hand_out<false>(shared, put);
        }
    }
};

// The M side is `strip` of op(B)'s columns, the N side a row of blocks of op(A): A_T and B_T say how those are stored.
template <typename T, int B, int BK, int STAGES, bool A_T, bool B_T>
struct SampledMma {
    // [k, m] has the sum along its rows, [m, k] across; [n, m] and [m, n] likewise.
    using Tile = BlockMma<T, B, BK, STAGES, !B_T, A_T>;
    static constexpr int SLOTS = Tile::BM / B;

    // Multiplies, and leaves the sums in `tile`.
    static __device__ __forceinline__ void multiply(const SampledParams& p, const SampledWork<T>& work, Tile& tile,
                                                    uint4* shared) {
        uint32_t columns[SLOTS];
#pragma unroll
        for (int i = 0; i < SLOTS; ++i) columns[i] = p.columns[work.strip.y + (i < work.strip.z ? i : 0)];
        const uint16_t* a = static_cast<const uint16_t*>(p.a);
        const uint16_t* b = static_cast<const uint16_t*>(p.b);
        const uint32_t count = work.strip.z;
        const int rows = left(p.n, work.top, B);

        const auto fill_gathered = [&](uint4* to, uint32_t step) {
            const size_t first = work.begin + static_cast<size_t>(step) * BK;
            Tile::TileA::gather(to, p.flags & VECTOR_SECOND, b, [&](int r, int c) {
                const int column = B_T ? r : c;
                const uint32_t slot = column / B;
                const size_t at = static_cast<size_t>(pick(columns, slot)) * B + column % B;
                const size_t token = first + (B_T ? c : r);
                const uint16_t* from = b + (B_T ? at * p.m + token : token * p.k + at);
                const int exists = B_T ? (at < p.k ? clamp_left(work.end, token, 8) : 0)
                                       : (token < work.end ? clamp_left(p.k, at, 8) : 0);
                return Place<uint16_t>{from, slot < count ? exists : 0};
            });
        };
        const auto fill_strip = [&](uint4* to, uint32_t step) {
            const size_t first = work.begin + static_cast<size_t>(step) * BK;
            Tile::TileB::gather(to, p.flags & VECTOR_FIRST, a, [&](int r, int c) {
                const int row = A_T ? c : r;
                const size_t token = first + (A_T ? r : c);
                const uint16_t* from = a + (A_T ? token * p.n + work.top + row : (work.top + row) * p.m + token);
                const int exists = A_T ? (token < work.end ? rows - c : 0) : (r < rows ? clamp_left(work.end, token, 8) : 0);
                return Place<uint16_t>{from, exists};
            });
        };
        const auto live = [&](uint32_t, int i, int) { return i / B < count; };
        const uint32_t steps = static_cast<uint32_t>((work.end - work.begin + BK - 1) / BK);
        tile.multiply(shared, steps, fill_gathered, fill_strip, live);
    }

    static __device__ __forceinline__ void run(const SampledParams& p, uint4* shared) {
        const SampledWork<T> work(p, Tile::BM, Tile::BN);
        if (work.idle()) return;
        Tile tile;
        multiply(p, work, tile, shared);
        if (p.flags & TO_WIDE) {
            tile.template hand_out<true, 4>(shared, [&](int i, int j, float(&v)[4]) { work.put(p, i, j, v); });
        } else {
            tile.template hand_out<true>(shared, [&](int i, int j, float(&v)[8]) { work.put(p, i, j, v); });
        }
    }
};

}  // namespace tile
