// Pooling of tokens.
//
//   forward   y[b] = x[b, 0]              (the mean's forward pass is column_sum.cu)
//   backward  dx[b, t] (+)= f·dy[b]       f = 1/t for the mean; for the class token f = 1 at t = 0, and 0 elsewhere
//
// One unit of what is written (16 bytes on the vector path, one element otherwise) a thread. Limited by writing it.

#include "tile/elements.cuh"

#ifndef POOL_THREADS
#error "POOL_THREADS comes from the kernel table"
#endif

struct Params {
    const void* from;
    void* to;
    size_t b;
    size_t t;
    size_t d;
    float factor;
    uint32_t class_token;
    uint32_t accumulate;
    uint32_t vector;
};
static_assert(sizeof(Params) == 56 && offsetof(Params, factor) == 40, "mirrors gpu.rs");

template <typename T, int N>
__device__ __forceinline__ void first_token(const Params& p) {
    const T* x = static_cast<const T*>(p.from);
    T* y = static_cast<T*>(p.to);
    const size_t units = p.d / N;
    tile::for_units(p.b * units, [&](size_t u) {
        tile::Unit<T, N> unit;
        unit.load(x + u / units * p.t * p.d + u % units * N);
        unit.store(y + u * N);
    });
}

template <typename T, int N>
__device__ __forceinline__ void backward(const Params& p) {
    const T* dy = static_cast<const T*>(p.from);
    T* dx = static_cast<T*>(p.to);
    const size_t units = p.d / N;
    tile::for_units(p.b * p.t * units, [&](size_t u) {
        const size_t row = u / units, b = row / p.t;
        const bool counts = !p.class_token || row == b * p.t;
        float v[N];
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = 0.0f;
        if (!counts) {
            if (!p.accumulate) tile::store<T, N>(dx + u * N, v);
            return;
        }
        float g[N];
        tile::load<T, N>(dy + b * p.d + u % units * N, g);
        if (p.accumulate) tile::load<T, N>(dx + u * N, v);
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] += p.factor * g[i];
        tile::store<T, N>(dx + u * N, v);
    });
}

#define POOL_PASS(PASS, BODY, NAME, T)                                                 \
    extern "C" __global__ void __launch_bounds__(POOL_THREADS)                         \
        pool_##PASS##_##NAME##_t256_sm80(const __grid_constant__ Params p) {           \
        if (p.vector) {                                                                \
            BODY<T, tile::PACK<T>>(p);                                                 \
        } else {                                                                       \
            BODY<T, 1>(p);                                                             \
        }                                                                              \
    }

#define POOL(NAME, T)                       \
    POOL_PASS(fwd, first_token, NAME, T)    \
    POOL_PASS(bwd, backward, NAME, T)

POOL(f32, float)
POOL(f16, __half)
POOL(bf16, __nv_bfloat16)
