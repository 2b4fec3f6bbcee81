// Patches through a linear map, as one product whose left side is read straight from the image:
//
//   fwd:      y[token, n]       = Σ_k patch[token, k] · W[n, k] + (bias[n] | cls[n]) + positions[token, n]
//   dpixels:  dpatch[patch, n]  = Σ_k dy[patch, k] · W[k, n], put back at the pixels' places
//
//               n: 64 columns, 4 a thread              A block of 256 threads takes a 64 × 64 tile of the result and walks over k in
//             ┌───────────────────────┐                steps of 16: both sides' slices go to shared memory as f32, [16][64 + 4], so
//   m: 64     │ 16 × 16 threads,      │                that a thread reads its four rows and four columns as one float4 each.
//   rows,     │ 4 × 4 results each    │                A class token's row of the left side is zero. Limited by f32 multiply-adds.
//   4 a thread└───────────────────────┘
//
// sums: out[g, n] (+)= Σ_item Σ_i dy[item, base + g + i, n]: a block takes 32 columns of one g; warp w adds rows w, w + 8, .. in
//       order, then warp 0 adds the eight parts in order. Limited by reading dy.

#include "tile/elements.cuh"
#include "tile/gradient.cuh"

#if !defined(PATCH_EMBEDDING_THREADS) || !defined(PATCH_EMBEDDING_TILE) || !defined(PATCH_EMBEDDING_STEP)
#error "the PATCH_EMBEDDING_ constants come from the kernel table"
#endif

struct Params {
    const void* pixels;
    const void* weight;
    const void* bias;
    const void* cls;
    const void* positions;
    void* y;
    const void* dy;
    void* dpixels;
    size_t items;
    size_t d;
    size_t k;
    size_t tokens;
    size_t patches;
    uint32_t channels;
    uint32_t patch;
    uint32_t down;
    uint32_t across;
    uint32_t dpixels_flags;
    uint32_t reserved;
};
static_assert(sizeof(Params) == 128 && offsetof(Params, channels) == 104, "mirrors gpu.rs");

struct SumParams {
    const void* dy;
    void* out;
    size_t items;
    size_t d;
    size_t tokens;
    size_t groups;
    size_t inner;
    size_t base;
    uint32_t flags;
    uint32_t reserved;
};
static_assert(sizeof(SumParams) == 72 && offsetof(SumParams, flags) == 64, "mirrors gpu.rs");

constexpr int THREADS = PATCH_EMBEDDING_THREADS;
constexpr int TILE = PATCH_EMBEDDING_TILE;
constexpr int STEP = PATCH_EMBEDDING_STEP;
constexpr int LD = TILE + 4;
static_assert(THREADS == 256 && TILE == 64 && STEP == 16, "16 × 16 threads with 4 × 4 results each");

// Where the first pixel of a patch lies, and how far on its k-th value is.
__device__ __forceinline__ size_t patch_start(const Params& p, size_t item, uint32_t patch) {
    const size_t width = static_cast<size_t>(p.across) * p.patch, height = static_cast<size_t>(p.down) * p.patch;
    const size_t row = patch / p.across, column = patch % p.across;
    return (item * p.channels * height + row * p.patch) * width + column * p.patch;
}

__device__ __forceinline__ size_t patch_offset(const Params& p, uint32_t k) {
    const size_t width = static_cast<size_t>(p.across) * p.patch, height = static_cast<size_t>(p.down) * p.patch;
    const uint32_t column = k % p.patch, line = k / p.patch;
    return (line / p.patch * height + line % p.patch) * width + column;
}

// A row of the left side that is zero.
constexpr size_t NOWHERE = ~static_cast<size_t>(0);

