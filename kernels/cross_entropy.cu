// Cross-entropy from logits x [m, c]:   L_i = ln Σ_j exp(x_ij),   loss = 1/N · Σ_i [(1 − ε)(L_i − x_i,y) + ε/c · Σ_j (L_i − x_ij)].
//
// rows: a warp (short rows) or a block (long ones) takes a row at a time:
//         thread 0   thread 1   ..   thread 31   thread 0   ..     a unit of N logits each: 16 bytes, or one
//       Each thread keeps the maximum of what it has seen and Σ exp(x − maximum), so that the row is read once; the threads' parts
//       are put together in a fixed order. Leaves L_i and the row's loss.
// sum:  one block adds up the rows' losses, strided by thread, then by thread number, and counts the targets if it has to.
// bwd:  dx_ij = dloss/N · (exp(x_ij − L_i) − (1 − ε)[j = y_i] − ε/c), with the rows' mapping.
//
// A target out of range gives NaN and is never used as an index. Limited by reading (and in bwd writing) the logits.

#include "tile/elements.cuh"
#include "tile/gradient.cuh"
#include "tile/reduce.cuh"

#ifndef CROSS_ENTROPY_THREADS
#error "CROSS_ENTROPY_THREADS comes from the kernel table"
#endif

struct Params {
    const void* logits;
    const void* targets;
    float* lse;
    float* losses;
    float* loss;
    float* inverse;
    const float* dy;
    void* dx;
    size_t m;
    size_t c;
    int64_t ignore_index;
    float smoothing;
    // 1 / denominator where the caller gave one, else 0: then the targets are counted.
    float fixed_inverse;
    uint32_t may_ignore;
    uint32_t wide_targets;
    uint32_t vector;
    uint32_t dx_flags;
};
static_assert(sizeof(Params) == 112 && offsetof(Params, smoothing) == 88, "mirrors gpu.rs");

constexpr int THREADS = CROSS_ENTROPY_THREADS;

struct Class {
    size_t index;
    bool ignored;
    bool valid;
};

__device__ __forceinline__ Class class_of(const Params& p, size_t row) {
    const int64_t y = p.wide_targets ? static_cast<const int64_t*>(p.targets)[row]
                                     : static_cast<int64_t>(static_cast<const int32_t*>(p.targets)[row]);
    const bool valid = y >= 0 && static_cast<size_t>(y) < p.c;
    return {valid ? static_cast<size_t>(y) : 0, p.may_ignore && y == p.ignore_index, valid};
}

// The maximum over a warp or the block. NaN is passed over: the sums that follow carry it.
template <int GROUP>
__device__ __forceinline__ float group_max(float v, float* scratch) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(0xFFFFFFFFu, v, offset));
    if constexpr (GROUP > 32) {
        // The scratch of the reduction before is read by now.
        __syncthreads();
        if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
        // All warps' maxima are written.
        __syncthreads();
#pragma unroll
        for (int w = 0; w < GROUP / 32; ++w) v = fmaxf(v, scratch[w]);
    }
    return v;
}

// One thread's part of a row's log-sum-exp.
struct Part {
    float largest = -INFINITY;
    float sum = 0.0f;
    float total = 0.0f;

    template <int N>
    __device__ __forceinline__ void add(const float (&x)[N]) {
        float grown = largest;
#pragma unroll
        for (int i = 0; i < N; ++i) grown = fmaxf(grown, x[i]);
        const float base = grown == -INFINITY ? 0.0f : grown;
        sum *= expf(largest - base);
        largest = grown;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            sum += expf(x[i] - base);
            total += x[i];
        }
    }
};

template <typename T, int GROUP>
__device__ __forceinline__ void rows(const Params& p) {
    __shared__ float scratch[THREADS / 32];
    const int lane = threadIdx.x % GROUP;
    const size_t groups = static_cast<size_t>(gridDim.x) * (THREADS / GROUP);
    const size_t group = static_cast<size_t>(blockIdx.x) * (THREADS / GROUP) + threadIdx.x / GROUP;
    for (size_t row = group; row < p.m; row += groups) {
        // One target for the whole group: its threads part from the others' path together.
        const Class y = class_of(p, row);
        if (y.ignored) {
            if (lane == 0) p.losses[row] = p.lse[row] = 0.0f;
            continue;
        }
        const T* x = static_cast<const T*>(p.logits) + row * p.c;
        Part part;
        if (p.vector) {
            constexpr int N = tile::PACK<T>;
            for (size_t j = static_cast<size_t>(lane) * N; j < p.c; j += GROUP * N) {
                float v[N];
                tile::load<T, N>(x + j, v);
                part.add(v);
            }
        } else {
            for (size_t j = lane; j < p.c; j += GROUP) {
                float v[1];
                tile::load<T, 1>(x + j, v);
                part.add(v);
            }
        }
        const float largest = group_max<GROUP>(part.largest, scratch);
        const float base = largest == -INFINITY ? 0.0f : largest;
        const float log_sum = logf(tile::group_sum<GROUP>(part.sum * expf(part.largest - base), scratch));
        float loss = log_sum - (tile::widen(x[y.index]) - base);
        if (p.smoothing > 0.0f) {
            const float mean = tile::group_sum<GROUP>(part.total, scratch) / static_cast<float>(p.c);
            loss = (1.0f - p.smoothing) * loss + p.smoothing * (log_sum - (mean - base));
        }
        if (lane == 0) {
            p.lse[row] = base + log_sum;
            p.losses[row] = y.valid ? loss : NAN;
        }
    }
}

