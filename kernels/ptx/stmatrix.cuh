// Four 8x8 matrices of 16-bit elements from the registers of a warp to shared memory.
#pragma once

#include <cstdint>

namespace ptx {

// Lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, aligned). Word i of lane l is row l / 4, elements
// 2 (l % 4) and the next, of matrix i.
__device__ __forceinline__ void stmatrix_x4(void* row, uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(w0), "r"(w1), "r"(w2),
                 "r"(w3)
                 : "memory");
}

// The same of each matrix's transpose: row l % 8 of matrix l / 8 gets what column l % 8 of the registers is.
__device__ __forceinline__ void stmatrix_x4_trans(void* row, uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(w0), "r"(w1),
                 "r"(w2), "r"(w3)
                 : "memory");
}

}  // namespace ptx
