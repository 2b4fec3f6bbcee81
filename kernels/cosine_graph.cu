// The graph of similar rows: j → i where  cos(a_i, b_j) > threshold.
//
//   norms     squares[i] = Σ_c x[i, c]²  in f64
//   unit      x[i, :] / |x_i| in f16, the columns filled up with zeros to a multiple of eight
//   pairs     tiles of the product of these; every pair that is an edge is counted in degrees, and listed while there is room, or, once
//             offsets are known, put into its row
//   scan      offsets of the rows from their degrees, and the largest of these (tile/scan.cuh)
//   place     puts the listed pairs into their rows
//   order     sorts the columns of each row                  (they come in any order, so that what is left does not depend on it)
//   weights   the similarity of every edge
//
// The similarity of a pair is its product over the root of both squares in f64, in the order of the columns, rounded to f32 once. The
// product of rows of f16 is off by less than `band`; a pair closer than that to the threshold is decided by its similarity itself.
// So the edges do not depend on the tile, nor on the device.
//
//   pairs: a block of 256 threads takes 128 x 128 pairs on tensor cores (tile/gemm_mma.cuh), a thread 64 of them
//
//              b rows                 Of rows among themselves only tiles on and above the diagonal are computed, and of those on it the
//            +---------+              pairs above; each pair is an edge in both directions. A thread's decisions are bits of a word;
//   a rows   |128 x 128|              those near the threshold are looked at again one by one, and what is left is counted over
//            +---------+              the block, so that it takes its places in the list with one atomic add (of integers).
//
// Limited by tensor cores, and by reading both operands' tiles from the second-level cache.

#include "tile/gemm_mma.cuh"
#include "tile/scan.cuh"

#if !defined(COSINE_GRAPH_ROW_THREADS) || !defined(COSINE_GRAPH_TILE) || !defined(COSINE_GRAPH_STEP) || \
    !defined(COSINE_GRAPH_STAGES) || !defined(COSINE_GRAPH_SHARED)
#error "the COSINE_GRAPH_ constants come from the kernel table"
#endif

struct Params {
    const void* a;
    const void* b;
    double* a_squares;
    double* b_squares;
    // Rows of length 1 of this panel of a and of b.
    __half* a_unit;
    const __half* b_unit;
    uint32_t* degrees;
    // How many columns of each row have been put.
    uint32_t* cursors;
    void* offsets;
    int32_t* unsorted;
    int32_t* indices;
    float* weights;
    // (row, column) of pairs, how many there is room for, and how many there are; then the largest degree.
    uint2* list;
    size_t capacity;
    unsigned long long* found;
    // First row of the panel, and how many it has.
    size_t a_first;
    size_t a_rows;
    size_t b_first;
    size_t b_rows;
    // Rows and columns of the graph.
    size_t rows;
    size_t cols;
    size_t f;
    // f filled up.
    size_t width;
    float threshold;
    float band;
    uint32_t flags;
    uint32_t reserved;
};
static_assert(sizeof(Params) == 200 && offsetof(Params, capacity) == 104 && offsetof(Params, threshold) == 184,
              "mirrors gpu.rs");

// MIRROR: a pair is an edge both ways. TRIANGLE: both panels are the same rows. PUT: into rows, not into the list.
enum Flag : uint32_t { MIRROR = 1, TRIANGLE = 2, PUT = 4, WIDE_OFFSETS = 8 };

constexpr int TILE = COSINE_GRAPH_TILE, STEP = COSINE_GRAPH_STEP, ROW_THREADS = COSINE_GRAPH_ROW_THREADS;
using Gemm = tile::MmaGemm<tile::Layout::NT, __half, __half, TILE, TILE, STEP, 64, 32, COSINE_GRAPH_STAGES>;
using Work = tile::Work<tile::Layout::NT, TILE, TILE, STEP>;
static_assert(Gemm::SHARED_BYTES == COSINE_GRAPH_SHARED && Gemm::THREADS == 256, "as in the kernel table");

template <typename T>
__device__ __forceinline__ float similarity(const Params& p, size_t i, size_t j) {
    const T* a = static_cast<const T*>(p.a) + i * p.f;
    const T* b = static_cast<const T*>(p.b) + j * p.f;
    double product = 0.0;
    for (size_t c = 0; c < p.f; ++c)
        product = fma(static_cast<double>(tile::widen(a[c])), static_cast<double>(tile::widen(b[c])), product);
    return static_cast<float>(product / sqrt(p.a_squares[i] * p.b_squares[j]));
}

