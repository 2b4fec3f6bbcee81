// Each block reverses its 64 elements through shared memory and scales them.
extern "C" __global__ void scale(float *x, float factor, int n) {
    __shared__ float tile[64];
    const int i = blockIdx.x * 64 + threadIdx.x;
    if (i < n) tile[threadIdx.x] = x[i];
    __syncthreads(); // the tile is complete before anyone reads another thread's element
    const int j = 63 - threadIdx.x;
    if (i < n) x[i] = factor * tile[j];
}
