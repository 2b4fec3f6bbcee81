// Philox4x32 and the dropout that draws from it; the same bits as src/rng.rs.
#pragma once

#include <cstdint>

namespace tile {

template <int ROUNDS>
__device__ __forceinline__ uint4 philox4x32(uint4 c, uint2 key) {
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const uint32_t high0 = __umulhi(0xD2511F53u, c.x), low0 = 0xD2511F53u * c.x;
        const uint32_t high1 = __umulhi(0xCD9E8D57u, c.z), low1 = 0xCD9E8D57u * c.z;
        c = make_uint4(high1 ^ c.y ^ key.x, low1, high0 ^ c.w ^ key.y, low0);
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
    return c;
}

// Which elements of a matrix are kept: element e draws word e % 4 of block e / 4, and is kept if that is at least `threshold`.
struct Dropout {
    uint64_t seed;
    uint32_t step;
    uint32_t site;
    uint32_t threshold;

    // Bit i: element 4 block + i is kept.
    __device__ __forceinline__ uint32_t kept_of_block(uint64_t block) const {
        const uint4 counter =
            make_uint4(static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), step, site);
        const uint2 key = make_uint2(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
        const uint4 w = philox4x32<7>(counter, key);
        return static_cast<uint32_t>(w.x >= threshold) | static_cast<uint32_t>(w.y >= threshold) << 1 |
               static_cast<uint32_t>(w.z >= threshold) << 2 | static_cast<uint32_t>(w.w >= threshold) << 3;
    }

    // Bit i, i < COUNT: element first + i is kept. The elements may start anywhere in a block, so that one block more than COUNT
    // fills may be needed.
    template <int COUNT>
    __device__ __forceinline__ uint32_t kept(uint64_t first) const {
        constexpr int BLOCKS = (COUNT + 3) / 4;
        const uint64_t block = first >> 2;
        const uint32_t skipped = static_cast<uint32_t>(first & 3);
        uint32_t bits = 0;
#pragma unroll
        for (int b = 0; b < BLOCKS; ++b) bits |= kept_of_block(block + b) << (4 * b);
        if (skipped + COUNT > 4 * BLOCKS) bits |= kept_of_block(block + BLOCKS) << (4 * BLOCKS);
        return bits >> skipped;
    }
};

// What a factor of the mask makes of v: itself, or its product with zero.
__device__ __forceinline__ float masked(float v, bool kept) { return kept ? v : v * 0.0f; }

}  // namespace tile
