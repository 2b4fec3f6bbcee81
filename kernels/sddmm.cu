// Products of node pairs on the edges of a graph:
//
//   out[e, h] (+)= Σ_{c in head h} a[i, c] · b[j, c]       for edge e from j to i; over the degree of i for a mean
//
// With arg, only columns where arg[i, c] is the number of e count: the gradient of the weights of a maximum.
//
//   piece of work: one chunk of edges (tile/csr.cuh) x one head; a[i] stays while its edges go by, four at a time (tile/pairs.cuh)
//
// Limited by gathering rows of b. No shared memory, no atomics.

#include "tile/gradient.cuh"
#include "tile/pairs.cuh"

#ifndef SDDMM_THREADS
#error "SDDMM_THREADS comes from the kernel table"
#endif

struct Params {
    tile::Graph graph;
    const void* a;
    const void* b;
    const void* arg;
    void* out;
    size_t f;
    size_t d;
    uint32_t heads;
    uint32_t lanes;
    uint32_t target;
    uint32_t flags;
};
static_assert(sizeof(Params) == 120 && offsetof(Params, a) == 56 && offsetof(Params, heads) == 104, "mirrors gpu.rs");

enum Flag : uint32_t { VECTORS = 1, MEAN = 2 };

constexpr int AHEAD = 4;

template <typename T, bool VECTOR>
struct Dots {
    const Params& p;
    size_t head;
    size_t row;
    float by;
    tile::PairDots<T, VECTOR> pairs;

    __device__ __forceinline__ Dots(const Params& p, const tile::Team& team, size_t head)
        : p(p), head(head), pairs(team, head * p.d, p.d) {}

    __device__ __forceinline__ void begin(size_t i) {
        row = i;
        by = p.flags & MEAN ? static_cast<float>(tile::degree_of(p.graph, i)) : 1.0f;
        pairs.hold(static_cast<const T*>(p.a) + row * p.f);
    }

    template <int COUNT>
    __device__ __forceinline__ void multiply(size_t e) {
        const T* others[COUNT];
        float sums[COUNT];
#pragma unroll
        for (int k = 0; k < COUNT; ++k) others[k] = static_cast<const T*>(p.b) + tile::gathered(p.graph, e + k) * p.f;
        if (p.arg == nullptr) {
            pairs.multiply(others, sums, tile::Every{});
        } else {
            pairs.multiply(others, sums, [&](int k, const auto& part, int i) {
                return part.inside(i) &&
                       tile::integer(p.arg, p.graph.wide_offsets, row * p.f + part.column(i)) == e + k;
            });
        }
#pragma unroll
        for (int k = 0; k < COUNT; ++k)
            if (pairs.team.lane == 0) tile::put<T>(p.out, (e + k) * p.heads + head, sums[k] / by, p.target);
    }

    __device__ __forceinline__ void edges(size_t e, size_t last) {
        for (; e + AHEAD <= last; e += AHEAD) multiply<AHEAD>(e);
        for (; e < last; ++e) multiply<1>(e);
    }

    __device__ __forceinline__ void finish(size_t) {}
    __device__ __forceinline__ void leave(size_t, size_t) {}
};

template <typename T, bool VECTOR>
__device__ __forceinline__ void run(const Params& p) {
    const tile::Team team(p.lanes);
    tile::for_teams(team, tile::chunks_of(p.graph) * p.heads, [&](size_t work) {
        Dots<T, VECTOR> dots(p, team, work % p.heads);
        tile::walk(p.graph, work / p.heads, true, dots);
    });
}

#define SDDMM(NAME, T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(SDDMM_THREADS, 2) NAME(const __grid_constant__ Params p) {       \
        if (p.flags & VECTORS) {                                                                                \
            run<T, true>(p);                                                                                   \
        } else {                                                                                               \
            run<T, false>(p);                                                                                  \
        }                                                                                                      \
    }

SDDMM(sddmm_fwd_f32_t256_sm80, float)
SDDMM(sddmm_fwd_f16_t256_sm80, __half)
SDDMM(sddmm_fwd_bf16_t256_sm80, __nv_bfloat16)
