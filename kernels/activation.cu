// Elementwise activations: y = f(x), and dx (+)= f'(x)·dy.
//
// One unit (16 bytes on the vector path, one element otherwise) a thread; neighbours take neighbouring units. The elements after
// the last whole unit go one each to the first threads. Limited by memory in 16-bit formats; the error function comes close to
// the arithmetic limit in f32.

#include "tile/activation.cuh"
#include "tile/elements.cuh"

#ifndef ACTIVATION_THREADS
#error "ACTIVATION_THREADS comes from the kernel table"
#endif

struct Params {
    const void* x;
    const void* dy;
    void* out;
    size_t n;
    uint32_t activation;
    uint32_t accumulate;
    uint32_t vector;
    uint32_t reserved;
};
static_assert(sizeof(Params) == 48 && offsetof(Params, activation) == 32, "mirrors gpu.rs");

using namespace tile;

template <Activation A, typename T, int N, bool BACKWARD>
__device__ __forceinline__ void unit(const Params& p, size_t first) {
    float x[N], out[N];
    load<T, N>(static_cast<const T*>(p.x) + first, x);
    T* to = static_cast<T*>(p.out) + first;
    if constexpr (BACKWARD) {
        float dy[N];
        load<T, N>(static_cast<const T*>(p.dy) + first, dy);
        if (p.accumulate) {
            load<T, N>(to, out);
        } else {
#pragma unroll
            for (int i = 0; i < N; ++i) out[i] = 0.0f;
        }
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] += gradient<A>(dy[i], x[i]);
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] = value<A>(x[i]);
    }
    store<T, N>(to, out);
}

template <Activation A, typename T, bool BACKWARD>
__device__ __forceinline__ void all(const Params& p) {
    constexpr int N = PACK<T>;
    const size_t units = p.vector ? p.n / N : 0;
    for_units(units, [&](size_t u) { unit<A, T, N, BACKWARD>(p, u * N); });
    for_units(p.n - units * N, [&](size_t e) { unit<A, T, 1, BACKWARD>(p, units * N + e); });
}

template <typename T, bool BACKWARD>
__device__ __forceinline__ void any(const Params& p) {
    switch (p.activation) {
        case RELU: return all<RELU, T, BACKWARD>(p);
        case GELU: return all<GELU, T, BACKWARD>(p);
        case GELU_TANH: return all<GELU_TANH, T, BACKWARD>(p);
        case QUICK_GELU: return all<QUICK_GELU, T, BACKWARD>(p);
        default: return all<SILU, T, BACKWARD>(p);
    }
}

#define ACTIVATION(NAME, T)                                                                  \
    extern "C" __global__ void __launch_bounds__(ACTIVATION_THREADS)                         \
        activation_fwd_##NAME##_t256_sm80(const __grid_constant__ Params p) {                \
        any<T, false>(p);                                                                    \
    }                                                                                        \
    extern "C" __global__ void __launch_bounds__(ACTIVATION_THREADS)                         \
        activation_bwd_##NAME##_t256_sm80(const __grid_constant__ Params p) {                \
        any<T, true>(p);                                                                     \
    }

ACTIVATION(f32, float)
ACTIVATION(f16, __half)
ACTIVATION(bf16, __nv_bfloat16)
