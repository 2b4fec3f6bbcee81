// out (+)= x ⊙ z, elementwise: forward, and either gradient.
//
// One unit (16 bytes on the vector path, one element otherwise) a thread; neighbours take neighbouring units. The elements after
// the last whole unit go one each to the first threads. A thread that adds reads the very elements that it writes, so no thread
// waits for another. Limited by reading x and z and writing out once.

#include "tile/elements.cuh"

#ifndef MULTIPLY_THREADS
#error "MULTIPLY_THREADS comes from the kernel table"
#endif

struct Params {
    const void* x;
    const void* z;
    void* out;
    size_t n;
    uint32_t accumulate;
    uint32_t vector;
};
static_assert(sizeof(Params) == 40 && offsetof(Params, accumulate) == 32, "mirrors gpu.rs");

template <typename T, int N>
__device__ __forceinline__ void unit(const Params& p, size_t first) {
    float x[N], z[N], out[N];
    tile::load<T, N>(static_cast<const T*>(p.x) + first, x);
    tile::load<T, N>(static_cast<const T*>(p.z) + first, z);
    T* to = static_cast<T*>(p.out) + first;
    if (p.accumulate) {
        tile::load<T, N>(to, out);
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] += x[i] * z[i];
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] = x[i] * z[i];
    }
    tile::store<T, N>(to, out);
}

template <typename T>
__device__ __forceinline__ void all(const Params& p) {
    constexpr int N = tile::PACK<T>;
    const size_t units = p.vector ? p.n / N : 0;
    tile::for_units(units, [&](size_t u) { unit<T, N>(p, u * N); });
    tile::for_units(p.n - units * N, [&](size_t e) { unit<T, 1>(p, units * N + e); });
}

#define MULTIPLY(NAME, T)                                                            \
    extern "C" __global__ void __launch_bounds__(MULTIPLY_THREADS)                   \
        multiply_fwd_##NAME##_t256_sm80(const __grid_constant__ Params p) {          \
        all<T>(p);                                                                   \
    }

MULTIPLY(f32, float)
MULTIPLY(f16, __half)
MULTIPLY(bf16, __nv_bfloat16)
