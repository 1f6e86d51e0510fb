// From a head size at run time to one at compile time: the lists of head sizes that there are kernels for.
#pragma once

#include <type_traits>

#include "common/status.h"

namespace showo {

// Calls f(integral_constant<int, head_dim>) and returns its status; unsupported for a head size without kernels.
template <class F>
Status dispatch_head_dim(int64_t head_dim, F&& f) {
  switch (head_dim) {
    case 32:
      return f(std::integral_constant<int, 32>());
    case 64:
      return f(std::integral_constant<int, 64>());
    case 96:
      return f(std::integral_constant<int, 96>());
    case 128:
      return f(std::integral_constant<int, 128>());
    default:
      return unsupported("omni_attention: head_dim %lld, expected 32, 64, 96 or 128", static_cast<long long>(head_dim));
  }
}

// The same with 256: for the CPU kernels and, on CUDA, forward and decode in 16 bits. In the CUDA backward a thread's
// sums of dk and dv alone would be 256 registers, and 255 is what there is; in the CUDA forward in fp32 a tile and its
// two stages would be 192 KiB of shared memory, and an A100's thread block has 163.
template <class F>
Status dispatch_wide_head_dim(int64_t head_dim, F&& f) {
  return head_dim == 256 ? f(std::integral_constant<int, 256>()) : dispatch_head_dim(head_dim, f);
}

static inline Status check_head_dim(int64_t head_dim) {
  return dispatch_head_dim(head_dim, [](auto) { return ok_status(); });
}

}  // namespace showo
