// Elastic weight consolidation over flat f32 buffers:
//
//   observe   S_n += g_n²                         out: one word that becomes 1 if a g_n is not finite
//   pull      g_n += factor · S_n · (θ_n - θ*_n)
//   penalty   out[b] = Σ S_n (θ_n - θ*_n)² over piece b, in f64
//
// One thread an element; for the penalty one block a piece, whose threads add every 256th element and then fold their sums in halves, so that
// the order depends on nothing. Limited by memory.

#include "tile/elements.cuh"

#if !defined(EWC_THREADS) || !defined(EWC_PIECE)
#error "the EWC_ constants come from the kernel table"
#endif

struct Params {
    const float* params;
    const float* anchor;
    float* squares;
    float* gradients;
    void* out;
    size_t n;
    float factor;
    uint32_t reserved;
};
static_assert(sizeof(Params) == 56 && offsetof(Params, factor) == 48, "mirrors gpu.rs");

extern "C" __global__ void __launch_bounds__(EWC_THREADS) ewc_observe_f32_t256_sm80(const __grid_constant__ Params p) {
    tile::for_units(p.n, [&](size_t i) {
        const float g = p.gradients[i];
        p.squares[i] = fmaf(g, g, p.squares[i]);
        if (!isfinite(g)) atomicOr(static_cast<uint32_t*>(p.out), 1u);
    });
}

extern "C" __global__ void __launch_bounds__(EWC_THREADS) ewc_pull_f32_t256_sm80(const __grid_constant__ Params p) {
    tile::for_units(p.n, [&](size_t i) {
        p.gradients[i] = fmaf(p.factor * p.squares[i], p.params[i] - p.anchor[i], p.gradients[i]);
    });
}

extern "C" __global__ void __launch_bounds__(EWC_THREADS) ewc_penalty_f32_t256_sm80(const __grid_constant__ Params p) {
    __shared__ double sums[EWC_THREADS];
    for (size_t first = static_cast<size_t>(blockIdx.x) * EWC_PIECE; first < p.n;
         first += static_cast<size_t>(gridDim.x) * EWC_PIECE) {
        const size_t last = first + EWC_PIECE < p.n ? first + EWC_PIECE : p.n;
        double sum = 0.0;
        for (size_t i = first + threadIdx.x; i < last; i += EWC_THREADS) {
            const double away = static_cast<double>(p.params[i]) - static_cast<double>(p.anchor[i]);
            sum = fma(static_cast<double>(p.squares[i]) * away, away, sum);
        }
        sums[threadIdx.x] = sum;
        for (int half = EWC_THREADS / 2; half > 0; half /= 2) {
            // The sums of this round are written.
            __syncthreads();
            if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        }
        if (threadIdx.x == 0) static_cast<double*>(p.out)[first / EWC_PIECE] = sums[0];
        // The total has been read.
        __syncthreads();
    }
}
