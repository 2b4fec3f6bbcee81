// Runs of equal length from one tensor to another, in each of which they lie at even distances.
//
//   to[i·to_pitch + e] (+)= from[i·from_pitch + e]        i < runs, e < length
//
//   from  | run 0 | ......... | run 1 | ......... |        a batch item's part of a joined sequence, or that part by itself
//   to    | run 0 | run 1 | run 2 | ..
//
// One unit (16 bytes on the vector path, one element otherwise) a thread; neighbours take neighbouring units of a run. Limited by
// reading and writing each element once.

#include "tile/elements.cuh"

#ifndef JOIN_THREADS
#error "JOIN_THREADS comes from the kernel table"
#endif

struct Params {
    const void* from;
    void* to;
    size_t runs;
    size_t length;
    size_t from_pitch;
    size_t to_pitch;
    uint32_t accumulate;
    uint32_t vector;
};
static_assert(sizeof(Params) == 56 && offsetof(Params, accumulate) == 48, "mirrors gpu.rs");

template <typename T, int N>
__device__ __forceinline__ void copy(const Params& p) {
    const size_t units = p.length / N;
    tile::for_units(p.runs * units, [&](size_t u) {
        const size_t run = u / units, at = u % units * N;
        T* to = static_cast<T*>(p.to) + run * p.to_pitch + at;
        tile::Unit<T, N> unit;
        unit.load(static_cast<const T*>(p.from) + run * p.from_pitch + at);
        if (p.accumulate) {
            float v[N], held[N];
            unit.get(v);
            tile::load<T, N>(to, held);
#pragma unroll
            for (int i = 0; i < N; ++i) v[i] += held[i];
            unit.set(v);
        }
        unit.store(to);
    });
}

#define JOIN(NAME, T)                                                                                        \
    extern "C" __global__ void __launch_bounds__(JOIN_THREADS) join_copy_##NAME##_t256_sm80(                 \
        const __grid_constant__ Params p) {                                                                  \
        if (p.vector) {                                                                                      \
            copy<T, tile::PACK<T>>(p);                                                                       \
        } else {                                                                                             \
            copy<T, 1>(p);                                                                                   \
        }                                                                                                    \
    }

JOIN(f32, float)
JOIN(f16, __half)
JOIN(bf16, __nv_bfloat16)
