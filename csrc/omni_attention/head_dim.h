// From a head size at run time to one at compile time: the lists of head sizes that there are kernels for.
#pragma once

#include <type_traits>

#include "common/status.h"

namespace showo {

// Calls f(integral_constant<int, head_dim>) and returns its status; unsupported for a head size without kernels. Of
// CUDA: a thread's sums of dk and dv alone would be 256 registers for a head size of 256, and 255 is what there is.
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

// The same for the CPU kernels.
template <class F>
Status dispatch_cpu_head_dim(int64_t head_dim, F&& f) {
  return head_dim == 256 ? f(std::integral_constant<int, 256>()) : dispatch_head_dim(head_dim, f);
}

static inline Status check_head_dim(int64_t head_dim) {
  return dispatch_head_dim(head_dim, [](auto) { return ok_status(); });
}

}  // namespace showo
