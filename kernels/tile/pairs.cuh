// Products of one row with many others, on a team of lanes (tile/csr.cuh):
//
//   own    | lane 0 | lane 1 | .. |  the row's first tile stays in registers while others go by, COUNT at a time
//   other  | lane 0 | lane 1 | .. |  products are added within a lane, then over the team
#pragma once

#include "tile/csr.cuh"

namespace tile {

// All columns count; those beyond the last are zeros.
struct Every {
    template <typename Part>
    __device__ __forceinline__ bool operator()(int, const Part&, int) const {
        return true;
    }
};

template <typename T, bool VECTOR>
struct PairDots {
    using Part = Slice<T, VECTOR>;
    static constexpr int N = Part::N;
    const Team& team;
    // The head's columns, and how many tiles they are.
    size_t begin;
    size_t width;
    size_t tiles;
    const T* row;
    float own[N];

    __device__ __forceinline__ PairDots(const Team& team, size_t begin, size_t width)
        : team(team), begin(begin), width(width), tiles(tiles_of<T, VECTOR>(team, width)) {}

    __device__ __forceinline__ Part part(size_t tile) const { return Part(team, begin, width, tile); }

    // The row that is multiplied from now on.
    __device__ __forceinline__ void hold(const T* with) {
        row = with;
        part(0).load(row, own);
    }

    // sums[k] = Σ row[c] · others[k][c] over the columns, elements i of a lane's part, for which counts(k, part, i). Every lane gets them.
    template <int COUNT, typename Counts>
    __device__ __forceinline__ void multiply(const T* const (&others)[COUNT], float (&sums)[COUNT], Counts counts) const {
        float v[COUNT][N];
        const Part first = part(0);
#pragma unroll
        for (int k = 0; k < COUNT; ++k) first.load(others[k], v[k]);
#pragma unroll
        for (int k = 0; k < COUNT; ++k) sums[k] = dot(first, own, v[k], k, counts);
        for (size_t t = 1; t < tiles; ++t) {
            const Part at = part(t);
            float u[N];
            at.load(row, u);
#pragma unroll
            for (int k = 0; k < COUNT; ++k) {
                float w[N];
                at.load(others[k], w);
                sums[k] += dot(at, u, w, k, counts);
            }
        }
#pragma unroll
        for (int k = 0; k < COUNT; ++k) sums[k] = team.sum(sums[k]);
    }

   private:
    template <typename Counts>
    static __device__ __forceinline__ float dot(const Part& at, const float (&u)[N], const float (&v)[N], int k,
                                                Counts counts) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < N; ++i)
            if (counts(k, at, i)) sum = fmaf(u[i], v[i], sum);
        return sum;
    }
};

}  // namespace tile
