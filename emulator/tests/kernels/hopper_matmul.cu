// C[m, n] = A[m, k] * B[n, k]^T in bf16 with f32 sums: the Hopper way of doing it.
// Cluster of 2 blocks along m; each block makes 128 x 256 of C. The two share a tile of B: each loads one half of it and
// multicasts that half to both. One warpgroup produces (TMA), two consume (wgmma m64n256k16), three stages between them.
// A row of a stage is 64 bf16 = 128 bytes, swizzled over 128 bytes; C leaves through stmatrix and a TMA store.
#include <cuda.h>
#include <cuda_bf16.h>
#include <stdint.h>

struct Params {
    CUtensorMap a; // [m, k], box 64 x 128
    CUtensorMap b; // [n, k], box 64 x 128
    CUtensorMap c; // [m, n], box 64 x 64
    int k;
};

constexpr int BM = 128, BN = 256, BK = 64, STAGES = 3;
constexpr int A_BYTES = BM * BK * 2, B_BYTES = BN * BK * 2, STAGE_BYTES = A_BYTES + B_BYTES;
constexpr int C_BYTES = BM * BN * 2;

__device__ __forceinline__ uint32_t smem(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void mbarrier_init(uint32_t bar, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

__device__ __forceinline__ void mbarrier_expect(uint32_t bar, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive_at(uint32_t bar, int rank) {
    asm volatile(
        "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}" ::"r"(bar), "r"(rank) : "memory");
}

__device__ __forceinline__ void mbarrier_wait(uint32_t bar, int parity) {
    asm volatile(
        "{\n.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra WAIT;\nDONE:\n}" ::"r"(bar),
        "r"(parity) : "memory");
}

__device__ __forceinline__ void tma_load(uint32_t dst, const CUtensorMap *map, uint32_t bar, int x, int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(dst),
        "l"(map), "r"(bar), "r"(x), "r"(y) : "memory");
}

__device__ __forceinline__ void tma_load_both(uint32_t dst, const CUtensorMap *map, uint32_t bar, int x, int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(dst),
        "l"(map), "r"(bar), "r"(x), "r"(y), "h"((uint16_t)3) : "memory");
}

__device__ __forceinline__ void tma_store(const CUtensorMap *map, uint32_t src, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(src),
                 "r"(x), "r"(y) : "memory");
}

// A tile whose rows are 128 bytes, swizzled; 8 rows are 1024 bytes.
__device__ __forceinline__ uint64_t descriptor(uint32_t address) {
    return (uint64_t)((address & 0x3FFFF) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

#define ROW8(i) "%" #i "0, %" #i "1, %" #i "2, %" #i "3, %" #i "4, %" #i "5, %" #i "6, %" #i "7, %" #i "8, %" #i "9, "

__device__ __forceinline__ void wgmma(float (&d)[128], uint64_t a, uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " ROW8(1) ROW8(2) ROW8(3) ROW8(4) ROW8(5) ROW8(6) ROW8(7) ROW8(8) ROW8(9)
        ROW8(10) ROW8(11) "%120, %121, %122, %123, %124, %125, %126, %127}, %128, %129, 1, 1, 1, 0, 0;"
#define D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
        : D8(0), D8(8), D8(16), D8(24), D8(32), D8(40), D8(48), D8(56), D8(64), D8(72), D8(80), D8(88), D8(96), D8(104), D8(112), D8(120)
        : "l"(a), "l"(b));
}

__device__ __forceinline__ uint32_t pack(float lo, float hi) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384)
    hopper_matmul(const __grid_constant__ Params p) {
    extern __shared__ __align__(1024) unsigned char buf[];
    __shared__ __align__(8) uint64_t full[STAGES], empty[STAGES];
    const uint32_t base = smem(buf);
    const int group = threadIdx.x / 128, lane = threadIdx.x % 32;
    const int rank = blockIdx.x % 2;
    const int m0 = blockIdx.x * BM, n0 = blockIdx.y * BN;
    const int steps = (p.k + BK - 1) / BK;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(smem(full + s), 1);
            mbarrier_init(smem(empty + s), 4); // two consumer groups in each of two blocks
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    // Both blocks have their barriers before either signals the other's.
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");

    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0) {
            for (int i = 0; i < steps; ++i) {
                const int s = i % STAGES, round = i / STAGES;
                mbarrier_wait(smem(empty + s), (round & 1) ^ 1);
                mbarrier_expect(smem(full + s), STAGE_BYTES);
                const uint32_t a = base + s * STAGE_BYTES, b = a + A_BYTES;
                tma_load(a, &p.a, smem(full + s), i * BK, m0);
                tma_load_both(b + rank * (B_BYTES / 2), &p.b, smem(full + s), i * BK, n0 + rank * 128);
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        float d[128];
#pragma unroll
        for (int i = 0; i < 128; ++i) d[i] = 0.0f;
        for (int i = 0; i < steps; ++i) {
            const int s = i % STAGES, round = i / STAGES;
            mbarrier_wait(smem(full + s), round & 1);
            const uint32_t a = base + s * STAGE_BYTES + (group - 1) * 64 * 128, b = base + s * STAGE_BYTES + A_BYTES;
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int kk = 0; kk < BK / 16; ++kk) wgmma(d, descriptor(a + kk * 32), descriptor(b + kk * 32));
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            if (threadIdx.x % 128 < 2) mbarrier_arrive_at(smem(empty + s), threadIdx.x % 128);
        }
        // 64 rows of C in four panels of 64 columns, each row 128 swizzled bytes.
        const uint32_t c = base + STAGES * STAGE_BYTES + (group - 1) * (C_BYTES / 2);
        const int warp = threadIdx.x / 32 % 4;
        const int row = warp * 16 + (lane / 8 % 2) * 8 + lane % 8;
#pragma unroll
        for (int t = 0; t < 32; t += 2) {
            const int panel = t / 8, chunk = t % 8 + lane / 16;
            const uint32_t at = c + panel * 8192 + row * 128 + ((chunk ^ (row % 8)) << 4);
            asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
                         "r"(pack(d[4 * t], d[4 * t + 1])), "r"(pack(d[4 * t + 2], d[4 * t + 3])),
                         "r"(pack(d[4 * t + 4], d[4 * t + 5])), "r"(pack(d[4 * t + 6], d[4 * t + 7])) : "memory");
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); // the TMA store sees what stmatrix wrote
        asm volatile("bar.sync %0, 128;" ::"r"(group) : "memory");   // all four warps of the group have written
        if (threadIdx.x % 128 == 0) {
            for (int panel = 0; panel < 4; ++panel)
                tma_store(&p.c, c + panel * 8192, n0 + panel * 64, m0 + (group - 1) * 64);
            asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;" ::: "memory");
        }
    }
    // Neither block leaves while the other may still signal its barriers.
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
