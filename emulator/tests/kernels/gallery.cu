// One broken kernel for each fault, and, with -DMENDED, its right twin. The line that a fault must name carries
// `fault: <kernel>`; of two racing accesses either may be named. Every kernel takes the same parameters: x of n floats, y never
// written.
#include <assert.h>
#include <stdint.h>

#define KERNEL extern "C" __global__ void

#ifdef MENDED
#define BROKEN(...)
#define RIGHT(...) __VA_ARGS__
#else
#define BROKEN(...) __VA_ARGS__
#define RIGHT(...)
#endif

KERNEL oob_read(float *x, float *y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float v = x[i BROKEN(+1)]; // fault: oob_read
    if (v == 123.0f) x[i] = 0.0f;
}

KERNEL tail_off_by_one(float *x, float *y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n BROKEN(+1)) x[i] *= 2.0f; // fault: tail_off_by_one
}

KERNEL reduction_off_by_one(float *x, float *y, int n) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    for (int w = 32; w > 0; w /= 2) {
        if (threadIdx.x < w) s[threadIdx.x] += s[threadIdx.x + w BROKEN(+1)]; // fault: reduction_off_by_one
        __syncthreads();
    }
    if (threadIdx.x == 0) x[0] = s[0];
}

KERNEL oob_write(float *x, float *y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n - 1) x[i BROKEN(+2)] = 1.0f; // fault: oob_write
}

KERNEL null_pointer(float *x, float *y, int n) {
    float *p = BROKEN((float *)(unsigned long long)(n & 63)) RIGHT(x);
    p[threadIdx.x] = 1.0f; // fault: null_pointer
}

KERNEL misaligned(float *x, float *y, int n) {
    float4 v = *(float4 *)(x + n % 2 BROKEN(+1)); // fault: misaligned
    y[threadIdx.x] = v.x + v.w;
}

KERNEL uninit_global(float *x, float *y, int n) {
    x[threadIdx.x] = BROKEN(y) RIGHT(x)[threadIdx.x] + 1.0f; // fault: uninit_global
}

KERNEL uninit_shared(float *x, float *y, int n) {
    __shared__ float s[64];
    if (threadIdx.x < 63 RIGHT(+1)) s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = s[threadIdx.x]; // fault: uninit_shared
}

KERNEL uninit_register(float *x, float *y, int n) {
    uint32_t v;
    asm volatile("{ .reg .b32 t; " RIGHT("mov.u32 t, 0; ") "add.u32 %0, t, 1; }" : "=r"(v));
    x[threadIdx.x] = v; // fault: uninit_register
}

KERNEL uninit_local(float *x, float *y, int n) {
    float a[64];
    for (int i = 0; i < n BROKEN(/ 2); ++i) a[(i * 7) % 64] = x[i];
    y[threadIdx.x] = a[n % 64 + 24]; // fault: uninit_local
}

KERNEL race_shared(float *x, float *y, int n) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];      // fault: race_shared
    RIGHT(__syncthreads();)
    x[threadIdx.x] = s[threadIdx.x ^ 32]; // fault: race_shared
}

KERNEL race_shared_reuse(float *x, float *y, int n) {
    __shared__ float s[64];
    float sum = 0.0f;
    for (int i = 0; i < 3; ++i) {
        s[threadIdx.x] = x[threadIdx.x] + i; // fault: race_shared_reuse
        __syncthreads();
        sum += s[threadIdx.x ^ 32]; // fault: race_shared_reuse
        RIGHT(__syncthreads();)
    }
    x[threadIdx.x] = sum;
}

KERNEL race_global_warps(float *x, float *y, int n) {
    x[threadIdx.x] = 1.0f;               // fault: race_global_warps
    y[threadIdx.x] = x[threadIdx.x BROKEN(^ 32)]; // fault: race_global_warps
}

KERNEL race_global_blocks(float *x, float *y, int n) {
    RIGHT(if (blockIdx.x == 0)) x[threadIdx.x] = (float)blockIdx.x; // fault: race_global_blocks
}

KERNEL race_global_read(float *x, float *y, int n) {
    y[blockIdx.x * 64 + threadIdx.x] = x[threadIdx.x]; // fault: race_global_read
    if (blockIdx.x == 1) BROKEN(x) RIGHT((y + 128))[threadIdx.x] = 3.0f; // fault: race_global_read
}

KERNEL atomic_and_plain(float *x, float *y, int n) {
    __shared__ int c;
    if (threadIdx.x == 0) c = 0;
    __syncthreads();
    atomicAdd(&c, 1);             // fault: atomic_and_plain
    RIGHT(__syncthreads();)
    x[threadIdx.x] = (float)c;    // fault: atomic_and_plain
}

KERNEL divergent_barrier(float *x, float *y, int n) {
    if (threadIdx.x BROKEN(% 32) < 16 RIGHT(*4)) {
        __syncthreads(); // fault: divergent_barrier
        x[threadIdx.x] = 2.0f;
    } else {
        __syncthreads(); // fault: divergent_barrier
        x[threadIdx.x] = 3.0f;
    }
}

KERNEL barrier_deadlock(float *x, float *y, int n) {
    if (threadIdx.x < 32 RIGHT(*2))
        asm volatile("bar.sync 1, 64;"); // fault: barrier_deadlock
    x[threadIdx.x] = 1.0f;
}

KERNEL barrier_mismatch(float *x, float *y, int n) {
    if (threadIdx.x < 32)
        asm volatile("bar.sync 1, 64;"); // fault: barrier_mismatch
    else
        asm volatile("bar.sync 1, " BROKEN("96;") RIGHT("64;")); // fault: barrier_mismatch
    x[threadIdx.x] = 1.0f;
}

