// The two tanh of csrc/omni_attention/softcap.cuh, for a number a thread.
#include "omni_attention/softcap.cuh"

extern "C" __global__ void tanh_of(float* coarse, float* exact, const float* x, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  coarse[i] = showo::coarse_tanh(x[i] * 2.8853900817779268f);
  exact[i] = showo::exact_tanh(x[i]);
}
