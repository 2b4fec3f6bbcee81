// The gate of Dual-LoRA on rows of r ≤ 256, between the product that makes [a, t] and the one that takes h.
//
//   forward   h = ReLU(t)·u               u = â·γ + β, â = (a − μ)·ρ, ρ = 1 / √(mean((a − μ)²) + ε)
//   backward  da = ρ·(g − mean(g) − â·mean(g·â))      g = du·γ, du = dh·ReLU(t)
//             dt = dh·u where t > 0, else 0
//             partial[piece] = Σ_{rows of piece} du·â, then Σ du
//
// A warp takes a row; lane l has its columns l, l + 32, ..: at most eight, in registers between the passes over the row.
//
//   row   | a: lane 0 | lane 1 | .. | lane 31 | lane 0 | ..  r | t: likewise |
//
// Backward: a block takes one piece of DUAL_RANK_PIECE rows, warp g its rows g, g + 8, .. in order; the warps' sums are then added
// in order, and the pieces by column_sum.cu. Limited by reading [a, t] (and dh) and writing h (their gradients) once: 2r of the
// k numbers that the products around it read.

#include "tile/elements.cuh"
#include "tile/reduce.cuh"

#ifndef DUAL_RANK_THREADS
#error "DUAL_RANK_THREADS comes from the kernel table"
#endif
#ifndef DUAL_RANK_PIECE
#error "DUAL_RANK_PIECE comes from the kernel table"
#endif

struct Params {
    const void* projected;
    const void* gamma;
    const void* beta;
    const void* dh;
    void* out;
    float* partial;
    size_t m;
    size_t stride;
    size_t second;
    uint32_t r;
    float eps;
};
static_assert(sizeof(Params) == 80 && offsetof(Params, r) == 72, "mirrors gpu.rs");

constexpr int WARPS = DUAL_RANK_THREADS / 32;
constexpr int COLUMNS = 8;

// Calls body(i, column) for the columns of this lane.
template <typename Body>
__device__ __forceinline__ void columns(uint32_t r, Body body) {
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) {
        const uint32_t c = threadIdx.x % 32 + 32 * i;
        if (c < r) body(i, c);
    }
}

template <typename T>
__device__ __forceinline__ void read(const void* from, size_t at, uint32_t r, float (&v)[COLUMNS]) {
    const T* values = static_cast<const T*>(from) + at;
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) v[i] = 0.0f;
    columns(r, [&](int i, uint32_t c) { v[i] = tile::widen(values[c]); });
}

// NaN stays.
__device__ __forceinline__ float relu(float t) { return t <= 0.0f ? 0.0f : t; }

// Turns a into â; returns ρ.
__device__ __forceinline__ float standardise(const Params& p, float (&a)[COLUMNS]) {
    const float count = static_cast<float>(p.r);
    float sum = 0.0f, squares = 0.0f;
    columns(p.r, [&](int i, uint32_t) { sum += a[i]; });
    const float mean = tile::warp_sum(sum) / count;
    columns(p.r, [&](int i, uint32_t) { squares += (a[i] - mean) * (a[i] - mean); });
    const float rho = 1.0f / sqrtf(tile::warp_sum(squares) / count + p.eps);
    columns(p.r, [&](int i, uint32_t) { a[i] = (a[i] - mean) * rho; });
    return rho;
}

template <typename T>
__device__ __forceinline__ void forward(const Params& p) {
    float gamma[COLUMNS], beta[COLUMNS], a[COLUMNS], t[COLUMNS];
    read<T>(p.gamma, 0, p.r, gamma);
    read<T>(p.beta, 0, p.r, beta);
    for (size_t row = static_cast<size_t>(blockIdx.x) * WARPS + threadIdx.x / 32; row < p.m;
         row += static_cast<size_t>(gridDim.x) * WARPS) {
        read<T>(p.projected, row * p.stride, p.r, a);
        read<T>(p.projected, row * p.stride + p.second, p.r, t);
        standardise(p, a);
        T* h = static_cast<T*>(p.out) + row * p.r;
        columns(p.r, [&](int i, uint32_t c) { h[c] = tile::narrow<T>(relu(t[i]) * (a[i] * gamma[i] + beta[i])); });
    }
}

