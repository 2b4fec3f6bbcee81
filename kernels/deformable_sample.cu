// Deformable sampling: every query's head looks at a few places of several maps and adds up what it finds.
//
//   a      = softmax over the samples s of a head of logits
//   (x, y) = reference·(W, H) + Δ − ½                     in cells of the sample's level
//   o[c]   = Σ_s a_s · V_s[c]        V_s the bilinear mean of the four cells around (x, y), those outside counting as 0
//
//   bwd    dlogits = a ⊙ (g − Σ a·g), g_s = Σ_c do[c]·V_s[c];  dΔ = a·∂g/∂(x, y);  a record (x, y, a) of each sample
//   value  dV[cell, c] = Σ_samples in order of queries  a · bilinear weight · do[query, c]
//
// Forward and bwd: a warp takes one head of one query. Lane s has sample s (at most 32); then all lanes go through the samples
// together, each with its own channels, neighbours side by side in memory.
//
// Value: a warp owns TILE tokens of V and 32 channels of a head, sums in shared memory that lane c alone touches in column c, and
// goes through the records of the levels that meet its tokens, 32 at a time: a vote says which of them touch the tile, and those are
// taken one by one in order. No two warps share an element, so no atomic is needed and the order of each sum is fixed.
//
//   tile | token 0: lane 0 .. lane 31 | token 1: .. |         records of a level | q 0: point 0, 1, .. | q 1: .. |
//
// Limited by the gathers of four cells a sample, from the second-level cache; value by reading every record once a tile.

#include "tile/gradient.cuh"
#include "tile/reduce.cuh"

#ifndef DEFORMABLE_THREADS
#error "DEFORMABLE_THREADS comes from the kernel table"
#endif
#ifndef DEFORMABLE_LEVELS
#error "DEFORMABLE_LEVELS comes from the kernel table"
#endif
#ifndef DEFORMABLE_TILE
#error "DEFORMABLE_TILE comes from the kernel table"
#endif
#ifndef DEFORMABLE_TILE_THREADS
#error "DEFORMABLE_TILE_THREADS comes from the kernel table"
#endif

struct Maps {
    uint32_t height[DEFORMABLE_LEVELS];
    uint32_t width[DEFORMABLE_LEVELS];
    uint32_t first[DEFORMABLE_LEVELS];
    uint32_t levels;
    uint32_t points;
};

struct Params {
    const void* value;
    const void* offsets;
    const void* logits;
    const float* references;
    const void* dy;
    void* y;
    void* d_offsets;
    void* d_logits;
    float4* records;
    size_t b;
    size_t q;
    size_t s;
    uint32_t heads;
    uint32_t d;
    Maps maps;
};
static_assert(sizeof(Params) == 208 && offsetof(Params, maps) == 104, "mirrors gpu.rs");

struct Value {
    const void* dy;
    const float4* records;
    void* target;
    size_t b;
    size_t q;
    size_t s;
    uint32_t heads;
    uint32_t d;
    uint32_t flags;
    uint32_t reserved;
    Maps maps;
};
static_assert(sizeof(Value) == 168 && offsetof(Value, maps) == 64, "mirrors gpu.rs");

constexpr int WARPS = DEFORMABLE_THREADS / 32;
constexpr int TILE = DEFORMABLE_TILE;
constexpr uint32_t ALL = 0xFFFFFFFFu;

struct Sample {
    float x;
    float y;
    float a;
};

// The four cells around (x, y): their tokens, −1 outside, and the shares of the right and lower ones.
struct Corners {
    int token[4];
    float fx;
    float fy;

