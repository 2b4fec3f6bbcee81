// A finished tile on its way out: each warp packs 16 rows and WIDTH columns of its sums at a time into shared memory and lets the
// copy engine write them. A warp has two such panels, so that one is packed while the other leaves, and the last two leave while
// the next tile is being multiplied. Warps do not wait for one another.
#pragma once

#include <cstdint>

#include "ptx/stmatrix.cuh"
#include "ptx/tensor_copy.cuh"
#include "tile/activation.cuh"
#include "tile/elements.cuh"

namespace tile {

constexpr int PANEL_ROWS = 16;

// The result, where a sum needs more than its own factor: a bias for each column, or what out already holds.
template <typename T>
struct Finish {
    const T* bias;
    const T* held;
    size_t rows;
    size_t cols;
    float scale;

    // Two neighbouring columns, the first of them even; cols is a multiple of 8. Where out lies ACROSS, they are apart.
    template <bool ACROSS>
    __device__ __forceinline__ uint32_t pair(size_t row, size_t col, float first, float second) const {
        first *= scale;
        second *= scale;
        if (col < cols) {
            if (bias != nullptr) add(first, second, bias + col);
            if (held != nullptr && row < rows) {
                if constexpr (ACROSS) {
                    first += widen(held[col * rows + row]);
                    second += widen(held[(col + 1) * rows + row]);
                } else {
                    add(first, second, held + row * cols + col);
                }
            }
        }
        return repack<T>(first, second);
    }

    static __device__ __forceinline__ void add(float& first, float& second, const T* from) {
        const float2 v = unpack<T>(*reinterpret_cast<const uint32_t*>(from));
        first += v.x;
        second += v.y;
    }
};

// φ of out, if any, and the map of where it goes. `keeps`: out is written as well.
struct Activate {
    uint32_t activation;
    uint32_t keeps;
    const ptx::TensorMap* activated;
};

// Offset of a 16-byte chunk of a row of LINE bytes, permuted as the copy engine has it. Eight neighbouring rows touch every bank once.
template <int LINE>
__device__ __forceinline__ int swizzled(int row, int chunk) {
    static_assert(LINE == 128 || LINE == 64 || LINE == 32, "a line is one span of a swizzle");
    const int turn = LINE == 128 ? row & 7 : LINE == 64 ? row >> 1 & 3 : row >> 2 & 1;
    return row * LINE + ((chunk ^ turn) << 4);
}

// WIDTH columns are one line of shared memory, whose chunks are permuted as the tensor map of out says. Where out lies ACROSS, as its
// transpose, they are WIDTH lines of 16 rows.
template <typename T, int WIDTH>
struct PanelStore {
    static constexpr int LINE = WIDTH * 2, ACROSS_LINE = PANEL_ROWS * 2;
    static constexpr int PANEL_BYTES = PANEL_ROWS * LINE, WARP_BYTES = 2 * PANEL_BYTES;

    // `buffer` holds this warp's two panels, used in turn; FIRST is the number of panels written since the first was. Sums as wgmma
    // leaves them: 16 rows from `row` on, COUNT * 2 columns from `col` on.
    template <int FIRST, bool ACROSS = false, int COUNT>
    static __device__ __forceinline__ void store(unsigned char* buffer, const ptx::TensorMap* out, const Finish<T>& finish,
                                                 const float (&sums)[COUNT], size_t row, size_t col) {
        each_panel<FIRST, ACROSS>(buffer, 1, finish, sums, row, col, [&](unsigned char* packed, int32_t x, int32_t y) {
            send(out, packed, ACROSS ? y : x, ACROSS ? x : y);
        });
    }

