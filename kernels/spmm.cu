// Sums, means and extrema over the edges of a graph's rows:
//
//   sum    y[i, c] (+)= Σ_{e in row i} s_e · x[g(e), c]              s_e: the edge's weight for the head of column c, over the degree
//   pick   the same, only where arg[g(e), c] is the number of e      (the gradient of max and min)
//   max    y[i, c] = max_e s_e · x[g(e), c], and the number of the first edge that has it; min likewise; 0 and -1 without edges
//
// g(e) is the edge's source, or the edge itself when edges carry the features.
//
//   piece of work: one chunk of edges (tile/csr.cuh) x one tile of columns of one head
//
//     row of x   | lane 0: 16 bytes | lane 1 | .. |      a team has as many lanes as the row has units, at most 32
//     edges ↓      four at a time: four rows are on their way while the sums are added in order
//
// Limited by gathering rows of x. No shared memory, no atomics; the *join kernels add what rows that chunks cut left behind.

#include "tile/csr.cuh"
#include "tile/gradient.cuh"

#ifndef SPMM_THREADS
#error "SPMM_THREADS comes from the kernel table"
#endif

struct Params {
    tile::Graph graph;
    const void* x;
    const void* weights;
    const void* arg;
    // Offsets whose differences divide what is gathered (the mean's gradient).
    const void* degrees;
    void* y;
    void* picked;
    float* partial;
    int64_t* partial_arg;
    size_t f;
    size_t d;
    uint32_t heads;
    uint32_t lanes;
    uint32_t target;
    uint32_t flags;
};
static_assert(sizeof(Params) == 152 && offsetof(Params, x) == 56 && offsetof(Params, f) == 120 &&
                  offsetof(Params, flags) == 148,
              "mirrors gpu.rs");

enum Flag : uint32_t { VECTOR = 1, MEAN = 2, LOWEST = 4, SPLIT = 8, WIDE_WEIGHTS = 16, WIDE_DEGREES = 32 };

constexpr int AHEAD = 4;

// What all walkers share: where they are.
template <typename T, bool VECTOR_>
struct Place {
    static constexpr int N = tile::Slice<T, VECTOR_>::N;
    const Params& p;
    size_t head;
    tile::Slice<T, VECTOR_> slice;

    // Work is counted tile by tile, then head by head, then chunk by chunk.
    __device__ __forceinline__ Place(const Params& p, const tile::Team& team, size_t tiles, size_t work)
        : p(p), head(work / tiles % p.heads), slice(team, work / tiles % p.heads * p.d, p.d, work % tiles) {}

    // Factor of edge e, which gathers row j.
    __device__ __forceinline__ float factor(size_t e, size_t j) const {
        float s = 1.0f;
        if (p.weights != nullptr) {
            const size_t at = tile::number_of(p.graph, e) * p.heads + head;
            s = p.flags & WIDE_WEIGHTS ? static_cast<const float*>(p.weights)[at]
                                       : tile::widen(static_cast<const T*>(p.weights)[at]);
        }
        if (p.degrees != nullptr) {
            const uint32_t wide = p.flags & WIDE_DEGREES;
            s /= static_cast<float>(tile::integer(p.degrees, wide, j + 1) - tile::integer(p.degrees, wide, j));
        }
        return s;
    }

    __device__ __forceinline__ const T* row(size_t j) const { return static_cast<const T*>(p.x) + j * p.f; }
};

template <typename T, bool VECTOR_, bool PICK>
struct Sum : Place<T, VECTOR_> {
    using Base = Place<T, VECTOR_>;
    using Base::N;
    using Base::p;
    using Base::slice;
    float sums[N];

    using Base::Base;

    __device__ __forceinline__ void begin(size_t) {
#pragma unroll
        for (int i = 0; i < N; ++i) sums[i] = 0.0f;
    }

    template <int COUNT>
    __device__ __forceinline__ void add(size_t e) {
        float v[COUNT][N], s[COUNT];
        size_t j[COUNT];
#pragma unroll
        for (int k = 0; k < COUNT; ++k) j[k] = tile::gathered(p.graph, e + k);
#pragma unroll
        for (int k = 0; k < COUNT; ++k) {
            s[k] = this->factor(e + k, j[k]);
            slice.load(this->row(j[k]), v[k]);
        }
#pragma unroll
        for (int k = 0; k < COUNT; ++k) {
            const size_t number = PICK ? tile::number_of(p.graph, e + k) : 0;
#pragma unroll
            for (int i = 0; i < N; ++i) {
                const bool counts =
                    !PICK || (slice.inside(i) &&
                              tile::integer(p.arg, p.graph.wide_offsets, j[k] * p.f + slice.column(i)) == number);
                if (counts) sums[i] = fmaf(s[k], v[k][i], sums[i]);
            }
        }
    }

    __device__ __forceinline__ void edges(size_t e, size_t last) {
        for (; e + AHEAD <= last; e += AHEAD) add<AHEAD>(e);
        for (; e < last; ++e) add<1>(e);
    }

