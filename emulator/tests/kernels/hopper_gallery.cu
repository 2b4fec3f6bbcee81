// Broken kernels for Hopper's asynchronous copies, in the manner of gallery.cu. x holds n floats, y is never written; one block of
// 64 threads.
#include <stdint.h>

#define KERNEL extern "C" __global__ void

#ifdef MENDED
#define BROKEN(...)
#define RIGHT(...) __VA_ARGS__
#else
#define BROKEN(...) __VA_ARGS__
#define RIGHT(...)
#endif

__device__ __forceinline__ uint32_t smem(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void init(uint64_t *bar, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem(bar)), "r"(count) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void expect(uint64_t *bar, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem(bar)), "r"(bytes) : "memory");
}

#define LOAD(dst, src, bytes, bar) \
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(smem(dst)), \
                 "l"(src), "r"(bytes), "r"(smem(bar)) : "memory")

#define STORE(dst, src, bytes) \
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(dst), "r"(smem(src)), "r"(bytes) : "memory")

#define WAIT(bar, parity) \
    asm volatile("{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra AGAIN;\n}" ::"r"( \
                     smem(bar)), "r"(parity) : "memory")

KERNEL wait_left_out(float *x, float *y, int n) {
    __shared__ __align__(128) float s[64];
    __shared__ uint64_t bar;
    if (threadIdx.x == 0) {
        init(&bar, 1);
        expect(&bar, 256);
        LOAD(s, x, 256, &bar);
    }
    __syncthreads();
    RIGHT(WAIT(&bar, 0);)
    y[threadIdx.x] = s[threadIdx.x]; // fault: wait_left_out
    WAIT(&bar, 0);
}

KERNEL stale_parity(float *x, float *y, int n) {
    __shared__ __align__(128) float s[64];
    __shared__ uint64_t bar;
    if (threadIdx.x == 0) {
        init(&bar, 1);
        expect(&bar, 256);
        LOAD(s, x, 256, &bar);
    }
    __syncthreads();
    WAIT(&bar, 1 RIGHT(-1)); // fault: stale_parity
    y[threadIdx.x] = s[threadIdx.x];
}

KERNEL expects_too_much(float *x, float *y, int n) {
    __shared__ __align__(128) float s[64];
    __shared__ uint64_t bar;
    if (threadIdx.x == 0) {
        init(&bar, 1);
        expect(&bar, 256 BROKEN(+16));
        LOAD(s, x, 256, &bar);
    }
    __syncthreads();
    WAIT(&bar, 0); // fault: expects_too_much
    y[threadIdx.x] = s[threadIdx.x];
}

KERNEL expects_too_little(float *x, float *y, int n) {
    __shared__ __align__(128) float s[64];
    __shared__ uint64_t bar;
    if (threadIdx.x == 0) {
        init(&bar, 1);
        expect(&bar, 256 BROKEN(-16));
        LOAD(s, x, 256, &bar); // fault: expects_too_little
    }
    __syncthreads();
    WAIT(&bar, 0); // fault: expects_too_little
    y[threadIdx.x] = s[threadIdx.x];
}

KERNEL barrier_never_initialised(float *x, float *y, int n) {
    __shared__ __align__(128) float s[64];
    __shared__ uint64_t bar;
    RIGHT(if (threadIdx.x == 0) init(&bar, 1);)
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 256;" ::"r"(smem(&bar)) : "memory"); // fault: barrier_never_initialised
        LOAD(s, x, 256, &bar);
    }
    WAIT(&bar, 0); // fault: barrier_never_initialised
    y[threadIdx.x] = s[threadIdx.x];
}

KERNEL destination_misaligned(float *x, float *y, int n) {
    __shared__ __align__(128) float s[72];
    __shared__ uint64_t bar;
    if (threadIdx.x == 0) {
        init(&bar, 1);
        expect(&bar, 256);
        LOAD(s BROKEN(+2), x, 256, &bar); // fault: destination_misaligned
    }
    __syncthreads();
    WAIT(&bar, 0);
    y[threadIdx.x] = s[threadIdx.x];
}

KERNEL stage_loaded_again_too_early(float *x, float *y, int n) {
    __shared__ __align__(128) float s[64];
    __shared__ uint64_t bar[2];
    float sum = 0.0f;
    if (threadIdx.x < 2) init(bar + threadIdx.x, 1);
    __syncthreads();
    for (int i = 0; i < 2; ++i) {
        if (threadIdx.x == 0) {
            expect(bar + i, 256);
            LOAD(s, x, 256, bar + i); // fault: stage_loaded_again_too_early
        }
        WAIT(bar + i, 0);
        sum += s[63 - threadIdx.x]; // fault: stage_loaded_again_too_early
        RIGHT(__syncthreads();)
    }
    y[threadIdx.x] = sum;
}

KERNEL proxy_fence_left_out(float *x, float *y, int n) {
    __shared__ __align__(128) float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    RIGHT(asm volatile("fence.proxy.async.shared::cta;" ::: "memory");)
    __syncthreads();
    if (threadIdx.x == 0) {
        STORE(y, s, 256); // fault: proxy_fence_left_out
        asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;" ::: "memory");
    }
}

KERNEL tile_overwritten_while_read(float *x, float *y, int n) {
    __shared__ __align__(128) float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (threadIdx.x == 0) {
        STORE(y, s, 256);
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
        RIGHT(asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");)
        s[0] = 1.0f; // fault: tile_overwritten_while_read
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
}

KERNEL store_before_the_barrier(float *x, float *y, int n) {
    __shared__ __align__(128) float s[64];
    s[threadIdx.x] = x[threadIdx.x]; // fault: store_before_the_barrier
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    RIGHT(__syncthreads();)
    if (threadIdx.x == 0) {
        STORE(y, s, 256); // fault: store_before_the_barrier
        asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;" ::: "memory");
    }
}

KERNEL block_ends_too_early(float *x, float *y, int n) {
    __shared__ __align__(128) float s[64];
    __shared__ uint64_t bar;
    if (threadIdx.x == 0) {
        init(&bar, 1);
        expect(&bar, 256);
        LOAD(s, x, 256, &bar); // fault: block_ends_too_early
        RIGHT(WAIT(&bar, 0);)
    }
    y[threadIdx.x] = 1.0f;
}
