// A sum of Kronecker products, made of its factors, and the factors' gradients.
//
//   forward   W[(q,o),(p,c)] = Σ_i A_i[q,p] · Σ_ρ L[o,(i,ρ)] · R[(i,ρ),c]
//   dots      D[(q,o),p,(i,ρ)] = Σ_c dW[(q,o),(p,c)] · R[(i,ρ),c]
//   left      dL[o,(i,ρ)] = Σ_qp A_i[q,p] · D        dA_i[q,p] = Σ_oρ L[o,(i,ρ)] · D
//   right     dR[(i,ρ),c] = Σ_qop A_i[q,p] · L[o,(i,ρ)] · dW[(q,o),(p,c)]
//
//                p = 0        p = 1     ..
//           ┌────────────┬────────────┬──
//     q = 0 │ n rows (o) │            │        W is h × h blocks of n × k; row (q, o) and block column p name a part of k elements.
//           │ k cols (c) │            │
//           ├────────────┼────────────┼──
//
// forward and right: one result a thread, neighbours taking neighbouring columns, so that a warp reads and writes whole sectors. dots: a
// warp takes a part, its lanes the columns. left: one result a thread; it is h times smaller than the smallest weight. Every sum has one
// thread or one warp and so one order; all arithmetic is in f32. W is small: limited by the latency of a launch.

#include "tile/elements.cuh"
#include "tile/reduce.cuh"

#ifndef KRONECKER_THREADS
#error "KRONECKER_THREADS comes from the kernel table"
#endif

struct Params {
    const void* rule;
    const void* left;
    const void* right;
    void* w;
    float* dots;
    float* rule_gradient;
    float* left_gradient;
    float* right_gradient;
    size_t n;
    size_t k;
    size_t h;
    size_t r;
};
static_assert(sizeof(Params) == 96 && offsetof(Params, n) == 64, "mirrors gpu.rs");

template <typename T>
__device__ __forceinline__ float at(const void* values, size_t i) {
    return tile::widen(static_cast<const T*>(values)[i]);
}

// A_i[q, p] of the rank `ir` among all h·r.
template <typename T>
__device__ __forceinline__ float rule(const Params& p, size_t ir, size_t q, size_t block) {
    return at<T>(p.rule, (ir / p.r * p.h + q) * p.h + block);
}

template <typename T>
__device__ __forceinline__ void forward(const Params& p) {
    const size_t ranks = p.h * p.r, width = p.h * p.k;
    tile::for_units(p.h * p.n * width, [&](size_t e) {
        const size_t row = e / width, col = e % width;
        const size_t q = row / p.n, o = row % p.n, block = col / p.k, c = col % p.k;
        float sum = 0.0f;
        for (size_t ir = 0; ir < ranks; ++ir) {
            sum += rule<T>(p, ir, q, block) * at<T>(p.left, o * ranks + ir) * at<T>(p.right, ir * p.k + c);
        }
        static_cast<T*>(p.w)[e] = tile::narrow<T>(sum);
    });
}

template <typename T>
__device__ __forceinline__ void dots(const Params& p) {
    const size_t ranks = p.h * p.r, parts = p.h * p.n * p.h;
    const size_t warps = static_cast<size_t>(gridDim.x) * (KRONECKER_THREADS / 32);
    // All lanes of a warp take the same parts, and so come to every shuffle.
    for (size_t part = (static_cast<size_t>(blockIdx.x) * KRONECKER_THREADS + threadIdx.x) / 32; part < parts; part += warps) {
        for (size_t ir = 0; ir < ranks; ++ir) {
            float sum = 0.0f;
            for (size_t c = threadIdx.x % 32; c < p.k; c += 32) sum += at<T>(p.w, part * p.k + c) * at<T>(p.right, ir * p.k + c);
            sum = tile::warp_sum(sum);
            if (threadIdx.x % 32 == 0) p.dots[part * ranks + ir] = sum;
        }
    }
}

template <typename T>
__device__ __forceinline__ void left(const Params& p) {
    const size_t ranks = p.h * p.r, lefts = p.n * ranks;
    tile::for_units(lefts + p.h * p.h * p.h, [&](size_t e) {
        float sum = 0.0f;
        if (e < lefts) {
            const size_t o = e / ranks, ir = e % ranks;
            for (size_t q = 0; q < p.h; ++q) {
                for (size_t block = 0; block < p.h; ++block) {
                    sum += rule<T>(p, ir, q, block) * p.dots[((q * p.n + o) * p.h + block) * ranks + ir];
                }
            }
            p.left_gradient[e] = sum;
            return;
        }
        const size_t a = e - lefts, i = a / p.h / p.h, q = a / p.h % p.h, block = a % p.h;
        for (size_t o = 0; o < p.n; ++o) {
            for (size_t ir = i * p.r; ir < (i + 1) * p.r; ++ir) {
                sum += at<T>(p.left, o * ranks + ir) * p.dots[((q * p.n + o) * p.h + block) * ranks + ir];
            }
        }
        p.rule_gradient[a] = sum;
    });
}

template <typename T>
__device__ __forceinline__ void right(const Params& p) {
    const size_t ranks = p.h * p.r;
    tile::for_units(ranks * p.k, [&](size_t e) {
        const size_t ir = e / p.k, c = e % p.k;
        float sum = 0.0f;
        for (size_t row = 0; row < p.h * p.n; ++row) {
            const float l = at<T>(p.left, row % p.n * ranks + ir);
            for (size_t block = 0; block < p.h; ++block) {
                sum += rule<T>(p, ir, row / p.n, block) * l * at<T>(p.w, (row * p.h + block) * p.k + c);
            }
        }
        p.right_gradient[e] = sum;
    });
}

#define KRONECKER_PASS(PASS, BODY, NAME, T, TILE)                                     \
    extern "C" __global__ void __launch_bounds__(KRONECKER_THREADS)                   \
        kronecker_##PASS##_##NAME##_##TILE##_sm80(const __grid_constant__ Params p) { \
        BODY<T>(p);                                                                   \
    }

#define KRONECKER(NAME, T)                     \
    KRONECKER_PASS(fwd, forward, NAME, T, t256) \
    KRONECKER_PASS(dots, dots, NAME, T, w32)    \
    KRONECKER_PASS(left, left, NAME, T, t256)   \
    KRONECKER_PASS(right, right, NAME, T, t256)

KRONECKER(f32, float)
KRONECKER(f16, __half)
KRONECKER(bf16, __nv_bfloat16)
