// The example of docs/kernels-without-a-gpu.md: reverses every block of the array in place.
extern "C" __global__ void reverse(float* x) {
  __shared__ float tile[256];
  float* mine = x + blockIdx.x * 256;
  tile[threadIdx.x] = mine[threadIdx.x];
#ifndef FORGOTTEN_BARRIER
  __syncthreads();
#endif
  mine[threadIdx.x] = tile[255 - threadIdx.x];
}