KERNEL barrier_split(float *x, float *y, int n) {
    if (threadIdx.x < 32)
        asm volatile("bar.sync 1;"); // fault: barrier_split
    else
        asm volatile("bar.sync " BROKEN("2;") RIGHT("1;")); // fault: barrier_split
    x[threadIdx.x] = 1.0f;
}

__device__ __forceinline__ void copy16(void *dst, const void *src) {
    uint32_t s = (uint32_t)__cvta_generic_to_shared(dst);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(s), "l"(src) : "memory"); // fault: async_stage_reused
}

KERNEL async_no_wait(float *x, float *y, int n) {
    __shared__ __align__(16) float s[256];
    copy16(s + 4 * threadIdx.x, x + 4 * threadIdx.x);
    asm volatile("cp.async.commit_group;" ::: "memory");
    RIGHT(asm volatile("cp.async.wait_group 0;" ::: "memory");)
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x]; // fault: async_no_wait
}

KERNEL async_wrong_count(float *x, float *y, int n) {
    __shared__ __align__(16) float s[2][256];
    for (int i = 0; i < 2; ++i) {
        copy16(s[i] + 4 * threadIdx.x, x + 4 * threadIdx.x);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    asm volatile("cp.async.wait_group " BROKEN("1;") RIGHT("0;") ::: "memory");
    __syncthreads();
    y[threadIdx.x] = s[0][threadIdx.x];
    y[threadIdx.x] += s[1][threadIdx.x]; // fault: async_wrong_count
}

KERNEL async_no_barrier(float *x, float *y, int n) {
    __shared__ __align__(16) float s[256];
    copy16(s + 4 * threadIdx.x, x + 4 * threadIdx.x); // fault: async_no_barrier
    asm volatile("cp.async.wait_all;" ::: "memory"); // fault: async_no_barrier
    RIGHT(__syncthreads();)
    y[threadIdx.x] = s[255 - threadIdx.x];           // fault: async_no_barrier
}

KERNEL async_stage_reused(float *x, float *y, int n) {
    __shared__ __align__(16) float s[256];
    float sum = 0.0f;
    for (int i = 0; i < 2; ++i) {
        copy16(s + 4 * threadIdx.x, x + 4 * threadIdx.x);
        asm volatile("cp.async.wait_all;" ::: "memory");
        __syncthreads();
        sum += s[255 - threadIdx.x]; // fault: async_stage_reused
        RIGHT(__syncthreads();)
    }
    y[threadIdx.x] = sum;
}

KERNEL shuffle_divergent(float *x, float *y, int n) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 32 < 16)
        v = __shfl_sync(0xFFFFu RIGHT(&) BROKEN(|) 0xFFFFFFFFu, v, 3) + 1.0f; // fault: shuffle_divergent
    else
        v = __shfl_sync(0xFFFF0000u RIGHT(&) BROKEN(|) 0xFFFFFFFFu, v, 20); // fault: shuffle_divergent
    x[threadIdx.x] = v;
}

KERNEL shuffle_own_mask(float *x, float *y, int n) {
    float v = x[threadIdx.x];
    v = __shfl_sync(0xFFFF0000u RIGHT(| 0xFFFFu), v, 20); // fault: shuffle_own_mask
    x[threadIdx.x] = v;
}

KERNEL shuffle_absent(float *x, float *y, int n) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 32 < 16) v = __shfl_sync(0x0000FFFFu, v, 20 RIGHT(-16)); // fault: shuffle_absent
    x[threadIdx.x] = v;
}

KERNEL trapped(float *x, float *y, int n) {
    if (x[threadIdx.x] == 5.0f RIGHT(+1.0f)) __trap(); // fault: trapped
}

KERNEL asserted(float *x, float *y, int n) {
    assert(x[threadIdx.x] != 5.0f RIGHT(+1.0f)); // fault: asserted
}

KERNEL shared_oob(float *x, float *y, int n) {
    extern __shared__ float dynamic[];
    dynamic[threadIdx.x BROKEN(+n)] = 1.0f; // fault: shared_oob
}

KERNEL ldmatrix_misaligned(float *x, float *y, int n) {
    __shared__ __align__(16) float s[256];
    for (int i = 0; i < 4; ++i) s[4 * threadIdx.x + i] = 1.0f;
    __syncthreads();
    uint32_t a = (uint32_t)__cvta_generic_to_shared(s) + (threadIdx.x % 8) * (16 BROKEN(+8)), r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(a)); // fault: ldmatrix_misaligned
    x[threadIdx.x] = r;
}

KERNEL hang(float *x, float *y, int n) {
    volatile float *v = x;
    while (v[0] < 1000.0f RIGHT(-999.0f)) { // fault: hang
    }
}

KERNEL flag_without_fence(float *x, float *y, int n) {
    volatile int *flag = (volatile int *)(x + 63);
    if (blockIdx.x == 0) {
        if (threadIdx.x == 0) {
            x[0] = 7.0f; // fault: flag_without_fence
            RIGHT(__threadfence();)
            *flag = 1;
        }
    } else if (threadIdx.x == 0) {
        while (*flag != 1) {
        }
        RIGHT(__threadfence();)
        y[0] = x[0]; // fault: flag_without_fence
    }
}

__device__ __noinline__ int deep(int n, float *x) {
    volatile int big[1024];
    big[n % 1024] = n;
    return n <= 0 ? 0 : deep(n - 1, x) + big[n % 1024]; // fault: stack
}

KERNEL stack(float *x, float *y, int n) {
    x[threadIdx.x] = deep(BROKEN(100000) RIGHT(3), x);
}
