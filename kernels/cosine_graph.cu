// The graph of similar rows: j → i where  cos(a_i, b_j) > threshold.
//
//   norms     squares[i] = Σ_c x[i, c]²  in f64
//   mask      one bit a pair: bit j of row i of the mask says whether there is an edge
//   count     degrees[i] = bits of row i                    fill   columns of the bits of row i, in order
//   weights   the similarity of every edge                   (offsets are added up between count and fill)
//
// The similarity of a pair is its product over the root of both squares in f64, in the order of the columns, rounded to f32 once. `mask`
// computes a product of normalised rows in f32, which is off by less than `band`; a pair closer than that to the threshold is decided
// by its similarity itself. So the edges do not depend on the tile, nor on the device.
//
//   mask: a block of 128 threads takes 64 x 64 pairs, a thread 8 x 4 of them
//
//              b rows, normalised           rows lie with the columns along the tile's rows, [16][64 + 4], so that a
//            +---------+                    thread reads its 8 rows and 4 columns of one c as vectors; the next 16
//   a rows   | 64 x 64 |                    columns are on their way meanwhile
//            +---------+
//
//   Of a graph of rows among themselves, tiles below the diagonal are not computed: each tile writes its mirror image too.
//   Four decisions of a thread make a nibble in shared memory; eight nibbles, or a bit of 32, make a word of the mask.
//
// Limited by f32 multiply-adds.

#include "tile/elements.cuh"

#if !defined(COSINE_GRAPH_THREADS) || !defined(COSINE_GRAPH_ROW_THREADS) || !defined(COSINE_GRAPH_TILE) || \
    !defined(COSINE_GRAPH_STEP)
#error "the COSINE_GRAPH_ constants come from the kernel table"
#endif

struct Params {
    const void* a;
    const void* b;
    double* a_squares;
    double* b_squares;
    uint32_t* mask;
    void* degrees;
    const void* offsets;
    void* indices;
    float* weights;
    // Rows of a: all, and the first of this band of them.
    size_t rows;
    size_t first;
    // Rows of the band, and rows of b.
    size_t band_rows;
    size_t cols;
    size_t f;
    // Words of a row of the mask.
    size_t words;
    float threshold;
    float band;
    uint32_t among;
    uint32_t mirror;
    uint32_t wide_offsets;
    uint32_t reserved;
};
static_assert(sizeof(Params) == 144 && offsetof(Params, rows) == 72 && offsetof(Params, threshold) == 120,
              "mirrors gpu.rs");

constexpr int TILE = COSINE_GRAPH_TILE, STEP = COSINE_GRAPH_STEP, THREADS = COSINE_GRAPH_THREADS;
constexpr int TM = 8, TN = 4, ACROSS = TILE / TN, PITCH = TILE + 4;
static_assert(TILE == 64 && STEP == 16 && THREADS == 128, "the mapping of threads is made for these");

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

// A thread's part of a tile of 64 rows of 16 columns, normalised: eight columns of one row. The threads of a warp have
// neighbouring rows, which they store to neighbouring banks.
template <typename T>
struct Staged {
    const T* row;
    double scale;
    float v[STEP / 2];

    __device__ __forceinline__ Staged(const void* x, const double* squares, size_t at, size_t end, size_t f)
        : row(at < end ? static_cast<const T*>(x) + at * f : nullptr), scale(0.0) {
        // A row of zeros has no direction and stays one.
        if (row != nullptr && squares[at] > 0.0) scale = 1.0 / sqrt(squares[at]);
    }

    __device__ __forceinline__ void load(size_t c, size_t f) {
        c += threadIdx.x / TILE * (STEP / 2);
#pragma unroll
        for (int i = 0; i < STEP / 2; ++i)
            v[i] = row != nullptr && c + i < f
                       ? static_cast<float>(static_cast<double>(tile::widen(row[c + i])) * scale)
                       : 0.0f;
    }

    __device__ __forceinline__ void store(float* tile) const {
#pragma unroll
        for (int i = 0; i < STEP / 2; ++i)
            tile[(threadIdx.x / TILE * (STEP / 2) + i) * PITCH + threadIdx.x % TILE] = v[i];
    }
};

