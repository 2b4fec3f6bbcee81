// Where a gradient goes: to a value, in the value's own dtype, or to a parameter, in f32; written, or added to what is there.
#pragma once

#include "tile/elements.cuh"

namespace tile {

// Bits of a target's flags; they mirror src/ops/target.rs.
constexpr uint32_t ACCUMULATE = 1;
constexpr uint32_t WIDE = 2;

// Element i of the target (+)= v. One thread owns an element, so adding needs no atomic.
template <typename T>
__device__ __forceinline__ void put(void* target, size_t i, float v, uint32_t flags) {
    if (sizeof(T) == 4 || (flags & WIDE)) {
        float* to = static_cast<float*>(target) + i;
        *to = flags & ACCUMULATE ? *to + v : v;
    } else {
        T* to = static_cast<T*>(target) + i;
        *to = narrow<T>(flags & ACCUMULATE ? widen(*to) + v : v);
    }
}

}  // namespace tile