    __device__ __forceinline__ Corners(float x, float y, uint32_t width, uint32_t height, uint32_t first) {
        // Beyond one cell outside nothing is found; a bound keeps the conversion to whole numbers defined.
        const float bx = fminf(fmaxf(x, -2.0f), static_cast<float>(width) + 1.0f);
        const float by = fminf(fmaxf(y, -2.0f), static_cast<float>(height) + 1.0f);
        const int left = __float2int_rd(bx), top = __float2int_rd(by);
        fx = bx - static_cast<float>(left);
        fy = by - static_cast<float>(top);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int cx = left + i % 2, cy = top + i / 2;
            const bool inside = cx >= 0 && cy >= 0 && cx < static_cast<int>(width) && cy < static_cast<int>(height);
            token[i] = inside ? static_cast<int>(first) + cy * static_cast<int>(width) + cx : -1;
        }
    }

    __device__ __forceinline__ float weight(int i) const {
        return (i % 2 ? fx : 1.0f - fx) * (i / 2 ? fy : 1.0f - fy);
    }
};

// Lane s: the place and weight of sample s. Lanes without a sample have weight 0.
template <typename T>
__device__ __forceinline__ Sample sample(const Params& p, size_t query, uint32_t head) {
    const uint32_t lane = threadIdx.x % 32, count = p.maps.levels * p.maps.points;
    Sample out = {0.0f, 0.0f, 0.0f};
    float logit = -INFINITY;
    if (lane < count) {
        const size_t at = (query * p.heads + head) * count + lane;
        const uint32_t level = lane / p.maps.points;
        const float* reference = p.references + query % p.q * 2;
        const T* offset = static_cast<const T*>(p.offsets) + 2 * at;
        logit = tile::widen(static_cast<const T*>(p.logits)[at]);
        out.x = reference[0] * static_cast<float>(p.maps.width[level]) + tile::widen(offset[0]) - 0.5f;
        out.y = reference[1] * static_cast<float>(p.maps.height[level]) + tile::widen(offset[1]) - 0.5f;
    }
    float most = logit;
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, offset));
    const float e = lane < count ? expf(logit - most) : 0.0f;
    out.a = e / tile::warp_sum(e);
    return out;
}

// Calls body(s, sample, corners) for every sample of the warp's head, all lanes together.
template <typename Body>
__device__ __forceinline__ void each(const Maps& maps, const Sample& mine, Body body) {
    for (uint32_t s = 0; s < maps.levels * maps.points; ++s) {
        const Sample at = {__shfl_sync(ALL, mine.x, s), __shfl_sync(ALL, mine.y, s), __shfl_sync(ALL, mine.a, s)};
        const uint32_t level = s / maps.points;
        body(s, at, Corners(at.x, at.y, maps.width[level], maps.height[level], maps.first[level]));
    }
}

template <typename T>
__device__ __forceinline__ float at(const T* value, const Params& p, int token, uint32_t channel) {
    const size_t row = static_cast<size_t>(p.heads) * p.d;
    return token < 0 ? 0.0f : tile::widen(value[static_cast<size_t>(token) * row + channel]);
}

template <typename T>
__device__ __forceinline__ void forward(const Params& p) {
    const size_t warps = static_cast<size_t>(gridDim.x) * WARPS, row = static_cast<size_t>(p.heads) * p.d;
    const uint32_t lane = threadIdx.x % 32;
    for (size_t job = static_cast<size_t>(blockIdx.x) * WARPS + threadIdx.x / 32; job < p.b * p.q * p.heads;
         job += warps) {
        const size_t query = job / p.heads;
        const uint32_t head = static_cast<uint32_t>(job % p.heads);
        const Sample mine = sample<T>(p, query, head);
        const T* value = static_cast<const T*>(p.value) + query / p.q * p.s * row + static_cast<size_t>(head) * p.d;
        T* y = static_cast<T*>(p.y) + query * row + static_cast<size_t>(head) * p.d;
        for (uint32_t first = 0; first < p.d; first += 64) {
            float sum[2] = {0.0f, 0.0f};
            each(p.maps, mine, [&](uint32_t, const Sample& s, const Corners& corners) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const uint32_t c = first + lane + 32 * i;
                    if (c < p.d) {
                        // A place that is not a number gives none.
                        float v = s.x == s.x && s.y == s.y ? 0.0f : NAN;
#pragma unroll
                        for (int k = 0; k < 4; ++k) v += corners.weight(k) * at(value, p, corners.token[k], c);
                        sum[i] += s.a * v;
                    }
                }
            });
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const uint32_t c = first + lane + 32 * i;
                if (c < p.d) y[c] = tile::narrow<T>(sum[i]);
            }
        }
    }
}

