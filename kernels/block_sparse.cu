// The products of the block-sparse family, for one block edge: see tile/block.cuh for the formulas and the sides of a tile,
// tile/block_mma.cuh and tile/block_fma.cuh for the mapping of threads.
//
//   block_sparse_dense_{layout}:    y, dx and every other product with a sparse operand
//   block_sparse_sampled_{layout}:  the gradient of the values
//   block_sparse_join:              adds the pieces of long lines, in their order
//
// A layout's letters say of the M side and the N side whether they are stored as a product's first operand is (n) or transposed (t).
// Blocks of 64 and 128 are limited by the tensor cores, those of 16 and 32 by bringing the dense operand to them: each of its
// elements meets only b columns.

#ifndef BLOCK
#error "BLOCK comes from the kernel table"
#endif
#ifndef BLOCK_STEP
#error "BLOCK_STEP comes from the kernel table"
#endif
#ifndef BLOCK_STAGES
#error "BLOCK_STAGES comes from the kernel table"
#endif
#ifndef BLOCK_THREADS
#error "BLOCK_THREADS comes from the kernel table"
#endif
#ifndef BLOCK_RESIDENT
#error "BLOCK_RESIDENT comes from the kernel table"
#endif
#ifndef BLOCK_SHARED
#error "BLOCK_SHARED comes from the kernel table"
#endif
#ifndef BLOCK_F32_THREADS
#error "BLOCK_F32_THREADS comes from the kernel table"
#endif
#ifndef BLOCK_JOIN_THREADS
#error "BLOCK_JOIN_THREADS comes from the kernel table"
#endif

#include "tile/block_fma.cuh"
#include "tile/block_mma.cuh"

using namespace tile;

extern __shared__ __align__(16) uint4 ring[];

#define PASTE(A_, B_, C_, D_, E_) A_##B_##_##C_##_b##D_##E_
#define SYMBOL(PASS, LAYOUT, DTYPE, B_) PASTE(block_sparse_##PASS##_, LAYOUT, DTYPE, B_, _sm80)

#define MMA_KERNEL(PASS, PARAMS, GEMM, LAYOUT, DTYPE, T, FIRST, SECOND)                            \
    extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, BLOCK_RESIDENT)                    \
        SYMBOL(PASS, LAYOUT, DTYPE, BLOCK)(const __grid_constant__ PARAMS p) {                     \
        using Gemm = GEMM<T, BLOCK, BLOCK_STEP, BLOCK_STAGES, FIRST, SECOND>;                      \
        static_assert(Gemm::Tile::THREADS == BLOCK_THREADS && Gemm::Tile::SHARED_BYTES == BLOCK_SHARED, \
                      "as in the kernel table");                                                   \
        Gemm::run(p, ring);                                                                        \
    }
#define FMA_KERNEL(PASS, PARAMS, GEMM, LAYOUT, FIRST, SECOND)                       \
    extern "C" __global__ void __launch_bounds__(BLOCK_F32_THREADS)                 \
        SYMBOL(PASS, LAYOUT, f32, BLOCK)(const __grid_constant__ PARAMS p) {        \
        using Gemm = GEMM<BLOCK, FIRST, SECOND>;                                    \
        static_assert(Gemm::Tile::THREADS == BLOCK_F32_THREADS, "as in the kernel table"); \
        __shared__ __align__(16) float buffers[2 * Gemm::Tile::BUFFER_FLOATS];      \
        Gemm::run(p, buffers);                                                      \
    }
#define KERNELS(LAYOUT, FIRST, SECOND)                                                                  \
    MMA_KERNEL(dense, DenseParams, DenseMma, LAYOUT, f16, __half, FIRST, SECOND)                        \
    MMA_KERNEL(dense, DenseParams, DenseMma, LAYOUT, bf16, __nv_bfloat16, FIRST, SECOND)                \
    FMA_KERNEL(dense, DenseParams, DenseFma, LAYOUT, FIRST, SECOND)                                     \
    MMA_KERNEL(sampled, SampledParams, SampledMma, LAYOUT, f16, __half, FIRST, SECOND)                  \
    MMA_KERNEL(sampled, SampledParams, SampledMma, LAYOUT, bf16, __nv_bfloat16, FIRST, SECOND)          \
    FMA_KERNEL(sampled, SampledParams, SampledFma, LAYOUT, FIRST, SECOND)

KERNELS(nn, false, false)
KERNELS(nt, false, true)
KERNELS(tn, true, false)
KERNELS(tt, true, true)

struct JoinParams {
    const float* pieces;
    void* out;
    // (line, first, count, -) of each.
    const uint4* joints;
    size_t m;
    size_t lines;
    uint32_t joints_count;
    uint32_t flags;
    float scale;
    uint32_t padding;
};
static_assert(sizeof(JoinParams) == 56 && offsetof(JoinParams, m) == 24 && offsetof(JoinParams, joints_count) == 40,
              "mirrors JoinParams in src/ops/block_sparse/gpu.rs");

template <typename T>
__device__ __forceinline__ void join(const JoinParams& p) {
    const size_t each = p.m * BLOCK;
    const bool lines_first = p.flags & LINES_FIRST, accumulate = p.flags & TO_ACCUMULATE;
    for_units(each * p.joints_count, [&](size_t unit) {
        const uint4 joint = p.joints[unit / each];
        const size_t within = unit % each;
        const size_t i = lines_first ? within % p.m : within / BLOCK, j = lines_first ? within / p.m : within % BLOCK;
        const size_t line = static_cast<size_t>(joint.x) * BLOCK + j;
        if (line >= p.lines) return;
        float sum = 0.0f;
        for (uint32_t piece = joint.y; piece < joint.y + joint.z; ++piece) sum += p.pieces[piece * each + within];
        const size_t at = lines_first ? line * p.m + i : i * p.lines + line;
        float v[1] = {p.scale * sum};
        if (p.flags & TO_WIDE) {
            write_run(static_cast<float*>(p.out) + at, 1, false, accumulate, v);
        } else {
            write_run(static_cast<T*>(p.out) + at, 1, false, accumulate, v);
        }
    });
}

#define JOIN_KERNEL(DTYPE, T)                                         \
    extern "C" __global__ void __launch_bounds__(BLOCK_JOIN_THREADS)  \
        SYMBOL(join, t256, DTYPE, BLOCK)(const __grid_constant__ JoinParams p) { \
        join<T>(p);                                                   \
    }
JOIN_KERNEL(f32, float)
JOIN_KERNEL(f16, __half)
JOIN_KERNEL(bf16, __nv_bfloat16)