__device__ __forceinline__ void sum(const Params& p) {
    __shared__ float scratch[THREADS / 32];
    __shared__ size_t counts[THREADS];
    float mine = 0.0f;
    size_t count = 0;
    for (size_t row = threadIdx.x; row < p.m; row += THREADS) {
        mine += p.losses[row];
        if (p.fixed_inverse == 0.0f) count += !class_of(p, row).ignored;
    }
    counts[threadIdx.x] = count;
    // The barriers of this sum also order the counts before thread 0 reads them.
    const float total = tile::block_sum<THREADS / 32>(mine, scratch);
    if (threadIdx.x == 0) {
        float inverse = p.fixed_inverse;
        if (inverse == 0.0f) {
            size_t n = 0;
            for (int i = 0; i < THREADS; ++i) n += counts[i];
            inverse = n == 0 ? 0.0f : 1.0f / static_cast<float>(n);
        }
        *p.inverse = inverse;
        *p.loss = total * inverse;
    }
}

template <typename T, int GROUP>
__device__ __forceinline__ void backward(const Params& p) {
    const int lane = threadIdx.x % GROUP;
    const size_t groups = static_cast<size_t>(gridDim.x) * (THREADS / GROUP);
    const size_t group = static_cast<size_t>(blockIdx.x) * (THREADS / GROUP) + threadIdx.x / GROUP;
    const float scale = *p.dy * *p.inverse;
    const float hit = 1.0f - p.smoothing, each = p.smoothing / static_cast<float>(p.c);
    const bool packed = p.vector && (sizeof(T) == 4 || !(p.dx_flags & tile::WIDE));
    for (size_t row = group; row < p.m; row += groups) {
        const Class y = class_of(p, row);
        const T* x = static_cast<const T*>(p.logits) + row * p.c;
        const float lse = p.lse[row];
        const auto slope = [&](float x, size_t j) {
            if (y.ignored) return 0.0f;
            if (!y.valid) return NAN;
            return scale * (expf(x - lse) - each - (j == y.index ? hit : 0.0f));
        };
        if (packed) {
            constexpr int N = tile::PACK<T>;
            for (size_t j = static_cast<size_t>(lane) * N; j < p.c; j += GROUP * N) {
                T* to = static_cast<T*>(p.dx) + row * p.c + j;
                float v[N], old[N] = {};
                tile::load<T, N>(x + j, v);
                if (p.dx_flags & tile::ACCUMULATE) tile::load<T, N>(to, old);
#pragma unroll
                for (int i = 0; i < N; ++i) v[i] = old[i] + slope(v[i], j + i);
                tile::store<T, N>(to, v);
            }
        } else {
            for (size_t j = lane; j < p.c; j += GROUP)
                tile::put<T>(p.dx, row * p.c + j, slope(tile::widen(x[j]), j), p.dx_flags);
        }
    }
}

#define KERNEL(NAME, BODY)                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ Params p) { BODY; }

KERNEL(cross_entropy_rows_f32_w32_sm80, (rows<float, 32>(p)))
KERNEL(cross_entropy_rows_f16_w32_sm80, (rows<__half, 32>(p)))
KERNEL(cross_entropy_rows_bf16_w32_sm80, (rows<__nv_bfloat16, 32>(p)))
KERNEL(cross_entropy_rows_f32_t256_sm80, (rows<float, THREADS>(p)))
KERNEL(cross_entropy_rows_f16_t256_sm80, (rows<__half, THREADS>(p)))
KERNEL(cross_entropy_rows_bf16_t256_sm80, (rows<__nv_bfloat16, THREADS>(p)))
KERNEL(cross_entropy_sum_f32_t256_sm80, sum(p))
KERNEL(cross_entropy_bwd_f32_w32_sm80, (backward<float, 32>(p)))
KERNEL(cross_entropy_bwd_f16_w32_sm80, (backward<__half, 32>(p)))
KERNEL(cross_entropy_bwd_bf16_w32_sm80, (backward<__nv_bfloat16, 32>(p)))
KERNEL(cross_entropy_bwd_f32_t256_sm80, (backward<float, THREADS>(p)))
KERNEL(cross_entropy_bwd_f16_t256_sm80, (backward<__half, THREADS>(p)))
KERNEL(cross_entropy_bwd_bf16_t256_sm80, (backward<__nv_bfloat16, THREADS>(p)))