template <typename T>
__device__ __forceinline__ void backward(const Params& p, float* scratch) {
    const float count = static_cast<float>(p.r);
    const int warp = threadIdx.x / 32;
    float gamma[COLUMNS], beta[COLUMNS], a[COLUMNS], t[COLUMNS], dh[COLUMNS];
    read<T>(p.gamma, 0, p.r, gamma);
    read<T>(p.beta, 0, p.r, beta);
    const size_t pieces = (p.m + DUAL_RANK_PIECE - 1) / DUAL_RANK_PIECE;
    for (size_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
        float d_gamma[COLUMNS], d_beta[COLUMNS];
#pragma unroll
        for (int i = 0; i < COLUMNS; ++i) d_gamma[i] = d_beta[i] = 0.0f;
        const size_t end = (piece + 1) * DUAL_RANK_PIECE < p.m ? (piece + 1) * DUAL_RANK_PIECE : p.m;
        for (size_t row = piece * DUAL_RANK_PIECE + warp; row < end; row += WARPS) {
            read<T>(p.projected, row * p.stride, p.r, a);
            read<T>(p.projected, row * p.stride + p.second, p.r, t);
            read<T>(p.dh, row * p.r, p.r, dh);
            const float rho = standardise(p, a);
            float sum = 0.0f, along = 0.0f;
            T* da = static_cast<T*>(p.out) + row * p.stride;
            T* dt = da + p.second;
            columns(p.r, [&](int i, uint32_t c) {
                const float du = dh[i] * relu(t[i]);
                dt[c] = tile::narrow<T>(t[i] <= 0.0f ? 0.0f : dh[i] * (a[i] * gamma[i] + beta[i]));
                d_gamma[i] += du * a[i];
                d_beta[i] += du;
                dh[i] = du * gamma[i];
                sum += dh[i];
                along += dh[i] * a[i];
            });
            const float centre = tile::warp_sum(sum) / count;
            along = tile::warp_sum(along) / count;
            columns(p.r, [&](int i, uint32_t c) { da[c] = tile::narrow<T>(rho * (dh[i] - centre - a[i] * along)); });
        }
        columns(p.r, [&](int i, uint32_t c) {
            scratch[warp * 2 * 32 * COLUMNS + c] = d_gamma[i];
            scratch[(warp * 2 + 1) * 32 * COLUMNS + c] = d_beta[i];
        });
        // All warps' sums are written.
        __syncthreads();
        for (uint32_t at = threadIdx.x; at < 2 * p.r; at += DUAL_RANK_THREADS) {
            const uint32_t half = at / p.r, c = at % p.r;
            float total = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; ++w) total += scratch[(w * 2 + half) * 32 * COLUMNS + c];
            p.partial[piece * 2 * p.r + at] = total;
        }
        // The sums are read before the next piece writes them.
        __syncthreads();
    }
}

#define DUAL_RANK(NAME, T)                                                                         \
    extern "C" __global__ void __launch_bounds__(DUAL_RANK_THREADS)                                \
        dual_rank_fwd_##NAME##_w32_sm80(const __grid_constant__ Params p) {                        \
        forward<T>(p);                                                                             \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(DUAL_RANK_THREADS)                                \
        dual_rank_bwd_##NAME##_w32_sm80(const __grid_constant__ Params p) {                        \
        __shared__ float scratch[WARPS * 2 * 32 * COLUMNS];                                        \
        backward<T>(p, scratch);                                                                   \
    }

DUAL_RANK(f32, float)
DUAL_RANK(f16, __half)
DUAL_RANK(bf16, __nv_bfloat16)
