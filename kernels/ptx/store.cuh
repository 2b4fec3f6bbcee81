// Stores of 16 bytes that stay one instruction: the compiler takes a vector apart when its words come out of arithmetic, and
// four stores of a word touch a sector four times, or banks that collide. Addresses are multiples of 16.
#pragma once

#include <cstdint>

namespace ptx {

__device__ __forceinline__ void store_global_16(void* to, uint4 words) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(words.x), "r"(words.y),
                 "r"(words.z), "r"(words.w)
                 : "memory");
}

__device__ __forceinline__ void store_shared_16(void* to, float4 v) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}

}  // namespace ptx
