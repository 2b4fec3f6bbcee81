// Softmax over the edges of each row of a graph, head by head:
//
//   forward    p[e, h] = exp(s[e, h] - m) / z           m, z: maximum, and sum of exp(s - m), of the row's edges
//   backward   ds[e, h] (+)= p · (dp - Σ_row p · dp)
//
//   piece of work: one chunk of edges (tile/csr.cuh) x all heads, or one head where their number is no power of two up to the team's
//
//     scores of a row   | e0 h0 | e0 h1 | e1 h0 | e1 h1 | ..        neighbours of a team read neighbours in memory;
//                         lane 0   lane 1  lane 2  lane 3           lanes of one head reduce among themselves
//
// Where rows are short, one launch reduces a row and writes it, reading it the second time out of the first-level cache. Otherwise
// `stats` reduces, `join` adds what chunks that cut a row left, and `write` writes. Limited by reading the scores and writing as many.

#include "tile/csr.cuh"
#include "tile/gradient.cuh"

#ifndef EDGE_SOFTMAX_THREADS
#error "EDGE_SOFTMAX_THREADS comes from the kernel table"
#endif

struct Params {
    tile::Graph graph;
    // Forward: scores. Backward: p.
    const void* from;
    const void* dp;
    void* out;
    float2* stats;
    float2* partial;
    uint32_t heads;
    // Heads that a team takes at once.
    uint32_t together;
    uint32_t lanes;
    uint32_t target;
    uint32_t stage;
    uint32_t reserved;
};
static_assert(sizeof(Params) == 120 && offsetof(Params, from) == 56 && offsetof(Params, heads) == 96, "mirrors gpu.rs");

enum Stage : uint32_t { WHOLE = 0, STATS = 1, JOIN = 2, WRITE = 3 };

template <typename T, bool BACKWARD>
struct Rows {
    const Params& p;
    const tile::Team& team;
    // The lane's head, and which of the edges that a team reads at once is its own.
    uint32_t head;
    uint32_t edge;
    uint32_t step;
    // Forward: maximum and sum. Backward: only the sum.
    float2 state;

    __device__ __forceinline__ Rows(const Params& p, const tile::Team& team, size_t group)
        : p(p),
          team(team),
          head(static_cast<uint32_t>(group) * p.together + team.lane % p.together),
          edge(team.lane / p.together),
          step(team.lanes / p.together) {}

    __device__ __forceinline__ float value(size_t e) const {
        return tile::widen(static_cast<const T*>(p.from)[e * p.heads + head]);
    }
    __device__ __forceinline__ float slope(size_t e) const {
        return tile::widen(static_cast<const T*>(p.dp)[e * p.heads + head]);
    }

    __device__ __forceinline__ void add(float2 other) {
        if constexpr (BACKWARD) {
            state.y += other.y;
        } else {
            // Two of -∞ have no distance. NaN and +∞ make the sum NaN.
            if (state.x == -INFINITY && other.x == -INFINITY) {
                state.y += other.y;
                return;
            }
            const float most = fmaxf(state.x, other.x);
            state.y = state.y * expf(state.x - most) + other.y * expf(other.x - most);
            state.x = most;
        }
    }

    // Joins the lanes of one head; all get the same bits.
    __device__ __forceinline__ void reduce() {
        for (uint32_t offset = team.lanes / 2; offset >= p.together; offset /= 2) {
            const float2 other = make_float2(__shfl_xor_sync(team.mask, state.x, offset),
                                             __shfl_xor_sync(team.mask, state.y, offset));
            // The lower lane's state comes first in both, so that both add the same two numbers in the same order.
            if (team.lane & offset) {
                const float2 own = state;
                state = other;
                add(own);
            } else {
                add(other);
            }
        }
    }

    __device__ __forceinline__ void begin(size_t row) {
        state = make_float2(-INFINITY, 0.0f);
        if (p.stage == WRITE) state = p.stats[row * p.heads + head];
    }

    __device__ __forceinline__ void write(size_t e) {
        float v;
        if constexpr (BACKWARD) {
            v = value(e) * (slope(e) - state.y);
        } else {
            v = expf(value(e) - state.x) / state.y;
        }
        tile::put<T>(p.out, e * p.heads + head, v, p.target);
    }

    __device__ __forceinline__ void edges(size_t first, size_t last) {
        if (p.stage != WRITE) {
            for (size_t e = first + edge; e < last; e += step)
                add(BACKWARD ? make_float2(0.0f, value(e) * slope(e)) : make_float2(value(e), 1.0f));
            reduce();
        }
        if (p.stage == WHOLE || p.stage == WRITE)
            for (size_t e = first + edge; e < last; e += step) write(e);
    }

    __device__ __forceinline__ void part(size_t slot) { add(p.partial[slot * p.heads + head]); }

    __device__ __forceinline__ void finish(size_t row) {
        if ((p.stage == STATS || p.stage == JOIN) && edge == 0) p.stats[row * p.heads + head] = state;
    }
    __device__ __forceinline__ void leave(size_t, size_t slot) {
        if (p.stage == STATS && edge == 0) p.partial[slot * p.heads + head] = state;
    }
};

template <typename T, bool BACKWARD>
__device__ __forceinline__ void run(const Params& p) {
    const tile::Team team(p.lanes);
    const size_t groups = p.heads / p.together;
    tile::for_teams(team, tile::chunks_of(p.graph) * groups, [&](size_t work) {
        Rows<T, BACKWARD> rows(p, team, work % groups);
        if (p.stage == JOIN) {
            tile::join(p.graph, work / groups, rows);
        } else {
            tile::walk(p.graph, work / groups, p.stage != WHOLE, rows);
        }
    });
}

#define EDGE_SOFTMAX(NAME, T)                                                        \
    extern "C" __global__ void __launch_bounds__(EDGE_SOFTMAX_THREADS, 4)               \
        edge_softmax_fwd_##NAME##_t256_sm80(const __grid_constant__ Params p) {      \
        run<T, false>(p);                                                            \
    }                                                                                \
    extern "C" __global__ void __launch_bounds__(EDGE_SOFTMAX_THREADS, 4)               \
        edge_softmax_bwd_##NAME##_t256_sm80(const __grid_constant__ Params p) {      \
        run<T, true>(p);                                                             \
    }

EDGE_SOFTMAX(f32, float)
EDGE_SOFTMAX(f16, __half)
EDGE_SOFTMAX(bf16, __nv_bfloat16)
