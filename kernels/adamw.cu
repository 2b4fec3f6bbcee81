// AdamW over a flat buffer.
//
//   norm   partials[k] = Σ g² over elements k·piece .. (k + 1)·piece
//   step   g ← g·min(1, c / (‖g‖ + 1e-6));   p ← p·keep
//          m ← m + (1 − β₁)(g − m);  v ← β₂·v + (1 − β₂)·g²
//          p ← p − step · m / (√v / √(1 − β₂ᵗ) + ε);  working ← round(p);  g ← 0
//
// norm: a block for each piece; thread t takes units t, t + 256, .. in order, then warps and the block are summed in order.
// step: four elements a thread at a time. Each block first adds all partials in one and the same order, so that every block clips
// by the same bits with no launch in between; block 0 writes ‖g‖.
// Limited by memory: p, m, v read and written, g read (and zeroed), the working copy written.

#include "tile/elements.cuh"
#include "tile/reduce.cuh"

#ifndef ADAMW_THREADS
#error "ADAMW_THREADS comes from the kernel table"
#endif
#ifndef ADAMW_MAX_GROUPS
#error "ADAMW_MAX_GROUPS comes from the kernel table"
#endif

struct Norm {
    const float* grads;
    float* partials;
    size_t n;
    size_t piece;
    size_t count;
    size_t vector;
};
static_assert(sizeof(Norm) == 48 && offsetof(Norm, vector) == 40, "mirrors gpu.rs");

struct Rates {
    size_t end;
    float keep;
    float step;
};

struct Step {
    float* params;
    void* working;
    float* grads;
    float* m;
    float* v;
    const float* partials;
    float* norm;
    size_t n;
    Rates rates[ADAMW_MAX_GROUPS];
    uint32_t groups;
    uint32_t partial_count;
    float first;
    float beta2;
    float second;
    float root_correction;
    float eps;
    float clip;
    uint32_t zero_grads;
    uint32_t vector;
};
static_assert(sizeof(Rates) == 16 && sizeof(Step) == 232, "mirrors gpu.rs");
static_assert(offsetof(Step, rates) == 64 && offsetof(Step, groups) == 192, "mirrors gpu.rs");

constexpr int WARPS = ADAMW_THREADS / 32;

template <int N>
__device__ __forceinline__ float squares(const float* from, size_t elements) {
    float sum = 0.0f;
    for (size_t u = threadIdx.x; u < elements / N; u += ADAMW_THREADS) {
        float g[N];
        tile::load<float, N>(from + u * N, g);
#pragma unroll
        for (int i = 0; i < N; ++i) sum += g[i] * g[i];
    }
    return sum;
}

extern "C" __global__ void __launch_bounds__(ADAMW_THREADS)
    adamw_norm_f32_t256_sm80(const __grid_constant__ Norm p) {
    __shared__ float scratch[WARPS];
    for (size_t k = blockIdx.x; k < p.count; k += gridDim.x) {
        const size_t first = k * p.piece;
        const size_t elements = first + p.piece < p.n ? p.piece : p.n - first;
        const float* from = p.grads + first;
        // Pieces are multiples of four elements, so that each starts aligned if the first does; the last may end ragged.
        const size_t whole = p.vector ? elements / 4 * 4 : 0;
        float sum = squares<4>(from, whole) + squares<1>(from + whole, elements - whole);
        sum = tile::block_sum<WARPS>(sum, scratch);
        if (threadIdx.x == 0) p.partials[k] = sum;
    }
}

// The factor that brings the gradient's norm down to the limit; 1 if it is below. NaN stays NaN.
__device__ __forceinline__ float clip_factor(const Step& p, float* scratch) {
    if (p.partials == nullptr) return 1.0f;
    float sum = 0.0f;
    for (uint32_t k = threadIdx.x; k < p.partial_count; k += ADAMW_THREADS) sum += p.partials[k];
    const float norm = sqrtf(tile::block_sum<WARPS>(sum, scratch));
    if (blockIdx.x == 0 && threadIdx.x == 0) *p.norm = norm;
    const float factor = p.clip / (norm + 1e-6f);
    return p.clip == 0.0f || factor > 1.0f ? 1.0f : factor;
}

// The working copy of N consecutive parameters. Of type float there is none.
template <typename W, int N>
__device__ __forceinline__ void write_working(const Step& p, size_t first, const float (&v)[N]) {
    if constexpr (sizeof(W) == 2) {
        W* to = static_cast<W*>(p.working) + first;
        if constexpr (N == 1) {
            *to = tile::narrow<W>(v[0]);
        } else {
            static_assert(N == 4, "two words of two elements");
            *reinterpret_cast<uint2*>(to) = make_uint2(tile::repack<W>(v[0], v[1]), tile::repack<W>(v[2], v[3]));
        }
    }
}

template <typename W, int N>
__device__ __forceinline__ void update(const Step& p, size_t first, float clip) {
    // All N elements lie in one group: its ends are multiples of N.
    float keep = p.rates[0].keep, step = p.rates[0].step;
#pragma unroll
    for (int k = 1; k < ADAMW_MAX_GROUPS; ++k) {
        if (k < p.groups && first >= p.rates[k - 1].end) {
            keep = p.rates[k].keep;
            step = p.rates[k].step;
        }
    }
    float w[N], g[N], m[N], v[N];
    tile::load<float, N>(p.params + first, w);
    tile::load<float, N>(p.grads + first, g);
    tile::load<float, N>(p.m + first, m);
    tile::load<float, N>(p.v + first, v);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const float gradient = g[i] * clip;
        m[i] += p.first * (gradient - m[i]);
        v[i] = p.beta2 * v[i] + p.second * (gradient * gradient);
        w[i] = w[i] * keep - step * m[i] / (sqrtf(v[i]) / p.root_correction + p.eps);
        g[i] = 0.0f;
    }
    tile::store<float, N>(p.params + first, w);
    tile::store<float, N>(p.m + first, m);
    tile::store<float, N>(p.v + first, v);
    if (p.zero_grads) tile::store<float, N>(p.grads + first, g);
    write_working<W, N>(p, first, w);
}

template <typename W>
__device__ __forceinline__ void all(const Step& p) {
    __shared__ float scratch[WARPS];
    const float clip = clip_factor(p, scratch);
    const size_t units = p.vector ? p.n / 4 : 0;
    tile::for_units(units, [&](size_t u) { update<W, 4>(p, u * 4, clip); });
    tile::for_units(p.n - units * 4, [&](size_t e) { update<W, 1>(p, units * 4 + e, clip); });
}

#define ADAMW(NAME, W)                                                                       \
    extern "C" __global__ void __launch_bounds__(ADAMW_THREADS)                              \
        adamw_step_##NAME##_t256_sm80(const __grid_constant__ Step p) {                      \
        all<W>(p);                                                                           \
    }

ADAMW(f32, float)
ADAMW(f16, __half)
ADAMW(bf16, __nv_bfloat16)
