// C[m, n] = A[m, k] * B[n, k]^T, bf16 operands, f32 result: the portable tensor-core kernel.
// One block of 4 warps makes a 64 x 64 tile of C, k in steps of 32, three stages of cp.async.
// A row of a stage is 32 bf16 = 64 bytes = 4 chunks of 16 bytes; chunk c of row r lies at c ^ ((r >> 1) & 3),
// so that the 8 rows of one ldmatrix fall into 8 different bank groups.
#include <cuda_bf16.h>
#include <stdint.h>

struct Params {
    const __nv_bfloat16 *a; // [m, k]
    const __nv_bfloat16 *b; // [n, k]
    float *c;               // [m, n]
    int m, n, k;            // k a multiple of 8
};

constexpr int BM = 64, BN = 64, BK = 32, STAGES = 3;
constexpr int STAGE_BYTES = (BM + BN) * BK * 2;

__device__ __forceinline__ uint32_t smem(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void cp_async16(uint32_t dst, const void *src, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
}

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(addr) : "memory");
}

__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t swizzle(int row, int chunk) { return row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4); }

__device__ __forceinline__ void load_tile(uint32_t dst, const __nv_bfloat16 *src, int rows, int row0, int k0, int k) {
    for (int i = threadIdx.x; i < 64 * 4; i += 128) {
        const int r = i >> 2, c = i & 3;
        const bool in = row0 + r < rows && k0 + c * 8 < k;
        const __nv_bfloat16 *p = in ? src + (long long)(row0 + r) * k + k0 + c * 8 : src;
        cp_async16(dst + swizzle(r, c), p, in ? 16 : 0);
    }
}

extern "C" __global__ void __launch_bounds__(128) mma_matmul(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char buf[];
    const uint32_t base = smem(buf);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int wm = (warp >> 1) * 32, wn = (warp & 1) * 32;
    const int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN;
    const int steps = (p.k + BK - 1) / BK;
    float acc[2][4][4] = {};
    auto issue = [&](int step) {
        if (step < steps) {
            const uint32_t s = base + (step % STAGES) * STAGE_BYTES;
            load_tile(s, p.a, p.m, m0, step * BK, p.k);
            load_tile(s + BM * BK * 2, p.b, p.n, n0, step * BK, p.k);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    for (int s = 0; s < STAGES - 1; ++s) issue(s);
    for (int step = 0; step < steps; ++step) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads(); // every thread's copies of this stage have landed, and the stage refilled below was read
        issue(step + STAGES - 1);
        const uint32_t sa = base + (step % STAGES) * STAGE_BYTES, sb = sa + BM * BK * 2;
#pragma unroll
        for (int kk = 0; kk < BK / 16; ++kk) {
            uint32_t a[2][4], b[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                ldmatrix_x4(a[i], sa + swizzle(wm + i * 16 + (lane & 15), kk * 2 + (lane >> 4)));
                ldmatrix_x4(b[i], sb + swizzle(wn + i * 16 + (lane & 7) + ((lane >> 4) << 3), kk * 2 + ((lane >> 3) & 1)));
            }
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) mma_bf16(acc[i][j], a[i], b[j >> 1][(j & 1) * 2], b[j >> 1][(j & 1) * 2 + 1]);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int row = m0 + wm + i * 16 + (lane >> 2) + (e >> 1) * 8;
                const int col = n0 + wn + j * 8 + (lane & 3) * 2 + (e & 1);
                if (row < p.m && col < p.n) p.c[(long long)row * p.n + col] = acc[i][j][e];
            }
}
