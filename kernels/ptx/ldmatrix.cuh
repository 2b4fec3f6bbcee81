// Four 8x8 matrices of 16-bit elements from shared memory to the registers of a warp.
#pragma once

#include <cstdint>

namespace ptx {

// Lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, aligned). Word i of lane l is row l / 4, elements
// 2 (l % 4) and the next, of matrix i.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&words)[4], const void* row) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
}

// The same of the transposed matrices: word i of lane l is column l / 4, rows 2 (l % 4) and the next.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&words)[4], const void* row) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
}

}  // namespace ptx
