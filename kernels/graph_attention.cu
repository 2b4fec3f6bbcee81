// Attention over the edges of a graph, without an E x F tensor:
//
//   z_e = left[i, h] + right[j, h]      for edge e from j to i       α_e = softmax over the edges of row i of leaky(z_e)
//   y[i, h, :] = Σ_e α_e · x[j, h, :]                                lse[i, h] = log Σ_e exp(leaky(z_e))
//
// forward: one chunk of edges (tile/csr.cuh) x one head x one tile of its columns is a team's work. An online softmax: when the row's
//          maximum grows, its sum and results so far shrink by exp(old - new). Four edges go by at a time, so that four rows of x are on
//          their way and results shrink once for the four.
// edges:   one chunk x one head. D_i = dy[i] · y[i] once a row, dα_e = dy[i] · x[j], and from both
//          alpha[e, h] = α_e,  dz[e, h] = α_e · (dα_e - D_i) · leaky'(z_e); sums over rows and columns of these are spmm.cu's.
//
// A row's lanes hold 16 bytes each of x and y. Limited by gathering rows of x. No shared memory, no atomics.

#include "tile/pairs.cuh"

#ifndef GRAPH_ATTENTION_THREADS
#error "GRAPH_ATTENTION_THREADS comes from the kernel table"
#endif

struct Params {
    tile::Graph graph;
    const void* x;
    const void* left;
    const void* right;
    void* y;
    float* lse;
    const void* dy;
    float* alpha;
    float* dz;
    // [slots, f + 2·heads]: results, then maximum and sum of each head.
    float* partial;
    size_t f;
    size_t d;
    float slope;
    uint32_t heads;
    uint32_t lanes;
    uint32_t flags;
};
static_assert(sizeof(Params) == 160 && offsetof(Params, x) == 56 && offsetof(Params, f) == 128 &&
                  offsetof(Params, slope) == 144,
              "mirrors gpu.rs");

enum Flag : uint32_t { VECTOR = 1, SPLIT = 2 };

constexpr int AHEAD = 4;

template <typename T>
__device__ __forceinline__ float sum_of(const Params& p, float left, size_t j, size_t head) {
    return left + tile::widen(static_cast<const T*>(p.right)[j * p.heads + head]);
}

__device__ __forceinline__ float leaky(float z, float slope) { return z > 0.0f ? z : slope * z; }

template <typename T, bool VECTOR_>
struct Forward {
    using Slice = tile::Slice<T, VECTOR_>;
    static constexpr int N = Slice::N;
    const Params& p;
    bool first_lane;
    size_t head;
    Slice slice;
    float left;
    float most;
    float sum;
    float results[N];

    __device__ __forceinline__ Forward(const Params& p, const tile::Team& team, size_t tiles, size_t work)
        : p(p),
          first_lane(team.lane == 0 && work % tiles == 0),
          head(work / tiles % p.heads),
          slice(team, work / tiles % p.heads * p.d, p.d, work % tiles) {}

    __device__ __forceinline__ void begin(size_t row) {
        left = tile::widen(static_cast<const T*>(p.left)[row * p.heads + head]);
        most = -INFINITY;
        sum = 0.0f;
#pragma unroll
        for (int i = 0; i < N; ++i) results[i] = 0.0f;
    }

    // Makes room for scores up to `to`.
    __device__ __forceinline__ void raise(float to) {
        if (to == -INFINITY) return;
        const float shrink = expf(most - to);
        sum *= shrink;
#pragma unroll
        for (int i = 0; i < N; ++i) results[i] *= shrink;
        most = to;
    }

    template <int COUNT>
    __device__ __forceinline__ void add(size_t e) {
        float v[COUNT][N], scores[COUNT];
        float largest = most;
#pragma unroll
        for (int k = 0; k < COUNT; ++k) {
            const size_t j = tile::gathered(p.graph, e + k);
            scores[k] = leaky(sum_of<T>(p, left, j, head), p.slope);
            slice.load(static_cast<const T*>(p.x) + j * p.f, v[k]);
            largest = fmaxf(largest, scores[k]);
        }
        raise(largest);
#pragma unroll
        for (int k = 0; k < COUNT; ++k) {
            // Scores of -∞ alone count as nothing; NaN stays one.
            const float w = scores[k] == -INFINITY ? 0.0f : expf(scores[k] - most);
            sum += w;
#pragma unroll
            for (int i = 0; i < N; ++i) results[i] = fmaf(w, v[k][i], results[i]);
        }
    }

    __device__ __forceinline__ void edges(size_t e, size_t last) {
        for (; e + AHEAD <= last; e += AHEAD) add<AHEAD>(e);
        for (; e < last; ++e) add<1>(e);
    }

    __device__ __forceinline__ float* slot_of(size_t slot) const { return p.partial + slot * (p.f + 2 * p.heads); }

    __device__ __forceinline__ void leave(size_t, size_t slot) {
        float* to = slot_of(slot);
#pragma unroll
        for (int i = 0; i < N; ++i)
            if (slice.inside(i)) to[slice.column(i)] = results[i];
        if (first_lane) {
            to[p.f + 2 * head] = most;
            to[p.f + 2 * head + 1] = sum;
        }
    }