template <typename T>
__device__ __forceinline__ void mask(const Params& p, float* shared, uint8_t (*nibbles)[ACROSS]) {
    const size_t down = (p.band_rows + TILE - 1) / TILE, across = (p.cols + TILE - 1) / TILE;
    for (size_t work = blockIdx.x; work < down * across; work += gridDim.x) {
        const size_t first_row = work / across * TILE, first_col = work % across * TILE;
        if (p.mirror && first_col < first_row) continue;
        float* rows = shared;
        float* cols = shared + STEP * PITCH;
        Staged<T> a(p.a, p.a_squares, p.first + first_row + threadIdx.x % TILE, p.first + p.band_rows, p.f);
        Staged<T> b(p.b, p.b_squares, first_col + threadIdx.x % TILE, p.cols, p.f);
        const int row = threadIdx.x / ACROSS * TM, col = threadIdx.x % ACROSS * TN;
        float sums[TM][TN] = {};
        a.load(0, p.f);
        b.load(0, p.f);
        for (size_t c = 0; c < p.f; c += STEP) {
            // The step before, and the nibbles of the tile before, have been read.
            __syncthreads();
            a.store(rows);
            b.store(cols);
            // Both tiles are written.
            __syncthreads();
            if (c + STEP < p.f) {
                a.load(c + STEP, p.f);
                b.load(c + STEP, p.f);
            }
#pragma unroll
            for (int k = 0; k < STEP; ++k) {
                float u[TM], v[TN];
#pragma unroll
                for (int i = 0; i < TM; i += 4)
                    *reinterpret_cast<float4*>(u + i) = *reinterpret_cast<const float4*>(rows + k * PITCH + row + i);
                *reinterpret_cast<float4*>(v) = *reinterpret_cast<const float4*>(cols + k * PITCH + col);
#pragma unroll
                for (int i = 0; i < TM; ++i)
#pragma unroll
                    for (int j = 0; j < TN; ++j) sums[i][j] = fmaf(u[i], v[j], sums[i][j]);
            }
        }
#pragma unroll
        for (int i = 0; i < TM; ++i) {
            uint32_t nibble = 0;
#pragma unroll
            for (int j = 0; j < TN; ++j) {
                const size_t y = p.first + first_row + row + i, x = first_col + col + j;
                bool edge = y < p.first + p.band_rows && x < p.cols && !(p.among && x == y) &&
                            sums[i][j] > p.threshold - p.band;
                if (edge && !(sums[i][j] > p.threshold + p.band)) {
                    edge = p.a_squares[y] > 0.0 && p.b_squares[x] > 0.0 && similarity<T>(p, y, x) > p.threshold;
                } else if (edge) {
                    // Below a negative threshold lies the 0 of rows without a direction.
                    edge = p.a_squares[y] > 0.0 && p.b_squares[x] > 0.0;
                }
                nibble |= static_cast<uint32_t>(edge) << j;
            }
            nibbles[row + i][threadIdx.x % ACROSS] = static_cast<uint8_t>(nibble);
        }
        // All decisions are written.
        __syncthreads();
        const int line = threadIdx.x / 2, half = threadIdx.x % 2;
        uint32_t word = 0, turned = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) word |= static_cast<uint32_t>(nibbles[line][half * 8 + i]) << (4 * i);
#pragma unroll
        for (int i = 0; i < 32; ++i) turned |= (nibbles[half * 32 + i][line / 4] >> (line % 4) & 1u) << i;
        const size_t at = first_col / 32 + half, mirrored = first_row / 32 + half;
        if (first_row + line < p.band_rows && at < p.words) p.mask[(first_row + line) * p.words + at] = word;
        if (p.mirror && first_row != first_col && first_col + line < p.band_rows && mirrored < p.words)
            p.mask[(first_col + line) * p.words + mirrored] = turned;
    }
}

