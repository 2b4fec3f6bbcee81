// The index arrays of a block pattern from a mask of its blocks, one byte each, [rows, columns].
//
//   count:  how many blocks each row and each column has            one warp a row, one warp a column
//   scan:   the offsets: running sums of the counts (tile/scan.cuh) one block of threads for the rows, one for the columns
//   fill:   columns and rows, in row order                          one warp a row
//   turn:   t_rows and t_blocks, in column order                    one warp a column
//
// A warp looks at 32 flags at a time; a block's position is the number of flags before it, so that the order is that of the mask
// whatever runs first. Limited by launches: masks are small.

#include "tile/scan.cuh"

#ifndef TOPOLOGY_THREADS
#error "TOPOLOGY_THREADS comes from the kernel table"
#endif

struct TopologyParams {
    const uint8_t* mask;
    // [rows + 1] and [columns + 1]: counts first, then offsets.
    uint32_t* offsets;
    uint32_t* t_offsets;
    uint32_t* columns;
    uint32_t* rows;
    uint32_t* t_rows;
    uint32_t* t_blocks;
    // [rows, columns]: the number of the block there.
    uint32_t* numbers;
    uint32_t grid_rows;
    uint32_t grid_columns;
};
static_assert(sizeof(TopologyParams) == 72 && offsetof(TopologyParams, grid_rows) == 64, "mirrors src/ops/topology/gpu.rs");

__device__ __forceinline__ bool flag(const TopologyParams& p, uint32_t row, uint32_t column) {
    return row < p.grid_rows && column < p.grid_columns && p.mask[static_cast<size_t>(row) * p.grid_columns + column] != 0;
}

// Calls body(row, column, position among the line's) for the flags of a warp's own lines: rows, then columns.
template <bool COLUMNS, typename Start, typename Body, typename End>
__device__ __forceinline__ void for_lines(const TopologyParams& p, Start start, Body body, End end) {
    const uint32_t lane = threadIdx.x % 32, warps = gridDim.x * (TOPOLOGY_THREADS / 32);
    const uint32_t lines = COLUMNS ? p.grid_columns : p.grid_rows, length = COLUMNS ? p.grid_rows : p.grid_columns;
    for (uint32_t line = blockIdx.x * (TOPOLOGY_THREADS / 32) + threadIdx.x / 32; line < lines; line += warps) {
        uint32_t before = start(line);
        for (uint32_t at = 0; at < length; at += 32) {
            const uint32_t own = at + lane, row = COLUMNS ? own : line, column = COLUMNS ? line : own;
            const bool set = flag(p, row, column);
            const uint32_t all = __ballot_sync(0xFFFFFFFFu, set);
            if (set) body(row, column, before + __popc(all & ((1u << lane) - 1)));
            before += __popc(all);
        }
        if (lane == 0) end(line, before);
    }
}

extern "C" __global__ void __launch_bounds__(TOPOLOGY_THREADS) topology_count_u8_t256_sm80(
    const __grid_constant__ TopologyParams p) {
    const auto zero = [](uint32_t) { return 0u; };
    const auto nothing = [](uint32_t, uint32_t, uint32_t) {};
    for_lines<false>(p, zero, nothing, [&](uint32_t line, uint32_t count) { p.offsets[line] = count; });
    for_lines<true>(p, zero, nothing, [&](uint32_t line, uint32_t count) { p.t_offsets[line] = count; });
}

// Turns counts into offsets in place.
extern "C" __global__ void __launch_bounds__(TOPOLOGY_THREADS) topology_scan_u32_t256_sm80(
    const __grid_constant__ TopologyParams p) {
    __shared__ uint32_t scratch[TOPOLOGY_THREADS / 32];
    uint32_t* counts = blockIdx.x == 0 ? p.offsets : p.t_offsets;
    const uint32_t length = blockIdx.x == 0 ? p.grid_rows : p.grid_columns;
    tile::block_offsets<TOPOLOGY_THREADS>(
        length, scratch, [&](size_t i) { return counts[i]; }, [&](size_t i, uint32_t before) { counts[i] = before; });
}

extern "C" __global__ void __launch_bounds__(TOPOLOGY_THREADS) topology_fill_u32_t256_sm80(
    const __grid_constant__ TopologyParams p) {
    const auto put = [&](uint32_t row, uint32_t column, uint32_t at) {
        p.columns[at] = column;
        p.rows[at] = row;
        p.numbers[static_cast<size_t>(row) * p.grid_columns + column] = at;
    };
    for_lines<false>(p, [&](uint32_t line) { return p.offsets[line]; }, put, [](uint32_t, uint32_t) {});
}

extern "C" __global__ void __launch_bounds__(TOPOLOGY_THREADS) topology_turn_u32_t256_sm80(
    const __grid_constant__ TopologyParams p) {
    const auto put = [&](uint32_t row, uint32_t column, uint32_t at) {
        p.t_rows[at] = row;
        p.t_blocks[at] = p.numbers[static_cast<size_t>(row) * p.grid_columns + column];
    };
    for_lines<true>(p, [&](uint32_t line) { return p.t_offsets[line]; }, put, [](uint32_t, uint32_t) {});
}