    __device__ __forceinline__ void part(size_t slot) {
        const float* from = slot_of(slot);
        const float other = from[p.f + 2 * head];
        raise(fmaxf(most, other));
        const float w = other == -INFINITY ? 0.0f : expf(other - most);
        sum = fmaf(w, from[p.f + 2 * head + 1], sum);
#pragma unroll
        for (int i = 0; i < N; ++i)
            if (slice.inside(i)) results[i] = fmaf(w, from[slice.column(i)], results[i]);
    }

    __device__ __forceinline__ void finish(size_t row) {
        const bool empty = tile::degree_of(p.graph, row) == 0;
#pragma unroll
        for (int i = 0; i < N; ++i) results[i] = empty ? 0.0f : results[i] / sum;
        T* y = static_cast<T*>(p.y) + row * p.f;
        if constexpr (VECTOR_) {
            if (slice.left > 0) tile::store<T, N>(y + slice.first, results);
        } else {
#pragma unroll
            for (int i = 0; i < N; ++i)
                if (slice.inside(i)) y[slice.column(i)] = tile::narrow<T>(results[i]);
        }
        if (first_lane) p.lse[row * p.heads + head] = most + logf(sum);
    }
};

template <typename T, bool VECTOR_>
struct Edges {
    const Params& p;
    size_t head;
    float left;
    float lse;
    float mean;
    tile::PairDots<T, VECTOR_> pairs;

    __device__ __forceinline__ Edges(const Params& p, const tile::Team& team, size_t head)
        : p(p), head(head), pairs(team, head * p.d, p.d) {}

    __device__ __forceinline__ void begin(size_t row) {
        left = tile::widen(static_cast<const T*>(p.left)[row * p.heads + head]);
        lse = p.lse[row * p.heads + head];
        pairs.hold(static_cast<const T*>(p.dy) + row * p.f);
        const T* const y[1] = {static_cast<const T*>(p.y) + row * p.f};
        float along[1];
        pairs.multiply(y, along, tile::Every{});
        mean = along[0];
    }

    template <int COUNT>
    __device__ __forceinline__ void see(size_t e) {
        const T* others[COUNT];
        float slopes[COUNT];
        size_t j[COUNT];
#pragma unroll
        for (int k = 0; k < COUNT; ++k) {
            j[k] = tile::gathered(p.graph, e + k);
            others[k] = static_cast<const T*>(p.x) + j[k] * p.f;
        }
        pairs.multiply(others, slopes, tile::Every{});
        if (pairs.team.lane != 0) return;
#pragma unroll
        for (int k = 0; k < COUNT; ++k) {
            const float z = sum_of<T>(p, left, j[k], head);
            const float alpha = expf(leaky(z, p.slope) - lse);
            const size_t at = (e + k) * p.heads + head;
            p.alpha[at] = alpha;
            p.dz[at] = alpha * (slopes[k] - mean) * (z > 0.0f ? 1.0f : p.slope);
        }
    }

    __device__ __forceinline__ void edges(size_t e, size_t last) {
        for (; e + AHEAD <= last; e += AHEAD) see<AHEAD>(e);
        for (; e < last; ++e) see<1>(e);
    }

    __device__ __forceinline__ void finish(size_t) {}
    __device__ __forceinline__ void leave(size_t, size_t) {}
};

template <typename T, bool VECTOR_, bool JOIN>
__device__ __forceinline__ void forward(const Params& p) {
    const tile::Team team(p.lanes);
    const size_t tiles = tile::tiles_of<T, VECTOR_>(team, p.d);
    tile::for_teams(team, tile::chunks_of(p.graph) * p.heads * tiles, [&](size_t work) {
        Forward<T, VECTOR_> rows(p, team, tiles, work);
        const size_t chunk = work / tiles / p.heads;
        if constexpr (JOIN) {
            tile::join(p.graph, chunk, rows);
        } else {
            tile::walk(p.graph, chunk, p.flags & SPLIT, rows);
        }
    });
}

template <typename T, bool VECTOR_, bool>
__device__ __forceinline__ void edges(const Params& p) {
    const tile::Team team(p.lanes);
    tile::for_teams(team, tile::chunks_of(p.graph) * p.heads, [&](size_t work) {
        Edges<T, VECTOR_> rows(p, team, work % p.heads);
        tile::walk(p.graph, work / p.heads, true, rows);
    });
}

#define GRAPH_ATTENTION_PASS(PASS, NAME, T, BODY, JOIN)                                     \
    extern "C" __global__ void __launch_bounds__(GRAPH_ATTENTION_THREADS, 2)                   \
        graph_attention_##PASS##_##NAME##_t256_sm80(const __grid_constant__ Params p) {     \
        if (p.flags & VECTOR) {                                                             \
            BODY<T, true, JOIN>(p);                                                         \
        } else {                                                                            \
            BODY<T, false, JOIN>(p);                                                        \
        }                                                                                   \
    }

#define GRAPH_ATTENTION(NAME, T)                            \
    GRAPH_ATTENTION_PASS(fwd, NAME, T, forward, false)      \
    GRAPH_ATTENTION_PASS(join, NAME, T, forward, true)      \
    GRAPH_ATTENTION_PASS(edges, NAME, T, edges, false)

GRAPH_ATTENTION(f32, float)
GRAPH_ATTENTION(f16, __half)
GRAPH_ATTENTION(bf16, __nv_bfloat16)