// One warp a row of the band.
template <typename Body>
__device__ __forceinline__ void for_rows(const Params& p, Body body) {
    const size_t warps = blockDim.x / 32;
    for (size_t row = blockIdx.x * warps + threadIdx.x / 32; row < p.band_rows; row += gridDim.x * warps) body(row);
}

__device__ __forceinline__ void count(const Params& p) {
    const uint32_t lane = threadIdx.x % 32;
    for_rows(p, [&](size_t row) {
        uint32_t bits = 0;
        for (size_t w = lane; w < p.words; w += 32) bits += __popc(p.mask[row * p.words + w]);
        bits = __reduce_add_sync(0xFFFFFFFFu, bits);
        if (lane == 0) static_cast<int32_t*>(p.degrees)[p.first + row] = static_cast<int32_t>(bits);
    });
}

__device__ __forceinline__ size_t offset_of(const Params& p, size_t row) {
    return p.wide_offsets ? static_cast<size_t>(static_cast<const int64_t*>(p.offsets)[row])
                          : static_cast<size_t>(static_cast<const int32_t*>(p.offsets)[row]);
}

__device__ __forceinline__ void fill(const Params& p) {
    const uint32_t lane = threadIdx.x % 32;
    for_rows(p, [&](size_t row) {
        size_t at = offset_of(p, p.first + row);
        for (size_t first = 0; first < p.words; first += 32) {
            uint32_t word = first + lane < p.words ? p.mask[row * p.words + first + lane] : 0;
            // Bits of the lanes up to and with this one.
            uint32_t before = __popc(word);
#pragma unroll
            for (int offset = 1; offset < 32; offset *= 2) {
                const uint32_t other = __shfl_up_sync(0xFFFFFFFFu, before, offset);
                if (lane >= offset) before += other;
            }
            const uint32_t all = __shfl_sync(0xFFFFFFFFu, before, 31);
            size_t to = at + before - __popc(word);
            for (; word != 0; word &= word - 1)
                static_cast<int32_t*>(p.indices)[to++] = static_cast<int32_t>((first + lane) * 32 + __ffs(word) - 1);
            at += all;
        }
    });
}

// One thread an edge, one warp a row.
template <typename T>
__device__ __forceinline__ void weights(const Params& p) {
    const uint32_t lane = threadIdx.x % 32;
    for_rows(p, [&](size_t row) {
        const size_t last = offset_of(p, row + 1);
        for (size_t e = offset_of(p, row) + lane; e < last; e += 32)
            p.weights[e] = similarity<T>(p, row, static_cast<size_t>(static_cast<const int32_t*>(p.indices)[e]));
    });
}

extern "C" __global__ void __launch_bounds__(COSINE_GRAPH_ROW_THREADS)
    cosine_graph_count_u32_w32_sm80(const __grid_constant__ Params p) {
    count(p);
}
extern "C" __global__ void __launch_bounds__(COSINE_GRAPH_ROW_THREADS)
    cosine_graph_fill_u32_w32_sm80(const __grid_constant__ Params p) {
    fill(p);
}

#define COSINE_GRAPH(NAME, T)                                                                    \
    extern "C" __global__ void __launch_bounds__(COSINE_GRAPH_ROW_THREADS)                       \
        cosine_graph_norms_##NAME##_t256_sm80(const __grid_constant__ Params p) {                \
        norms<T>(p);                                                                             \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(COSINE_GRAPH_THREADS, 4)                        \
        cosine_graph_mask_##NAME##_64x64x16_sm80(const __grid_constant__ Params p) {             \
        __shared__ __align__(16) float shared[2 * STEP * PITCH];                                 \
        __shared__ uint8_t nibbles[TILE][ACROSS];                                                \
        mask<T>(p, shared, nibbles);                                                             \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(COSINE_GRAPH_ROW_THREADS)                       \
        cosine_graph_weights_##NAME##_w32_sm80(const __grid_constant__ Params p) {               \
        weights<T>(p);                                                                           \
    }

COSINE_GRAPH(f32, float)
COSINE_GRAPH(f16, __half)
COSINE_GRAPH(bf16, __nv_bfloat16)
