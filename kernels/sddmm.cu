// Products of node pairs on the edges of a graph:
//
//   out[e, h] (+)= Σ_{c in head h} a[i, c] · b[j, c]       for edge e from j to i; over the degree of i for a mean
//
// With arg, only columns where arg[i, c] is the number of e count: the gradient of the weights of a maximum.
//
//   piece of work: one chunk of edges (tile/csr.cuh) x one head
//
//     a[i]  | lane 0 | lane 1 | .. |  the row's part stays in registers while its edges go by, four at a time
//     b[j]  | lane 0 | lane 1 | .. |  products are added within a lane, then over the team
//
// Limited by gathering rows of b. No shared memory, no atomics.

#include "tile/csr.cuh"
#include "tile/gradient.cuh"

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

enum Flag : uint32_t { VECTOR = 1, MEAN = 2 };

constexpr int AHEAD = 4;

template <typename T, bool VECTOR_>
struct Dots {
    using Slice = tile::Slice<T, VECTOR_>;
    static constexpr int N = Slice::N;
    const Params& p;
    const tile::Team& team;
    size_t head;
    size_t tiles;
    size_t row;
    float by;
    float own[N];

    __device__ __forceinline__ Dots(const Params& p, const tile::Team& team, size_t head)
        : p(p), team(team), head(head), tiles(tile::tiles_of<T, VECTOR_>(team, p.d)) {}

    __device__ __forceinline__ Slice slice(size_t tile) const { return Slice(team, head * p.d, p.d, tile); }
    __device__ __forceinline__ const T* a() const { return static_cast<const T*>(p.a) + row * p.f; }
    __device__ __forceinline__ const T* b(size_t j) const { return static_cast<const T*>(p.b) + j * p.f; }

    __device__ __forceinline__ void begin(size_t i) {
        row = i;
        by = p.flags & MEAN ? static_cast<float>(tile::degree_of(p.graph, i)) : 1.0f;
        slice(0).load(a(), own);
    }

    __device__ __forceinline__ float part(const Slice& at, const float (&u)[N], const float (&v)[N], size_t e) const {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const bool counts = p.arg == nullptr ||
                                (at.inside(i) &&
                                 tile::integer(p.arg, p.graph.wide_offsets, row * p.f + at.column(i)) == e);
            if (counts) sum = fmaf(u[i], v[i], sum);
        }
        return sum;
    }

    template <int COUNT>
    __device__ __forceinline__ void multiply(size_t e) {
        float v[COUNT][N], sums[COUNT];
        size_t j[COUNT];
        const Slice first = slice(0);
#pragma unroll
        for (int k = 0; k < COUNT; ++k) j[k] = tile::gathered(p.graph, e + k);
#pragma unroll
        for (int k = 0; k < COUNT; ++k) first.load(b(j[k]), v[k]);
#pragma unroll
        for (int k = 0; k < COUNT; ++k) sums[k] = part(first, own, v[k], e + k);
        for (size_t t = 1; t < tiles; ++t) {
            const Slice at = slice(t);
            float u[N];
            at.load(a(), u);
#pragma unroll
            for (int k = 0; k < COUNT; ++k) {
                float w[N];
                at.load(b(j[k]), w);
                sums[k] += part(at, u, w, e + k);
            }
        }
#pragma unroll
        for (int k = 0; k < COUNT; ++k) {
            const float sum = team.sum(sums[k]);
            if (team.lane == 0) tile::put<T>(p.out, (e + k) * p.heads + head, sum / by, p.target);
        }
    }

    __device__ __forceinline__ void edges(size_t e, size_t last) {
        for (; e + AHEAD <= last; e += AHEAD) multiply<AHEAD>(e);
        for (; e < last; ++e) multiply<1>(e);
    }

    __device__ __forceinline__ void finish(size_t) {}
    __device__ __forceinline__ void leave(size_t, size_t) {}
};

template <typename T, bool VECTOR_>
__device__ __forceinline__ void run(const Params& p) {
    const tile::Team team(p.lanes);
    tile::for_teams(team, tile::chunks_of(p.graph) * p.heads, [&](size_t work) {
        Dots<T, VECTOR_> dots(p, team, work % p.heads);
        tile::walk(p.graph, work / p.heads, true, dots);
    });
}

#define SDDMM(NAME, T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(SDDMM_THREADS, 2) NAME(const __grid_constant__ Params p) {       \
        if (p.flags & VECTOR) {                                                                                \
            run<T, true>(p);                                                                                   \
        } else {                                                                                               \
            run<T, false>(p);                                                                                  \
        }                                                                                                      \
    }

SDDMM(sddmm_fwd_f32_t256_sm80, float)
SDDMM(sddmm_fwd_f16_t256_sm80, __half)
SDDMM(sddmm_fwd_bf16_t256_sm80, __nv_bfloat16)
