// Elements in storage and in registers: kernels store f32, f16 or bf16 and compute in f32.
//
// A unit is what one thread loads at once: 16 bytes on the vector path, one element on the scalar path.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#include "ptx/store.cuh"

namespace tile {

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

// Rounds to nearest, ties to even.
template <typename T>
__device__ __forceinline__ T narrow(float v);
template <>
__device__ __forceinline__ float narrow<float>(float v) {
    return v;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float v) {
    return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float v) {
    return __float2bfloat16_rn(v);
}

// Elements in 16 bytes.
template <typename T>
inline constexpr int PACK = 16 / static_cast<int>(sizeof(T));

// The two elements in one 32-bit word, lower address first.
template <typename T>
__device__ __forceinline__ float2 unpack(uint32_t word);
template <>
__device__ __forceinline__ float2 unpack<__half>(uint32_t word) {
    return __half22float2(__halves2half2(__ushort_as_half(static_cast<unsigned short>(word)),
                                         __ushort_as_half(static_cast<unsigned short>(word >> 16))));
}
template <>
__device__ __forceinline__ float2 unpack<__nv_bfloat16>(uint32_t word) {
    // A bf16 is the upper half of an f32.
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xFFFF0000u));
}

template <typename T>
__device__ __forceinline__ uint32_t repack(float low, float high);
template <>
__device__ __forceinline__ uint32_t repack<__half>(float low, float high) {
    return static_cast<uint32_t>(__half_as_ushort(__float2half_rn(low))) |
           static_cast<uint32_t>(__half_as_ushort(__float2half_rn(high))) << 16;
}
template <>
__device__ __forceinline__ uint32_t repack<__nv_bfloat16>(float low, float high) {
    return static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(low))) |
           static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16;
}

// N elements of T, as they lie in storage: one element, or any number of whole 16-byte packs. Held in registers at four
// bytes each two 16-bit elements.
template <typename T, int N>
struct Unit {
    static constexpr int PACKS = N / PACK<T>;
    static_assert(N == PACKS * PACK<T>, "a unit is one element or whole packs");
    uint4 raw[PACKS];

    // `from` must be a multiple of 16.
    __device__ __forceinline__ void load(const T* from) {
#pragma unroll
        for (int i = 0; i < PACKS; ++i) raw[i] = reinterpret_cast<const uint4*>(from)[i];
    }

    // To global memory; `to` must be a multiple of 16.
    __device__ __forceinline__ void store(T* to) const {
#pragma unroll
        for (int i = 0; i < PACKS; ++i) ptx::store_global_16(reinterpret_cast<uint4*>(to) + i, raw[i]);
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < PACKS; ++i) raw[i] = make_uint4(0u, 0u, 0u, 0u);
    }

    __device__ __forceinline__ void get(float (&v)[N]) const {
#pragma unroll
        for (int i = 0; i < PACKS; ++i) {
            const uint32_t words[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
#pragma unroll
            for (int w = 0; w < 4; ++w) {
                if constexpr (sizeof(T) == 4) {
                    v[4 * i + w] = __uint_as_float(words[w]);
                } else {
                    const float2 pair = unpack<T>(words[w]);
                    v[8 * i + 2 * w] = pair.x;
                    v[8 * i + 2 * w + 1] = pair.y;
                }
            }
        }
    }

    __device__ __forceinline__ void set(const float (&v)[N]) {
#pragma unroll
        for (int i = 0; i < PACKS; ++i) {
            uint32_t words[4];
#pragma unroll
            for (int w = 0; w < 4; ++w) {
                if constexpr (sizeof(T) == 4) {
                    words[w] = __float_as_uint(v[4 * i + w]);
                } else {
                    words[w] = repack<T>(v[8 * i + 2 * w], v[8 * i + 2 * w + 1]);
                }
            }
            raw[i] = make_uint4(words[0], words[1], words[2], words[3]);
        }
    }
};

template <typename T>
struct Unit<T, 1> {
    T raw;

    __device__ __forceinline__ void load(const T* from) { raw = *from; }
    __device__ __forceinline__ void store(T* to) const { *to = raw; }
    __device__ __forceinline__ void clear() { raw = narrow<T>(0.0f); }
    __device__ __forceinline__ void get(float (&v)[1]) const { v[0] = widen(raw); }
    __device__ __forceinline__ void set(const float (&v)[1]) { raw = narrow<T>(v[0]); }
};

template <typename T, int N>
__device__ __forceinline__ void load(const T* from, float (&v)[N]) {
    Unit<T, N> unit;
    unit.load(from);
    unit.get(v);
}

template <typename T, int N>
__device__ __forceinline__ void store(T* to, const float (&v)[N]) {
    Unit<T, N> unit;
    unit.set(v);
    unit.store(to);
}

// Calls body(unit) for every unit below `units`, one each thread of the whole grid at a time.
template <typename Body>
__device__ __forceinline__ void for_units(size_t units, Body body) {
    const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t u = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; u < units; u += stride) body(u);
}

}  // namespace tile