    __device__ __forceinline__ void finish(size_t row) {
        if (p.flags & MEAN) {
            const size_t degree = tile::degree_of(p.graph, row);
            const float by = degree > 0 ? static_cast<float>(degree) : 1.0f;
#pragma unroll
            for (int i = 0; i < N; ++i) sums[i] /= by;
        }
        if constexpr (VECTOR_) {
            if (p.target == 0) {
                if (slice.left > 0) tile::store<T, N>(static_cast<T*>(p.y) + row * p.f + slice.first, sums);
                return;
            }
        }
#pragma unroll
        for (int i = 0; i < N; ++i)
            if (slice.inside(i)) tile::put<T>(p.y, row * p.f + slice.column(i), sums[i], p.target);
    }

    __device__ __forceinline__ void leave(size_t, size_t slot) {
        if constexpr (VECTOR_) {
            if (slice.left > 0) tile::store<float, N>(p.partial + slot * p.f + slice.first, sums);
        } else {
#pragma unroll
            for (int i = 0; i < N; ++i)
                if (slice.inside(i)) p.partial[slot * p.f + slice.column(i)] = sums[i];
        }
    }

    __device__ __forceinline__ void part(size_t slot) {
#pragma unroll
        for (int i = 0; i < N; ++i)
            if (slice.inside(i)) sums[i] += p.partial[slot * p.f + slice.column(i)];
    }
};

template <typename T, bool VECTOR_>
struct Extremum : Place<T, VECTOR_> {
    using Base = Place<T, VECTOR_>;
    using Base::N;
    using Base::p;
    using Base::slice;
    float best[N];
    int64_t arg[N];

    using Base::Base;

    __device__ __forceinline__ void begin(size_t) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            best[i] = 0.0f;
            arg[i] = -1;
        }
    }

    // The first of equals stays, and so does a NaN.
    __device__ __forceinline__ void see(int i, float v, int64_t number) {
        const bool better = p.flags & LOWEST ? v < best[i] : v > best[i];
        if (arg[i] < 0 || (best[i] == best[i] && (better || v != v))) {
            best[i] = v;
            arg[i] = number;
        }
    }

    __device__ __forceinline__ void edges(size_t e, size_t last) {
        for (; e < last; ++e) {
            const size_t j = tile::gathered(p.graph, e);
            const float s = this->factor(e, j);
            const int64_t number = static_cast<int64_t>(tile::number_of(p.graph, e));
            float v[N];
            slice.load(this->row(j), v);
#pragma unroll
            for (int i = 0; i < N; ++i) see(i, s * v[i], number);
        }
    }

    __device__ __forceinline__ void finish(size_t row) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (!slice.inside(i)) continue;
            const size_t at = row * p.f + slice.column(i);
            static_cast<T*>(p.y)[at] = tile::narrow<T>(best[i]);
            if (p.graph.wide_offsets) {
                static_cast<int64_t*>(p.picked)[at] = arg[i];
            } else {
                static_cast<int32_t*>(p.picked)[at] = static_cast<int32_t>(arg[i]);
            }
        }
    }

    __device__ __forceinline__ void leave(size_t, size_t slot) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (!slice.inside(i)) continue;
            p.partial[slot * p.f + slice.column(i)] = best[i];
            p.partial_arg[slot * p.f + slice.column(i)] = arg[i];
        }
    }

    __device__ __forceinline__ void part(size_t slot) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (!slice.inside(i)) continue;
            const int64_t number = p.partial_arg[slot * p.f + slice.column(i)];
            if (number >= 0) see(i, p.partial[slot * p.f + slice.column(i)], number);
        }
    }
};

template <typename T, typename Walker, bool VECTOR_, bool JOIN>
__device__ __forceinline__ void run(const Params& p) {
    const tile::Team team(p.lanes);
    const size_t tiles = tile::tiles_of<T, VECTOR_>(team, p.d);
    tile::for_teams(team, tile::chunks_of(p.graph) * p.heads * tiles, [&](size_t work) {
        Walker walker(p, team, tiles, work);
        const size_t chunk = work / tiles / p.heads;
        if constexpr (JOIN) {
            tile::join(p.graph, chunk, walker);
        } else {
            tile::walk(p.graph, chunk, p.flags & SPLIT, walker);
        }
    });
}

#define SPMM_PASS(PASS, NAME, T, WALKER, JOIN)                                                                    \
    extern "C" __global__ void __launch_bounds__(SPMM_THREADS, 2)                                                  \
        spmm_##PASS##_##NAME##_t256_sm80(const __grid_constant__ Params p) {                                      \
        if (p.flags & VECTOR) {                                                                                   \
            run<T, WALKER(T, true), true, JOIN>(p);                                                               \
        } else {                                                                                                  \
            run<T, WALKER(T, false), false, JOIN>(p);                                                             \
        }                                                                                                         \
    }
#define PLAIN_SUM(T, V) Sum<T, V, false>
#define PICKED_SUM(T, V) Sum<T, V, true>
#define EXTREMUM(T, V) Extremum<T, V>

#define SPMM(NAME, T)                               \
    SPMM_PASS(sum, NAME, T, PLAIN_SUM, false)       \
    SPMM_PASS(pick, NAME, T, PICKED_SUM, false)     \
    SPMM_PASS(max, NAME, T, EXTREMUM, false)        \
    SPMM_PASS(sumjoin, NAME, T, PLAIN_SUM, true)    \
    SPMM_PASS(maxjoin, NAME, T, EXTREMUM, true)

SPMM(f32, float)
SPMM(f16, __half)
SPMM(bf16, __nv_bfloat16)
