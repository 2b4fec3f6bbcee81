// C[m, n] = A[m, k] * B[k, n] in f32: one 16 x 16 tile of C for each block, plain SIMT.
struct Params {
    const float *a; // [m, k]
    const float *b; // [k, n]
    float *c;       // [m, n]
    int m, n, k;
};

constexpr int T = 16;

extern "C" __global__ void simt_matmul(const __grid_constant__ Params p) {
    __shared__ float a[T][T + 1];
    __shared__ float b[T][T + 1];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int row = blockIdx.y * T + ty, col = blockIdx.x * T + tx;
    float sum = 0.0f;
    for (int k0 = 0; k0 < p.k; k0 += T) {
        a[ty][tx] = (row < p.m && k0 + tx < p.k) ? p.a[(long long)row * p.k + k0 + tx] : 0.0f;
        b[ty][tx] = (k0 + ty < p.k && col < p.n) ? p.b[(long long)(k0 + ty) * p.n + col] : 0.0f;
        __syncthreads(); // the tiles are complete before any thread reads them
        for (int i = 0; i < T; ++i) sum += a[ty][i] * b[i][tx];
        __syncthreads(); // every thread has read the tiles before they are overwritten
    }
    if (row < p.m && col < p.n) p.c[(long long)row * p.n + col] = sum;
}
