// One kernel for each thing that compiled CUDA does besides arithmetic. Each writes one word for each thread.
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#include <stdio.h>

#define KERNEL extern "C" __global__ void

__constant__ int table[8] = {10, 20, 30, 40, 50, 60, 70, 80};
__device__ int counter = 100;
__device__ uint32_t results[64];

__noinline__ __device__ float dot_local(float x, int n, const float *w) {
    float b[40];
    for (int i = 0; i < n; ++i) b[i] = x * i;
    float s = 0;
    for (int i = n - 1; i >= 0; --i) s += b[(i * 3) % n] * w[i];
    return s;
}

struct Pair {
    float4 a;
    int b;
};

__noinline__ __device__ Pair bump(Pair p, double d) {
    p.a.x += (float)d;
    p.a.w *= 2.0f;
    p.b++;
    return p;
}

__noinline__ __device__ int fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

KERNEL calls(float *out, const float *w, int n) {
    const int i = threadIdx.x;
    Pair p;
    p.a = make_float4(i, 1, 2, 3);
    p.b = i;
    if (i % 2) p = bump(p, 0.5);
    out[i] = dot_local((float)i, n, w) + p.a.x + p.a.w + p.b + fib(i % 8);
}

KERNEL switches(int *out, const int *in, int n) {
    int v = in[threadIdx.x];
    switch (v) {
    case 0: v = 5; break;
    case 1: v = n * 3; break;
    case 2: v = v * v + n; break;
    case 3: v = table[n & 7]; break;
    case 4: v = -n; break;
    case 5: v = n << 3; break;
    default: v = 99;
    }
    out[threadIdx.x] = v;
}

KERNEL loops(int *out, const int *in, int n) {
    int x = in[threadIdx.x] + 1, steps = 0;
    while (x != 1) { // every lane leaves at its own time
        x = (x & 1) ? 3 * x + 1 : x >> 1;
        ++steps;
        if (steps > 1000) break;
    }
    out[threadIdx.x] = steps + __syncthreads_count(steps > n);
}

KERNEL shuffles(int *out, const int *in, int n) {
    const int t = threadIdx.x;
    int v = in[t];
    int a = __shfl_xor_sync(~0u, v, 5), b = __shfl_up_sync(~0u, v, 3), c = __shfl_down_sync(~0u, v, 2, 8);
    int d = __shfl_sync(~0u, v, t + 1, 16);
    int e = __reduce_add_sync(~0u, v) + __popc(__ballot_sync(~0u, v & 1));
    int f = __any_sync(~0u, v == n) + 2 * __all_sync(~0u, v < 1000);
    int g = __popc(__match_any_sync(~0u, v & 3));
    auto tile = cooperative_groups::tiled_partition<8>(cooperative_groups::this_thread_block());
    int h = tile.shfl_xor(v, 1) * 7;
    if (t & 1) h += __popc(__activemask());
    out[t] = a + 3 * b + 5 * c + 7 * d + 11 * e + 13 * f + 17 * g + h;
}

KERNEL atomics(int *out, const int *in, int n) {
    __shared__ int s[4];
    const int t = threadIdx.x;
    if (t < 4) s[t] = t == 2 ? 1 << 20 : 0;
    __syncthreads();
    atomicAdd(s, in[t]);
    atomicMax(s + 1, in[t]);
    atomicMin(s + 2, in[t]);
    atomicXor(s + 3, in[t]);
    atomicAdd(&counter, 1);
    __syncthreads();
    out[t] = s[t & 3];
    results[t] = t;
}

KERNEL halves(uint32_t *out, const float *in, int n) {
    const float v = in[threadIdx.x];
    __half h = __hfma(__float2half(v), __float2half(2.0f), __float2half(0.5f));
    __nv_bfloat16 b = __float2bfloat16(v) * __float2bfloat16(3.0f);
    __half2 p = __hmax2(__floats2half2_rn(v, -v), __floats2half2_rn(0.0f, 0.0f));
    out[threadIdx.x] = __half_as_ushort(h) + ((uint32_t)__bfloat16_as_ushort(b) << 16) ^ *(uint32_t *)&p;
}

KERNEL mathematics(float *out, const float *in, int n) {
    const float v = in[threadIdx.x] + 1.5f;
    out[threadIdx.x] = expf(v) + logf(v) + tanhf(v) + sqrtf(v) + rsqrtf(v) + powf(v, 1.5f) + v / 3.0f + erff(v) + sinf(v) +
                       cosf(v) + floorf(v) + rintf(v) + fmodf(v, 0.7f) + (float)(exp((double)v) / sqrt((double)v));
}

// The last block to finish adds up what all have written: fence, counter, fence.
KERNEL last_block(int *out, int *partial, int n) {
    __shared__ bool last;
    partial[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x + threadIdx.x;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd((unsigned *)out + 64, 1) == gridDim.x - 1;
    __syncthreads();
    if (last) {
        __threadfence();
        int sum = 0;
        for (int b = 0; b < gridDim.x; ++b) sum += partial[b * blockDim.x + threadIdx.x];
        out[threadIdx.x] = sum;
    }
}

KERNEL prints(int *out, const int *in, int n) {
    if (threadIdx.x == 3) printf("block %d has %5.2f and %s, %08x|%-4d|%lld\n", blockIdx.x, 1.5, "words", 48879, 7, -5ll);
    out[threadIdx.x] = 0;
}
