// y[i] = a[i]·b[i mod inner], added to base[i] where there is one. base may be y: then this adds in place.
//
// One unit of a (16 bytes on the vector path, one element otherwise) a thread; neighbours take neighbouring units, and the
// elements after the last whole unit go one each to the first threads. In place, a thread reads the very elements that it writes,
// so no thread waits for another. Limited by reading a and b (and base) and writing y once.

#include "tile/elements.cuh"

#ifndef COLUMN_GATE_THREADS
#error "COLUMN_GATE_THREADS comes from the kernel table"
#endif

struct Params {
    const void* base;
    const void* a;
    const void* b;
    void* y;
    size_t n;
    size_t inner;
    uint32_t vector;
    uint32_t reserved;
};
static_assert(sizeof(Params) == 56 && offsetof(Params, vector) == 48, "mirrors gpu.rs");

template <typename T, typename Out, int N>
__device__ __forceinline__ void unit(const Params& p, size_t first) {
    const size_t from = p.inner == p.n ? first : first % p.inner;
    float a[N], b[N], v[N];
    tile::load<T, N>(static_cast<const T*>(p.a) + first, a);
    tile::load<T, N>(static_cast<const T*>(p.b) + from, b);
    if (p.base != nullptr) {
        tile::load<Out, N>(static_cast<const Out*>(p.base) + first, v);
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] += a[i] * b[i];
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = a[i] * b[i];
    }
    tile::store<Out, N>(static_cast<Out*>(p.y) + first, v);
}

template <typename T, typename Out>
__device__ __forceinline__ void all(const Params& p) {
    constexpr int N = tile::PACK<T>;
    const size_t units = p.vector ? p.n / N : 0;
    tile::for_units(units, [&](size_t u) { unit<T, Out, N>(p, u * N); });
    tile::for_units(p.n - units * N, [&](size_t e) { unit<T, Out, 1>(p, units * N + e); });
}

#define COLUMN_GATE(NAME, T, OUT)                                                                              \
    extern "C" __global__ void __launch_bounds__(COLUMN_GATE_THREADS) NAME(const __grid_constant__ Params p) { \
        all<T, OUT>(p);                                                                                        \
    }

COLUMN_GATE(column_gate_fwd_f32_t256_sm80, float, float)
COLUMN_GATE(column_gate_fwd_f16_t256_sm80, __half, __half)
COLUMN_GATE(column_gate_fwd_bf16_t256_sm80, __nv_bfloat16, __nv_bfloat16)
COLUMN_GATE(column_gate_widen_f16_t256_sm80, __half, float)
COLUMN_GATE(column_gate_widen_bf16_t256_sm80, __nv_bfloat16, float)
