// From a head size at run time to one at compile time. Host side only.
#pragma once

#include <type_traits>

#include "common/status.h"

namespace showo {

// Calls f(integral_constant<int, head_dim>) for the head sizes that there are.
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
      return unsupported("omni_attention: head size %lld is not one of 32, 64, 96, 128",
                         static_cast<long long>(head_dim));
  }
}

}  // namespace showo
