// Launching forward_tile.cuh's kernels: the table of head sizes and tiles, included by one file per dtype.
#pragma once

#include "common/launch_kernel.cuh"
#include "omni_attention/forward.h"
#include "omni_attention/forward_tile.cuh"
#include "omni_attention/head_dim.h"
#include "omni_attention/softcap.cuh"

namespace showo {

// ---- the instantiations: one file per dtype, so that they compile side by side

// Heads, then tiles in their order, then, where one mask serves them all, batch entries.
inline dim3 forward_grid(const OmniForwardParams& p) {
  return dim3(static_cast<unsigned>(p.in.heads), static_cast<unsigned>(p.order_length),
              static_cast<unsigned>(p.in.block_states_batch_stride == 0 ? p.in.batch : 1));
}

template <class T>
Status launch_omni_forward(const OmniForwardParams& p, cudaStream_t stream) {
  const auto launch = [&](auto kernel, int shared_bytes) {
    return launch_kernel(kernel, "omni_forward_kernel", forward_grid(p), kForwardThreads, shared_bytes, stream, p,
                         Softcap(p.in));
  };
  return dispatch_wide_head_dim(p.in.head_dim, [&](auto size) {
    constexpr int kD = decltype(size)::value;
    if constexpr (kD <= 128) {
      if (p.tile_rows == 128)
        return launch(omni_forward_kernel<T, kD, 2>, ForwardTile<kD, 2>::shared_bytes(p.in.num_intervals));
    }
    return launch(omni_forward_kernel<T, kD, 1>, ForwardTile<kD, 1>::shared_bytes(p.in.num_intervals));
  });
}

}  // namespace showo
