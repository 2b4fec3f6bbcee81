// y[i] = base[i] + s·z[i mod inner], or s·z[i] with no base. base may be y: then this adds to y in place.
//
// One unit of z (16 bytes on the vector path, one element otherwise) a thread; neighbours take neighbouring units, and the
// elements after the last whole unit go one each to the first threads. In place, a thread reads the very elements that it writes,
// so no thread waits for another. Limited by reading base and z and writing y once.

#include "tile/elements.cuh"

#ifndef SCALE_ADD_THREADS
#error "SCALE_ADD_THREADS comes from the kernel table"
#endif

struct Params {
    const void* base;
    const void* z;
    void* y;
    size_t n;
    size_t inner;
    float scale;
    uint32_t vector;
};
static_assert(sizeof(Params) == 48 && offsetof(Params, scale) == 40, "mirrors gpu.rs");

template <typename T, typename Out, int N>
__device__ __forceinline__ void unit(const Params& p, size_t first) {
    // One repetition is the usual case and needs no division.
    const size_t from = p.inner == p.n ? first : first % p.inner;
    float z[N], v[N];
    tile::load<T, N>(static_cast<const T*>(p.z) + from, z);
    if (p.base != nullptr) {
        tile::load<Out, N>(static_cast<const Out*>(p.base) + first, v);
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] += p.scale * z[i];
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = p.scale * z[i];
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

#define SCALE_ADD(NAME, T, OUT)                                                                              \
    extern "C" __global__ void __launch_bounds__(SCALE_ADD_THREADS) NAME(const __grid_constant__ Params p) { \
        all<T, OUT>(p);                                                                                      \
    }

SCALE_ADD(scale_add_fwd_f32_t256_sm80, float, float)
SCALE_ADD(scale_add_fwd_f16_t256_sm80, __half, __half)
SCALE_ADD(scale_add_fwd_bf16_t256_sm80, __nv_bfloat16, __nv_bfloat16)
SCALE_ADD(scale_add_widen_f16_t256_sm80, __half, float)
SCALE_ADD(scale_add_widen_bf16_t256_sm80, __nv_bfloat16, float)
