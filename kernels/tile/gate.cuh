// The granularity gate of one unit: what is read, what G is, what is written. See granular_scale.cu for the formula.
#pragma once

#include "tile/elements.cuh"
#include "tile/gemm.cuh"
#include "tile/philox.cuh"

namespace gate {

// Mirrors `Kind` in mod.rs.
enum Kind : uint32_t { LARGE, MIDDLE_X, MIDDLE_Y, SMALL };

// Bits of `flags`; they mirror gpu.rs.
enum Flag : uint32_t {
    VECTOR = 1,
    ADD_RESIDUAL = 2,
    // z goes through a sigmoid.
    SIGMOID = 4,
    // The gate sees H instead of U.
    SEES_HIDDEN = 8,
    DROPOUT = 16,
    // The pass that writes a number for each row and nothing else.
    ROWS_ONLY = 32,
    // Rows of D can be read 16 bytes at a time.
    NARROW_VECTOR = 64,
};

struct Common {
    const void* hidden;
    const void* update;
    const void* bias;
    const void* residual;
    // Logits, w or z; MIDDLE_Y without z has a gate of 1.
    const void* gate;
    // SMALL: the gate of each sample.
    const float* samples;
    size_t m;
    size_t k;
    size_t tokens;
    uint64_t seed;
    uint32_t step;
    uint32_t site;
    uint32_t threshold;
    uint32_t flags;
    uint32_t kind;
    float scale;
    // 1 / (1 − p)
    float keep;
    uint32_t reserved;
};

struct Forward {
    Common c;
    const void* gate_bias;
    // The logits of MIDDLE_X and SMALL, to be kept; the fused form reads what the pass before it has written.
    float* rows;
    void* y;
    // Where ΔH = D Wuᵀ is not written: D [m, r] and Wuᵀw [r], so that ΔH_i·w = D_i·(Wuᵀw).
    const void* narrow;
    const float* folded;
    size_t r;
};
static_assert(sizeof(Common) == 112 && offsetof(Common, seed) == 72 && offsetof(Common, kind) == 96, "mirrors gpu.rs");
static_assert(sizeof(Forward) == 160, "mirrors gpu.rs");

// The fused form: a product's tile goes where `f` says, `first_column` columns further right.
struct Up {
    tile::GemmParams gemm;
    Forward f;
    size_t first_column;
};
static_assert(sizeof(Up) == 336, "mirrors gpu.rs");

struct Backward {
    Common c;
    const void* dy;
    const float* rows;
    // [m]: MIDDLE_X writes it; SMALL's first pass writes the sums over rows, its second reads what became of them.
    float* dl;
    void* update_gradient;
    void* hidden_gradient;
    void* residual_gradient;
    void* logit_gradient;
    // [pieces, k] each, or absent.
    float* bias_sums;
    float* gate_sums;
    float* residual_sums;
    size_t piece;
};
static_assert(sizeof(Backward) == 200, "mirrors gpu.rs");

struct Sample {
    const float* rows;
    // Weights of the mean, or absent: all alike.
    const float* tokens;
    float* samples;
    float* dl;
    size_t count;
    size_t t;
};
static_assert(sizeof(Sample) == 48, "mirrors gpu.rs");

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float slope(float s) { return s * (1.0f - s); }

template <int N>
__device__ __forceinline__ void clear(float (&v)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = 0.0f;
}

// One thread's unit of everything that is read of a row.
template <Kind KIND, typename T, int N>
struct Unit {
    float u[N];
    tile::Unit<T, N> residual;
    tile::Unit<T, N> logits;

    __device__ __forceinline__ void clear_all() {
        clear(u);
        residual.clear();
        logits.clear();
    }

    // Columns col .. of the row that starts at element `row`. What is not there is zero: a compiler that adds first and selects
    // afterwards must find a number.
    __device__ __forceinline__ void load(const Common& p, size_t row, size_t col, bool wants_residual) {
        clear_all();
        if (p.hidden != nullptr) {
            tile::load<T, N>(static_cast<const T*>(p.hidden) + row + col, u);
            add(static_cast<const T*>(p.update), row + col);
            add(static_cast<const T*>(p.bias), col);
        }
        if (wants_residual) residual.load(static_cast<const T*>(p.residual) + row + col);
        if (KIND == LARGE) logits.load(static_cast<const T*>(p.gate) + row + col);
    }

    __device__ __forceinline__ void add(const T* from, size_t at) {
        if (from == nullptr) return;
        float v[N];
        tile::load<T, N>(from + at, v);
#pragma unroll
        for (int i = 0; i < N; ++i) u[i] += v[i];
    }

    // What the gate sees: U, or H read again.
    __device__ __forceinline__ void seen(const Common& p, size_t at, float (&v)[N]) const {
        if (p.flags & SEES_HIDDEN) {
            tile::load<T, N>(static_cast<const T*>(p.hidden) + at, v);
        } else {
#pragma unroll
            for (int i = 0; i < N; ++i) v[i] = u[i];
        }
    }
};

// w's halves for R and for U; MIDDLE_X has one for both.
template <Kind KIND, typename T>
__device__ __forceinline__ const T* residual_weight(const Common& p) {
    return static_cast<const T*>(p.gate);
}
template <Kind KIND, typename T>
__device__ __forceinline__ const T* seen_weight(const Common& p) {
    return static_cast<const T*>(p.gate) + (KIND == SMALL ? p.k : 0);
}

// G of the columns of a unit. `of_row` is the gate of the row, where a row has one.
template <Kind KIND, typename T, int N>
__device__ __forceinline__ void gates(const Common& p, const Unit<KIND, T, N>& unit, size_t col, float of_row, float (&g)[N]) {
    if constexpr (KIND == LARGE) {
        unit.logits.get(g);
#pragma unroll
        for (int i = 0; i < N; ++i) g[i] = sigmoid(g[i]);
    } else if constexpr (KIND == MIDDLE_Y) {
        clear(g);
        if (p.gate != nullptr) tile::load<T, N>(static_cast<const T*>(p.gate) + col, g);
        if (p.flags & SIGMOID) {
#pragma unroll
            for (int i = 0; i < N; ++i) g[i] = sigmoid(g[i]);
        }
#pragma unroll
        for (int i = 0; i < N; ++i) g[i] += 1.0f;
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) g[i] = of_row;
    }
}

// Drops elements first .. of v, and scales the rest.
template <int N>
__device__ __forceinline__ void drop(const Common& p, size_t first, float (&v)[N]) {
    if (!(p.flags & DROPOUT)) return;
    const tile::Dropout dropout{p.seed, p.step, p.site, p.threshold};
    const uint32_t kept = dropout.kept<N>(first);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] *= kept >> i & 1 ? p.keep : 0.0f;
}

// Writes the unit at `at + col` of y.
template <Kind KIND, typename T, int N>
__device__ __forceinline__ void finish(const Forward& f, const Unit<KIND, T, N>& unit, size_t at, size_t col, float of_row) {
    const Common& p = f.c;
    float v[N];
    gates<KIND, T, N>(p, unit, col, of_row, v);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = p.scale * unit.u[i] * v[i];
    drop<N>(p, at + col, v);
    if (p.flags & ADD_RESIDUAL) {
        float r[N];
        unit.residual.get(r);
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] += r[i];
    }
    tile::store<T, N>(static_cast<T*>(f.y) + at + col, v);
}

}  // namespace gate
