// Launching forward_tile.cuh's kernels: the table of head sizes and tiles, included by one file per dtype.
#pragma once

#include "common/cuda_check.h"
#include "omni_attention/forward_tile.cuh"

namespace showo {

// ---- the instantiations: one file per dtype, so that they compile side by side

// Heads, then tiles in their order, then, where one mask serves them all, batch entries.
inline dim3 forward_grid(const OmniForwardParams& p) {
  return dim3(static_cast<unsigned>(p.in.heads), static_cast<unsigned>(p.order_length),
              static_cast<unsigned>(p.in.block_states_batch_stride == 0 ? p.in.batch : 1));
}

template <class T, int D, int M>
Status launch_omni_forward(const OmniForwardParams& p, cudaStream_t stream) {
  const auto kernel = omni_forward_kernel<T, D, M>;
  const int shared = ForwardTile<D, M>::shared_bytes(p.in.num_intervals);
  SHOWO_RETURN_IF_ERROR(
      check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "omni_forward"));
  kernel<<<forward_grid(p), kForwardThreads, shared, stream>>>(p);
  return check_launch("omni_forward_kernel");
}

template <class T>
Status launch_omni_forward(const OmniForwardParams& p, cudaStream_t stream) {
  const bool large = p.tile_rows == 128;
  switch (p.in.head_dim) {
    case 32:
      return large ? launch_omni_forward<T, 32, 2>(p, stream) : launch_omni_forward<T, 32, 1>(p, stream);
    case 64:
      return large ? launch_omni_forward<T, 64, 2>(p, stream) : launch_omni_forward<T, 64, 1>(p, stream);
    case 96:
      return large ? launch_omni_forward<T, 96, 2>(p, stream) : launch_omni_forward<T, 96, 1>(p, stream);
    default:
      return large ? launch_omni_forward<T, 128, 2>(p, stream) : launch_omni_forward<T, 128, 1>(p, stream);
  }
}

}  // namespace showo