template <typename T>
__device__ __forceinline__ void norms(const Params& p) {
    tile::for_units(p.rows, [&](size_t i) {
        const T* row = static_cast<const T*>(p.a) + i * p.f;
        double sum = 0.0;
        for (size_t c = 0; c < p.f; ++c) {
            const double v = static_cast<double>(tile::widen(row[c]));
            sum = fma(v, v, sum);
        }
        p.a_squares[i] = sum;
    });
}

// Eight columns of a row.
template <typename T>
__device__ __forceinline__ void unit(const Params& p) {
    const size_t packs = p.width / 8;
    tile::for_units(p.a_rows * packs, [&](size_t u) {
        const size_t row = p.a_first + u / packs, c = u % packs * 8;
        const T* from = static_cast<const T*>(p.a) + row * p.f + c;
        // A row of zeros has no direction and stays one.
        const double square = p.a_squares[row], scale = square > 0.0 ? 1.0 / sqrt(square) : 0.0;
        float v[8];
#pragma unroll
        for (int i = 0; i < 8; ++i)
            v[i] = c + i < p.f ? static_cast<float>(static_cast<double>(tile::widen(from[i])) * scale) : 0.0f;
        tile::store<__half, 8>(p.a_unit + u * 8, v);
    });
}

__device__ __forceinline__ size_t offset_of(const Params& p, size_t row) {
    return p.flags & WIDE_OFFSETS ? static_cast<size_t>(static_cast<const int64_t*>(p.offsets)[row])
                                  : static_cast<size_t>(static_cast<const int32_t*>(p.offsets)[row]);
}

__device__ __forceinline__ void put(const Params& p, size_t row, size_t column) {
    p.unsorted[offset_of(p, row) + atomicAdd(p.cursors + row, 1u)] = static_cast<int32_t>(column);
    if (p.flags & MIRROR) p.unsorted[offset_of(p, column) + atomicAdd(p.cursors + column, 1u)] = static_cast<int32_t>(row);
}

// The corner of this block's tile. Of a triangle of n rows of tiles, row i and row n - 1 - i make a line of n + 1 tiles; the middle row of
// an odd number is alone in its line. Whether there is such a tile. A panel has few enough rows to count its tiles in 32 bits.
__device__ __forceinline__ bool corner(const Params& p, Work& at) {
    const uint32_t across = static_cast<uint32_t>((p.b_rows + TILE - 1) / TILE);
    uint32_t down = blockIdx.x / across, col = blockIdx.x % across;
    if (p.flags & TRIANGLE) {
        down = blockIdx.x / (across + 1);
        col = down + blockIdx.x % (across + 1);
        if (col >= across) {
            col -= across;
            if (across - 1 - down == down) return false;
            down = across - 1 - down;
            col += down;
        }
    }
    at.row = static_cast<size_t>(down) * TILE;
    at.col = static_cast<size_t>(col) * TILE;
    return true;
}

