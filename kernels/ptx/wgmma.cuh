// The tensor cores' product of a warpgroup: four warps, the first of which has a number that is a multiple of four.
//
// It runs beside the threads: its sums may be touched, and its operands overwritten, when the group that it belongs to has been
// waited for.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace ptx {

// Orders accesses to the accumulators, and to shared memory, before the products that follow.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes the group of products that this warpgroup has started.
__device__ __forceinline__ void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING groups are under way.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait_group() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// How a tile of 16-bit elements lies in shared memory for wgmma: in lines of 32, 64 or 128 bytes, one after the other, whose 16-byte
// chunks are permuted as a tensor copy with the same swizzle does it. The tile starts at a multiple of 1024 (of 8 lines at least).
enum class Swizzle : uint64_t { B128 = 1, B64 = 2, B32 = 3 };

// By k: a line holds elements of one row along k. By row (of A or B, transposed): a line holds elements of one k along the rows; tiles
// of such lines, one for each next span of rows, lie `panel_bytes` apart.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address, Swizzle swizzle, uint32_t panel_bytes) {
    const uint32_t line = swizzle == Swizzle::B128 ? 128 : swizzle == Swizzle::B64 ? 64 : 32;
    const uint64_t leading = panel_bytes >> 4, stride = 8 * line >> 4;
    return static_cast<uint64_t>((address & 0x3FFFF) >> 4) | leading << 16 | stride << 32 |
           static_cast<uint64_t>(swizzle) << 62;
}

// What an asm statement needs of R accumulators: their names in the text, and the operands themselves.
#define WGMMA_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WGMMA_NAMES_16 WGMMA_NAMES_8 \
    ", %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_NAMES_32 WGMMA_NAMES_16 \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_64 WGMMA_NAMES_32 \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_NAMES_128 WGMMA_NAMES_64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_SUMS_8(d, i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGMMA_SUMS_16(d, i) WGMMA_SUMS_8(d, i), WGMMA_SUMS_8(d, i + 8)
#define WGMMA_SUMS_32(d, i) WGMMA_SUMS_16(d, i), WGMMA_SUMS_16(d, i + 16)
#define WGMMA_SUMS_64(d, i) WGMMA_SUMS_32(d, i), WGMMA_SUMS_32(d, i + 32)
#define WGMMA_SUMS_128(d, i) WGMMA_SUMS_64(d, i), WGMMA_SUMS_64(d, i + 64)

// The numbers of the operands that follow R sums: a, b, whether to add, and which operands are transposed.
#define WGMMA_STATEMENT(N, R, TYPE, A, B, ADD, TA, TB)                                                              \
    asm volatile(                                                                                                   \
        "{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, %" #ADD ", 0;\n\t"                                                \
        "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" WGMMA_NAMES_##R "}, %" #A ", %" #B     \
        ", adds, 1, 1, %" #TA ", %" #TB ";\n\t}"                                                                     \
        : WGMMA_SUMS_##R(d, 0)                                                                                      \
        : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(A_TRANSPOSED)), "n"(static_cast<int>(B_TRANSPOSED)))

#define WGMMA(N, R, ...)                                                                               \
    template <typename T, bool A_TRANSPOSED, bool B_TRANSPOSED>                                        \
    __device__ __forceinline__ void wgmma_m64k16(float (&d)[R], uint64_t a, uint64_t b, bool add) {    \
        if constexpr (std::is_same_v<T, __half>) {                                                     \
            WGMMA_STATEMENT(N, R, "f16", __VA_ARGS__);                                                 \
        } else {                                                                                       \
            WGMMA_STATEMENT(N, R, "bf16", __VA_ARGS__);                                                \
        }                                                                                              \
    }

// d = a b, or d += a b if `add`; a [64, 16], b [16, N], d [64, N] in f32, of which each thread has N / 2; T is the type of a and b.
// An operand that is transposed lies by row, otherwise by k. Element i of d in lane l of warp w of the group is
// row 16 w + l / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (l % 4) + i % 2.
WGMMA(16, 8, 8, 9, 10, 11, 12)
WGMMA(32, 16, 16, 17, 18, 19, 20)
WGMMA(64, 32, 32, 33, 34, 35, 36)
WGMMA(128, 64, 64, 65, 66, 67, 68)
WGMMA(256, 128, 128, 129, 130, 131, 132)

#undef WGMMA
#undef WGMMA_STATEMENT

}  // namespace ptx