    // The same, or φ of it, or both. A tile has an even number of panels.
    template <int COUNT>
    static __device__ __forceinline__ void store_activated(unsigned char* buffer, const ptx::TensorMap* out, const Activate& phi,
                                                           const Finish<T>& finish, const float (&sums)[COUNT], size_t row,
                                                           size_t col) {
        static_assert(COUNT * 2 / WIDTH % 2 == 0, "the next tile starts with the first panel");
        const bool activates = phi.activation != NO_ACTIVATION, both = activates && phi.keeps;
        each_panel<0, false>(buffer, both ? 2 : 1, finish, sums, row, col, [&](unsigned char* packed, int32_t x, int32_t y) {
            if (!activates || both) send(out, packed, x, y);
            if (!activates) return;
            unsigned char* to = both ? buffer + PANEL_BYTES : packed;
            // The copy engine has read what was in the second panel before; all lanes have packed their part.
            if (both && threadIdx.x % 32 == 0) ptx::cp_async_bulk_wait_group_read<1>();
            __syncwarp();
            // Not unrolled: one copy of the functions is enough. Neighbours take neighbouring words.
#pragma unroll 1
            for (int i = threadIdx.x % 32; i < PANEL_BYTES / 4; i += 32) {
                const float2 v = unpack<T>(reinterpret_cast<const uint32_t*>(packed)[i]);
                reinterpret_cast<uint32_t*>(to)[i] = repack<T>(applied(phi.activation, v.x), applied(phi.activation, v.y));
            }
            send(phi.activated, to, x, y);
        });
    }

    // Packs panel after panel and calls leave(panel, column, row) for each, which sends so many on their way.
    template <int FIRST, bool ACROSS, int COUNT, typename Leave>
    static __device__ __forceinline__ void each_panel(unsigned char* buffer, int sends, const Finish<T>& finish,
                                                      const float (&sums)[COUNT], size_t row, size_t col, Leave leave) {
        const int lane = threadIdx.x % 32;
        const size_t own_row = row + lane / 4, own_col = col + lane % 4 * 2;
#pragma unroll
        for (int panel = 0; panel < COUNT * 2 / WIDTH; ++panel) {
            unsigned char* to = buffer + (FIRST + panel * sends) % 2 * PANEL_BYTES;
            // The copy engine has read what was in this panel before; the whole warp may write to it.
            if (lane == 0) ptx::cp_async_bulk_wait_group_read<1>();
            __syncwarp();
#pragma unroll
            for (int chunk = 0; chunk < WIDTH / 8; chunk += 2) {
                uint32_t words[4];
#pragma unroll
                for (int w = 0; w < 4; ++w) {
                    const int i = panel * WIDTH / 2 + (chunk + w / 2) * 4 + w % 2 * 2;
                    words[w] = finish.template pair<ACROSS>(own_row + w % 2 * 8, own_col + panel * WIDTH + (chunk + w / 2) * 8,
                                                            sums[i], sums[i + 1]);
                }
                if constexpr (ACROSS) {
                    unsigned char* line = to + swizzled<ACROSS_LINE>((chunk + lane / 16) * 8 + lane % 8, lane / 8 % 2);
                    ptx::stmatrix_x4_trans(line, words[0], words[1], words[2], words[3]);
                } else {
                    unsigned char* line = to + swizzled<LINE>(lane % 16, chunk + lane / 16);
                    ptx::stmatrix_x4(line, words[0], words[1], words[2], words[3]);
                }
            }
            leave(to, static_cast<int32_t>(col + panel * WIDTH), static_cast<int32_t>(row));
        }
    }

    // What all lanes have written leaves.
    static __device__ __forceinline__ void send(const ptx::TensorMap* out, const unsigned char* panel, int32_t x, int32_t y) {
        ptx::fence_proxy_async();
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
            ptx::cp_async_bulk_tensor_2d_store(out, panel, x, y);
            ptx::cp_async_bulk_commit_group();
        }
    }

    // Shared memory may go: everything in it has been read.
    static __device__ __forceinline__ void drain() {
        if (threadIdx.x % 32 == 0) ptx::cp_async_bulk_wait_group_read<0>();
    }
};

}  // namespace tile