template <typename T>
__device__ __forceinline__ void pairs(const Params& p, uint4* shared, uint32_t* total, unsigned long long* base) {
    tile::GemmParams product{};
    product.a2 = p.a_unit;
    product.b2 = p.b_unit;
    product.m = p.a_rows;
    product.n = p.b_rows;
    product.k2 = product.stride_a = product.stride_b = p.width;
    product.flags = tile::VECTOR_A2 | tile::VECTOR_B2;
    Work at(product);
    if (!corner(p, at)) return;
    Gemm::Sums sums;
    Gemm::accumulate(product, at, shared, sums);
    const float low = p.threshold - p.band, high = p.threshold + p.band;
    // Of a triangle, the tiles above the diagonal count whole.
    const int rows = tile::left(p.a_rows, at.row, TILE), cols = tile::left(p.b_rows, at.col, TILE);
    const bool diagonal = (p.flags & TRIANGLE) && at.row == at.col;
    uint64_t edges = 0, near = 0;
    int bit = 0;
    Gemm::each_pair(sums, [&](int row, int col, const float(&pair)[2]) {
#pragma unroll
        for (int e = 0; e < 2; ++e, ++bit) {
            const bool counts = row < rows && col + e < cols && !(diagonal && col + e <= row);
            edges |= static_cast<uint64_t>(counts && pair[e] > high) << bit;
            near |= static_cast<uint64_t>(counts && pair[e] > low && !(pair[e] > high)) << bit;
        }
    });
    // The pair of a bit, by the numbers of its rows: the order is that of each_pair.
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const size_t first_row = p.a_first + at.row + warp / Gemm::WARPS_N * 64 + lane / 4;
    const size_t first_col = p.b_first + at.col + warp % Gemm::WARPS_N * 32 + lane % 4 * 2;
    const auto row_of = [&](int bit) { return first_row + bit / (2 * Gemm::TILES_N) * 8; };
    const auto col_of = [&](int bit) { return first_col + bit / 2 % Gemm::TILES_N * 8 + bit % 2; };
    for (; near != 0; near &= near - 1) {
        const int b = __ffsll(static_cast<long long>(near)) - 1;
        if (similarity<T>(p, row_of(b), col_of(b)) > p.threshold) edges |= 1ull << b;
    }
    if (high < 0.0f) {
        // Below a negative threshold lies the 0 of rows without a direction.
        for (uint64_t rest = edges; rest != 0; rest &= rest - 1) {
            const int b = __ffsll(static_cast<long long>(rest)) - 1;
            if (!(p.a_squares[row_of(b)] > 0.0 && p.b_squares[col_of(b)] > 0.0)) edges &= ~(1ull << b);
        }
    }
    if (p.flags & PUT) {
        for (; edges != 0; edges &= edges - 1) {
            const int b = __ffsll(static_cast<long long>(edges)) - 1;
            put(p, row_of(b), col_of(b));
        }
        return;
    }
    if (threadIdx.x == 0) *total = 0;
    // The total is zero.
    __syncthreads();
    uint32_t before = 0;
    if (edges != 0) before = atomicAdd(total, static_cast<uint32_t>(__popcll(edges)));
    // All have been counted.
    __syncthreads();
    if (threadIdx.x == 0 && *total != 0) *base = atomicAdd(p.found, static_cast<unsigned long long>(*total));
    // The tile has its places.
    __syncthreads();
    for (; edges != 0; edges &= edges - 1, ++before) {
        const int b = __ffsll(static_cast<long long>(edges)) - 1;
        const size_t row = row_of(b), column = col_of(b), place = *base + before;
        atomicAdd(p.degrees + row, 1u);
        if (p.flags & MIRROR) atomicAdd(p.degrees + column, 1u);
        if (place < p.capacity) p.list[place] = make_uint2(static_cast<uint32_t>(row), static_cast<uint32_t>(column));
    }
}

// One block.
__device__ __forceinline__ void scan(const Params& p, size_t* scratch) {
    unsigned long long most = 0;
    const auto count = [&](size_t row) {
        const uint32_t degree = p.degrees[row];
        most = degree > most ? degree : most;
        return degree;
    };
    const auto store = [&](size_t row, size_t before) {
        if (p.flags & WIDE_OFFSETS) {
            static_cast<int64_t*>(p.offsets)[row] = static_cast<int64_t>(before);
        } else {
            static_cast<int32_t*>(p.offsets)[row] = static_cast<int32_t>(before);
        }
    };
    tile::block_offsets<ROW_THREADS>(p.rows, scratch, count, store);
    atomicMax(p.found + 1, most);
}

__device__ __forceinline__ void place(const Params& p) {
    tile::for_units(p.capacity, [&](size_t i) { put(p, p.list[i].x, p.list[i].y); });
}

// Columns that a block sorts at once, a bit each.
constexpr int WORDS = 4096, WARPS = ROW_THREADS / 32, OWN = WORDS / WARPS;
constexpr size_t BITS = 32 * static_cast<size_t>(WORDS);