template <typename T>
__device__ __forceinline__ void backward(const Params& p) {
    const size_t warps = static_cast<size_t>(gridDim.x) * WARPS, row = static_cast<size_t>(p.heads) * p.d;
    const uint32_t lane = threadIdx.x % 32, count = p.maps.levels * p.maps.points;
    for (size_t job = static_cast<size_t>(blockIdx.x) * WARPS + threadIdx.x / 32; job < p.b * p.q * p.heads;
         job += warps) {
        const size_t query = job / p.heads;
        const uint32_t head = static_cast<uint32_t>(job % p.heads);
        const Sample mine = sample<T>(p, query, head);
        const T* value = static_cast<const T*>(p.value) + query / p.q * p.s * row + static_cast<size_t>(head) * p.d;
        const T* dy = static_cast<const T*>(p.dy) + query * row + static_cast<size_t>(head) * p.d;
        // Of this lane's sample: Σ_c do·V and its slopes along x and y.
        float found = 0.0f, along_x = 0.0f, along_y = 0.0f;
        each(p.maps, mine, [&](uint32_t s, const Sample& sample, const Corners& corners) {
            float dots[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            for (uint32_t c = lane; c < p.d; c += 32) {
                const float g = tile::widen(dy[c]);
#pragma unroll
                for (int k = 0; k < 4; ++k) dots[k] += g * at(value, p, corners.token[k], c);
            }
#pragma unroll
            for (int k = 0; k < 4; ++k) dots[k] = tile::warp_sum(dots[k]);
            if (lane == s) {
                const float wrong = sample.x == sample.x && sample.y == sample.y ? 0.0f : NAN;
                found = wrong;
#pragma unroll
                for (int k = 0; k < 4; ++k) found += corners.weight(k) * dots[k];
                along_x = wrong + (1.0f - corners.fy) * (dots[1] - dots[0]) + corners.fy * (dots[3] - dots[2]);
                along_y = wrong + (1.0f - corners.fx) * (dots[2] - dots[0]) + corners.fx * (dots[3] - dots[1]);
            }
        });
        const float mean = tile::warp_sum(lane < count ? mine.a * found : 0.0f);
        if (lane < count) {
            const size_t here = (query * p.heads + head) * count + lane;
            if (p.d_logits != nullptr) static_cast<T*>(p.d_logits)[here] = tile::narrow<T>(mine.a * (found - mean));
            if (p.d_offsets != nullptr) {
                T* d_offset = static_cast<T*>(p.d_offsets) + 2 * here;
                d_offset[0] = tile::narrow<T>(mine.a * along_x);
                d_offset[1] = tile::narrow<T>(mine.a * along_y);
            }
            if (p.records != nullptr) {
                // By sample of the batch, head and level: there in the order of queries.
                const size_t level = lane / p.maps.points, point = lane % p.maps.points;
                const size_t map = (query / p.q * p.heads + head) * p.maps.levels + level;
                p.records[(map * p.q + query % p.q) * p.maps.points + point] = make_float4(mine.x, mine.y, mine.a, 0.0f);
            }
        }
    }
}

template <typename T>
__device__ __forceinline__ void value_gradient(const Value& p, float (*sums)[32]) {
    constexpr int OWN_WARPS = DEFORMABLE_TILE_THREADS / 32;
    const uint32_t lane = threadIdx.x % 32, chunks = (p.d + 31) / 32;
    const size_t row = static_cast<size_t>(p.heads) * p.d, tiles = (p.s + TILE - 1) / TILE;
    const size_t jobs = p.b * tiles * p.heads * chunks;
    for (size_t job = static_cast<size_t>(blockIdx.x) * OWN_WARPS + threadIdx.x / 32; job < jobs;
         job += static_cast<size_t>(gridDim.x) * OWN_WARPS) {
        const uint32_t chunk = static_cast<uint32_t>(job % chunks);
        const uint32_t head = static_cast<uint32_t>(job / chunks % p.heads);
        const size_t tile_index = job / chunks / p.heads % tiles, b = job / chunks / p.heads / tiles;
        const int first = static_cast<int>(tile_index * TILE);
        const int last = first + TILE < static_cast<int>(p.s) ? first + TILE : static_cast<int>(p.s);
        const uint32_t c = chunk * 32 + lane;
        const bool exists = c < p.d;
        const T* dy = static_cast<const T*>(p.dy) + b * p.q * row + static_cast<size_t>(head) * p.d + c;
        // The row beyond the tile takes what belongs elsewhere, so that no branch parts the lanes.
#pragma unroll 4
        for (int t = 0; t <= TILE; ++t) sums[t][lane] = 0.0f;
        for (uint32_t level = 0; level < p.maps.levels; ++level) {
            const uint32_t width = p.maps.width[level], height = p.maps.height[level], start = p.maps.first[level];
            const int end = static_cast<int>(start + width * height);
            if (end <= first || static_cast<int>(start) >= last) continue;
            const size_t count = p.q * p.maps.points;
            const float4* records = p.records + ((b * p.heads + head) * p.maps.levels + level) * count;
            for (size_t base = 0; base < count; base += 32) {
                float4 own = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                bool touches = false;
                if (base + lane < count) {
                    own = records[base + lane];
                    // Between the first and the last of the four cells lie the others.
                    const float x = fminf(fmaxf(own.x, -2.0f), static_cast<float>(width) + 1.0f);
                    const float y = fminf(fmaxf(own.y, -2.0f), static_cast<float>(height) + 1.0f);
                    const int corner = static_cast<int>(start) + __float2int_rd(y) * static_cast<int>(width) +
                                       __float2int_rd(x);
                    touches = corner < last && corner + static_cast<int>(width) + 1 >= first;
                }
                for (uint32_t votes = __ballot_sync(ALL, touches); votes != 0; votes &= votes - 1) {
                    const int source = __ffs(votes) - 1;
                    const float x = __shfl_sync(ALL, own.x, source), y = __shfl_sync(ALL, own.y, source);
                    const float a = __shfl_sync(ALL, own.z, source);
                    const Corners corners(x, y, width, height, start);
                    const size_t query = (base + source) / p.maps.points;
                    const float g = exists ? a * tile::widen(dy[query * row]) : 0.0f;
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        const int token = corners.token[k];
                        const bool here = token >= first && token < last;
                        sums[here ? token - first : TILE][lane] += corners.weight(k) * g;
                    }
                }
            }
        }
        if (exists) {
#pragma unroll 1
            for (int t = first; t < last; ++t) {
                const size_t to = (b * p.s + t) * row + static_cast<size_t>(head) * p.d + c;
                tile::put<T>(p.target, to, sums[t - first][lane], p.flags);
            }
        }
    }
}

#define DEFORMABLE(NAME, T)                                                                                      \
    extern "C" __global__ void __launch_bounds__(DEFORMABLE_THREADS)                                             \
        deformable_sample_fwd_##NAME##_w32_sm80(const __grid_constant__ Params p) {                              \
        forward<T>(p);                                                                                           \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(DEFORMABLE_THREADS)                                             \
        deformable_sample_bwd_##NAME##_w32_sm80(const __grid_constant__ Params p) {                              \
        backward<T>(p);                                                                                          \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(DEFORMABLE_TILE_THREADS)                                        \
        deformable_sample_value_##NAME##_t32_sm80(const __grid_constant__ Value p) {                             \
        __shared__ float sums[DEFORMABLE_TILE_THREADS / 32][TILE + 1][32];                                           \
        value_gradient<T>(p, sums[threadIdx.x / 32]);                                                            \
    }

DEFORMABLE(f32, float)
DEFORMABLE(f16, __half)
DEFORMABLE(bf16, __nv_bfloat16)
