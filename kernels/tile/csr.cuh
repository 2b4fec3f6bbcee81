// Rows of a graph, dealt out by edges.
//
// Edges and ends of rows in one line, a row's edges before its end:
//
//   position   0  1  2  3  4  5  6  7  8  9 ..
//              e0 e1 |  |  e2 e3 e4 e5 e6 |            row 0 has two edges, row 1 none, row 2 five
//              └ chunk 0 ┘ └ chunk 1 ┘ └ chunk 2 ..
//
// A chunk is `chunk` positions, so that every chunk has as much to do whatever the degrees: a node without edges costs one position,
// a hub of a million edges fills many chunks. Position p lies after r(p) ends and p - r(p) edges; r(p) is found by bisection.
//
// One team of lanes (a power of two, at most a warp) walks over one chunk, edge after edge, so the order of a sum is that of the
// edges. Rows that chunks cut leave a part in slot 2·chunk (the end of a row that began before) and slot 2·chunk + 1 (the
// beginning of one that goes on); a second kernel joins the parts in the order of the chunks. Where all rows are short, a chunk takes
// the rows that begin in it instead, whole, and nothing is left to join.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tile/elements.cuh"

namespace tile {

struct Graph {
    const void* offsets;
    // Node that each edge gathers from; null when edges gather from themselves.
    const void* indices;
    // Number of each edge where weights and arguments are kept; null when it is its place.
    const void* order;
    size_t rows;
    size_t edges;
    size_t chunk;
    uint32_t wide_offsets;
    uint32_t wide_indices;
};
static_assert(sizeof(Graph) == 56 && offsetof(Graph, wide_offsets) == 48, "mirrors src/ops/rows.rs");

__device__ __forceinline__ size_t integer(const void* values, uint32_t wide, size_t i) {
    return wide ? static_cast<size_t>(static_cast<const int64_t*>(values)[i])
                : static_cast<size_t>(static_cast<const int32_t*>(values)[i]);
}

__device__ __forceinline__ size_t offset_of(const Graph& g, size_t row) { return integer(g.offsets, g.wide_offsets, row); }

// The number of an edge.
__device__ __forceinline__ size_t number_of(const Graph& g, size_t e) {
    return g.order == nullptr ? e : integer(g.order, g.wide_offsets, e);
}

// The row of features that an edge gathers.
__device__ __forceinline__ size_t gathered(const Graph& g, size_t e) {
    return g.indices == nullptr ? number_of(g, e) : integer(g.indices, g.wide_indices, e);
}

__device__ __forceinline__ size_t degree_of(const Graph& g, size_t row) { return offset_of(g, row + 1) - offset_of(g, row); }

// How many rows end (BOUNDARY = 1) or begin (0) before a position.
template <int BOUNDARY>
__device__ __forceinline__ size_t rows_before(const Graph& g, size_t position) {
    size_t low = 0, high = g.rows;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (offset_of(g, middle + BOUNDARY) + middle < position) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

__device__ __forceinline__ size_t chunks_of(const Graph& g) { return (g.rows + g.edges + g.chunk - 1) / g.chunk; }

// Walks over one chunk: begin(row), edges(first, last), then finish(row) for a row that is complete or leave(row, slot) for a part.
template <typename Walker>
__device__ __forceinline__ void walk(const Graph& g, size_t chunk, bool split, Walker& walker) {
    const size_t from = chunk * g.chunk, all = g.rows + g.edges;
    const size_t to = from + g.chunk < all ? from + g.chunk : all;
    if (!split) {
        const size_t last = rows_before<0>(g, to);
        for (size_t row = rows_before<0>(g, from); row < last; ++row) {
            walker.begin(row);
            walker.edges(offset_of(g, row), offset_of(g, row + 1));
            walker.finish(row);
        }
        return;
    }
    const size_t first = rows_before<1>(g, from), last = rows_before<1>(g, to);
    size_t e = from - first;
    for (size_t row = first; row < last; ++row) {
        const size_t end = offset_of(g, row + 1);
        walker.begin(row);
        walker.edges(e, end);
        if (row == first && offset_of(g, row) + row < from) {
            walker.leave(row, 2 * chunk);
        } else {
            walker.finish(row);
        }
        e = end;
    }
    if (last < g.rows && to - last > e) {
        walker.begin(last);
        walker.edges(e, to - last);
        walker.leave(last, 2 * chunk + 1);
    }
}

// If a row begins in this chunk and ends in another: begin(row), part(slot) for each part in order, finish(row).
template <typename Walker>
__device__ __forceinline__ void join(const Graph& g, size_t chunk, Walker& walker) {
    const size_t from = chunk * g.chunk, to = from + g.chunk;
    if (to >= g.rows + g.edges) return;
    const size_t row = rows_before<1>(g, to);
    const size_t begins = offset_of(g, row) + row;
    if (begins < from || begins >= to) return;
    const size_t last = (offset_of(g, row + 1) + row) / g.chunk;
    walker.begin(row);
    for (size_t c = chunk; c < last; ++c) walker.part(2 * c + 1);
    walker.part(2 * last);
    walker.finish(row);
}

// Lanes that work together, neighbours in a warp.
struct Team {
    uint32_t lane;
    uint32_t lanes;
    uint32_t mask;

    __device__ __forceinline__ explicit Team(uint32_t lanes)
        : lane(threadIdx.x % lanes),
          lanes(lanes),
          mask(lanes == 32 ? 0xFFFFFFFFu : ((1u << lanes) - 1) << (threadIdx.x % 32 / lanes * lanes)) {}

    // Every lane gets the sum, the same bits in all. Lanes whose numbers differ in bits below `stride` are kept apart.
    __device__ __forceinline__ float sum(float v, uint32_t stride = 1) const {
        for (uint32_t offset = lanes / 2; offset >= stride; offset /= 2) v += __shfl_xor_sync(mask, v, offset);
        return v;
    }
};

// Calls body(work) for every piece of work below `count`, one each team of the grid at a time.
template <typename Body>
__device__ __forceinline__ void for_teams(const Team& team, size_t count, Body body) {
    const size_t teams = blockDim.x / team.lanes;
    for (size_t work = blockIdx.x * teams + threadIdx.x / team.lanes; work < count; work += gridDim.x * teams) body(work);
}

// A lane's columns of a row: one unit of 16 bytes, or four single columns, a team's width apart.
template <typename T, bool VECTOR>
struct Slice {
    static constexpr int N = VECTOR ? PACK<T> : 4;
    size_t first;
    // Columns from the first on that exist.
    size_t left;
    size_t step;

    // `tile` counts from column `begin` on, the first of `width` columns.
    __device__ __forceinline__ Slice(const Team& team, size_t begin, size_t width, size_t tile) {
        const size_t at = tile * team.lanes * N + (VECTOR ? team.lane * N : team.lane);
        first = begin + at;
        left = at < width ? width - at : 0;
        step = team.lanes;
    }

    __device__ __forceinline__ size_t column(int i) const { return first + (VECTOR ? i : i * step); }
    __device__ __forceinline__ bool inside(int i) const { return (VECTOR ? 0 : i * step) < left; }

    __device__ __forceinline__ void load(const T* row, float (&v)[N]) const {
        if constexpr (VECTOR) {
            if (left > 0) {
                tile::load<T, N>(row + first, v);
                return;
            }
        }
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = !VECTOR && inside(i) ? widen(row[column(i)]) : 0.0f;
    }
};

// Tiles of columns that a head of `d` columns is cut into.
template <typename T, bool VECTOR>
__device__ __forceinline__ size_t tiles_of(const Team& team, size_t d) {
    const size_t width = team.lanes * Slice<T, VECTOR>::N;
    return (d + width - 1) / width;
}

}  // namespace tile