// out(i, j, Σ_k left[start(i) + offset(k)] · right(j, k)) for i < m, j < n. start gives NOWHERE for a row of zeros; `right` gives 0
// beyond its sizes. ALONG_K tells in which direction `right` lies contiguous, so that neighbouring threads read neighbouring
// elements: k, or else j.
template <bool ALONG_K, typename T, typename Start, typename Offset, typename Right, typename Out>
__device__ __forceinline__ void product(size_t m, size_t n, size_t k, const T* left, Start start, Offset offset, Right right,
                                        Out out) {
    // A thread always loads the same rows of the left side, and of those the same k.
    constexpr int ROUNDS = TILE * STEP / THREADS;
    static_assert(THREADS % STEP == 0, "the k that a thread loads does not depend on the round");
    __shared__ __align__(16) float rows[STEP * LD];
    __shared__ __align__(16) float columns[STEP * LD];
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    const size_t tiles_n = (n + TILE - 1) / TILE, tiles_m = (m + TILE - 1) / TILE;
    for (size_t tile = blockIdx.x; tile < tiles_m * tiles_n; tile += gridDim.x) {
        const size_t row = tile / tiles_n * TILE, column = tile % tiles_n * TILE;
        size_t starts[ROUNDS];
#pragma unroll
        for (int round = 0; round < ROUNDS; ++round) {
            const size_t i = row + (threadIdx.x + round * THREADS) / STEP;
            starts[round] = i < m ? start(i) : NOWHERE;
        }
        float sums[4][4] = {};
        for (size_t first = 0; first < k; first += STEP) {
            // The slices of the round before are read by now.
            __syncthreads();
            const int step = threadIdx.x % STEP;
            const bool inside = first + step < k;
            const size_t on = inside ? offset(static_cast<uint32_t>(first) + step) : 0;
#pragma unroll
            for (int round = 0; round < ROUNDS; ++round) {
                const int e = threadIdx.x + round * THREADS;
                const int i = e / STEP;
                rows[step * LD + i] = inside && starts[round] != NOWHERE ? tile::widen(left[starts[round] + on]) : 0.0f;
                const int j = ALONG_K ? i : e % TILE, there = ALONG_K ? step : e / TILE;
                columns[there * LD + j] = right(column + j, first + there);
            }
            // Both slices are written before anyone reads them.
            __syncthreads();
#pragma unroll
            for (int step = 0; step < STEP; ++step) {
                const float4 four = *reinterpret_cast<const float4*>(rows + step * LD + 4 * ty);
                const float4 b = *reinterpret_cast<const float4*>(columns + step * LD + 4 * tx);
                const float a[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    sums[i][0] = fmaf(a[i], b.x, sums[i][0]);
                    sums[i][1] = fmaf(a[i], b.y, sums[i][1]);
                    sums[i][2] = fmaf(a[i], b.z, sums[i][2]);
                    sums[i][3] = fmaf(a[i], b.w, sums[i][3]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const size_t r = row + 4 * ty + i, c = column + 4 * tx + j;
                if (r < m && c < n) out(r, c, sums[i][j]);
            }
    }
}

template <typename T>
__device__ __forceinline__ void forward(const Params& p) {
    const T* pixels = static_cast<const T*>(p.pixels);
    const T* weight = static_cast<const T*>(p.weight);
    const T* bias = static_cast<const T*>(p.bias);
    const T* cls = static_cast<const T*>(p.cls);
    const T* positions = static_cast<const T*>(p.positions);
    const size_t rows = p.items * p.tokens, front = p.tokens - p.patches;
    product<true>(
        rows, p.d, p.k, pixels,
        [&](size_t row) {
            const size_t token = row % p.tokens;
            return token < front ? NOWHERE : patch_start(p, row / p.tokens, static_cast<uint32_t>(token - front));
        },
        [&](uint32_t k) { return patch_offset(p, k); },
        [&](size_t n, size_t k) { return n < p.d && k < p.k ? tile::widen(weight[n * p.k + k]) : 0.0f; },
        [&](size_t row, size_t n, float v) {
            const size_t token = row % p.tokens;
            if (token < front) {
                v += tile::widen(cls[n]);
            } else if (bias != nullptr) {
                v += tile::widen(bias[n]);
            }
            if (positions != nullptr) v += tile::widen(positions[token * p.d + n]);
            static_cast<T*>(p.y)[row * p.d + n] = tile::narrow<T>(v);
        });
}

template <typename T>
__device__ __forceinline__ void pixel_gradient(const Params& p) {
    const T* dy = static_cast<const T*>(p.dy);
    const T* weight = static_cast<const T*>(p.weight);
    const size_t rows = p.items * p.patches, front = p.tokens - p.patches;
    product<false>(
        rows, p.k, p.d, dy,
        [&](size_t row) { return (row / p.patches * p.tokens + front + row % p.patches) * p.d; },
        [&](uint32_t k) { return static_cast<size_t>(k); },
        [&](size_t n, size_t k) { return n < p.k && k < p.d ? tile::widen(weight[k * p.k + n]) : 0.0f; },
        [&](size_t row, size_t n, float v) {
            const size_t at = patch_start(p, row / p.patches, static_cast<uint32_t>(row % p.patches)) +
                              patch_offset(p, static_cast<uint32_t>(n));
            tile::put<T>(p.dpixels, at, v, p.dpixels_flags);
        });
}

template <typename T>
__device__ __forceinline__ void token_sums(const SumParams& p) {
    constexpr int WARPS = THREADS / 32;
    __shared__ float parts[WARPS][32];
    const T* dy = static_cast<const T*>(p.dy);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const size_t tiles = (p.d + 31) / 32;
    for (size_t work = blockIdx.x; work < tiles * p.groups; work += gridDim.x) {
        const size_t column = work % tiles * 32 + lane, group = work / tiles;
        float part = 0.0f;
        if (column < p.d) {
#pragma unroll 4
            for (size_t row = warp; row < p.items * p.inner; row += WARPS) {
                const size_t token = row / p.inner * p.tokens + p.base + group + row % p.inner;
                part += tile::widen(dy[token * p.d + column]);
            }
        }
        parts[warp][lane] = part;
        // All parts are written before warp 0 reads them.
        __syncthreads();
        if (warp == 0 && column < p.d) {
            float sum = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; ++w) sum += parts[w][lane];
            tile::put<T>(p.out, group * p.d + column, sum, p.flags);
        }
        // Warp 0 has read the parts before the next piece of work overwrites them.
        __syncthreads();
    }
}

#define PATCH_EMBEDDING(FORWARD, PIXELS, SUMS, T)                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS) FORWARD(const __grid_constant__ Params p) {                \
        forward<T>(p);                                                                                               \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) PIXELS(const __grid_constant__ Params p) {                 \
        pixel_gradient<T>(p);                                                                                        \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) SUMS(const __grid_constant__ SumParams p) { token_sums<T>(p); }

PATCH_EMBEDDING(patch_embedding_fwd_f32_t64_sm80, patch_embedding_dpixels_f32_t64_sm80,
                patch_embedding_sums_f32_c32_sm80, float)
PATCH_EMBEDDING(patch_embedding_fwd_f16_t64_sm80, patch_embedding_dpixels_f16_t64_sm80,
                patch_embedding_sums_f16_c32_sm80, __half)
PATCH_EMBEDDING(patch_embedding_fwd_bf16_t64_sm80, patch_embedding_dpixels_bf16_t64_sm80,
                patch_embedding_sums_bf16_c32_sm80, __nv_bfloat16)