// One block a row: the columns become bits, and the bits columns again, in order.
__device__ __forceinline__ void order(const Params& p, uint32_t* bits, uint32_t* counts) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t* own = bits + warp * OWN;
    for (size_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
        const size_t first = offset_of(p, row), last = offset_of(p, row + 1);
        size_t to = first;
        for (size_t from = 0; from < p.cols && to < last; from += BITS) {
            const size_t left = (p.cols - from + 31) / 32;
            const uint32_t words = left < WORDS ? static_cast<uint32_t>(left) : WORDS;
            for (uint32_t w = threadIdx.x; w < words; w += ROW_THREADS) bits[w] = 0;
            // All bits are zero.
            __syncthreads();
            for (size_t e = first + threadIdx.x; e < last; e += ROW_THREADS) {
                const size_t column = static_cast<size_t>(p.unsorted[e]) - from;
                if (column < BITS) atomicOr(bits + column / 32, 1u << column % 32);
            }
            // All columns of the window are there.
            __syncthreads();
            const uint32_t mine = warp * OWN < words ? (words - warp * OWN < OWN ? words - warp * OWN : OWN) : 0;
            uint32_t count = 0;
            for (uint32_t w = lane; w < mine; w += 32) count += __popc(own[w]);
            count = __reduce_add_sync(0xFFFFFFFFu, count);
            if (lane == 0) counts[warp] = count;
            // All warps have counted theirs.
            __syncthreads();
            size_t at = to;
            for (uint32_t w = 0; w < WARPS; ++w) {
                if (w < warp) at += counts[w];
                to += counts[w];
            }
            for (uint32_t w = 0; w < mine; w += 32) {
                uint32_t word = w + lane < mine ? own[w + lane] : 0;
                // Bits of the lanes up to and with this one.
                uint32_t before = __popc(word);
#pragma unroll
                for (int offset = 1; offset < 32; offset *= 2) {
                    const uint32_t other = __shfl_up_sync(0xFFFFFFFFu, before, offset);
                    if (lane >= offset) before += other;
                }
                const uint32_t all = __shfl_sync(0xFFFFFFFFu, before, 31);
                size_t place = at + before - __popc(word);
                for (; word != 0; word &= word - 1)
                    p.indices[place++] = static_cast<int32_t>(from + (warp * OWN + w + lane) * 32 + __ffs(word) - 1);
                at += all;
            }
            // All bits and counts have been read.
            __syncthreads();
        }
    }
}

// One thread an edge, one warp a row.
template <typename T>
__device__ __forceinline__ void weights(const Params& p) {
    const uint32_t lane = threadIdx.x % 32;
    const size_t warps = blockDim.x / 32;
    for (size_t row = blockIdx.x * warps + threadIdx.x / 32; row < p.rows; row += gridDim.x * warps) {
        const size_t last = offset_of(p, row + 1);
        for (size_t e = offset_of(p, row) + lane; e < last; e += 32)
            p.weights[e] = similarity<T>(p, row, static_cast<size_t>(p.indices[e]));
    }
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS) cosine_graph_scan_u32_t256_sm80(const __grid_constant__ Params p) {
    __shared__ size_t scratch[ROW_THREADS / 32];
    scan(p, scratch);
}
extern "C" __global__ void __launch_bounds__(ROW_THREADS) cosine_graph_place_u32_t256_sm80(const __grid_constant__ Params p) {
    place(p);
}
extern "C" __global__ void __launch_bounds__(ROW_THREADS) cosine_graph_order_u32_t256_sm80(const __grid_constant__ Params p) {
    __shared__ uint32_t bits[WORDS];
    __shared__ uint32_t counts[WARPS];
    order(p, bits, counts);
}

extern __shared__ __align__(16) uint4 ring[];

#define COSINE_GRAPH(NAME, T)                                                                    \
    extern "C" __global__ void __launch_bounds__(ROW_THREADS)                                    \
        cosine_graph_norms_##NAME##_t256_sm80(const __grid_constant__ Params p) {                \
        norms<T>(p);                                                                             \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(ROW_THREADS)                                    \
        cosine_graph_unit_##NAME##_t256_sm80(const __grid_constant__ Params p) {                 \
        unit<T>(p);                                                                              \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(Gemm::THREADS, 2)                               \
        cosine_graph_pairs_##NAME##_128x128x32_sm80(const __grid_constant__ Params p) {          \
        __shared__ uint32_t total;                                                               \
        __shared__ unsigned long long base;                                                      \
        pairs<T>(p, ring, &total, &base);                                                        \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(ROW_THREADS)                                    \
        cosine_graph_weights_##NAME##_t256_sm80(const __grid_constant__ Params p) {              \
        weights<T>(p);                                                                           \
    }

COSINE_GRAPH(f32, float)
COSINE_GRAPH(f16, __half)
COSINE_GRAPH(bf16, __nv_bfloat16)
