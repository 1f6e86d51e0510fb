// What every CUDA launcher of omni_attention checks before it calls a kernel. Host side only.
#pragma once

#include "common/launch.h"
#include "omni_attention/params.h"

namespace showo {

constexpr int64_t kMaxInt = 2147483647;

// Neighbouring rows lie less than this many bytes apart: 64 rows then span less than 2^31 bytes, so that the kernels
// may reckon within a block of rows in 32 bits. showo_ext/ops/_attention_inputs.py copies tensors whose rows lie
// further apart.
constexpr int64_t kMaxRowBytes = int64_t{1} << 25;

inline Status check_rows(const char* name, const void* pointer, const OmniStrides& strides, DType dtype) {
  const int64_t bytes = element_size(dtype);
  SHOWO_CHECK_ARGUMENT(is_aligned(pointer, 16) && strides.batch * bytes % 16 == 0 && strides.head * bytes % 16 == 0 &&
                           strides.row * bytes % 16 == 0,
                       "omni_attention: %s must lie at multiples of 16 bytes, pointer and strides", name);
  SHOWO_CHECK_ARGUMENT(strides.row >= 0 && strides.row * bytes < kMaxRowBytes,
                       "omni_attention: rows of %s are %lld bytes apart, expected less than %lld", name,
                       static_cast<long long>(strides.row * bytes), static_cast<long long>(kMaxRowBytes));
  return ok_status();
}

inline Status check_inputs(const OmniInputs& in) {
  SHOWO_CHECK_ARGUMENT(in.num_intervals >= 1 && in.num_intervals <= 8,
                       "omni_attention: %lld intervals per row, expected 1 to 8",
                       static_cast<long long>(in.num_intervals));
  SHOWO_CHECK_ARGUMENT(in.kv_heads >= 1 && in.heads % in.kv_heads == 0,
                       "omni_attention: %lld query heads are no multiple of %lld kv heads",
                       static_cast<long long>(in.heads), static_cast<long long>(in.kv_heads));
  SHOWO_CHECK_ARGUMENT(in.q_length < kMaxInt / 2 && in.kv_length < kMaxInt / 2,
                       "omni_attention: lengths %lld and %lld are too large", static_cast<long long>(in.q_length),
                       static_cast<long long>(in.kv_length));
  SHOWO_RETURN_IF_ERROR(check_rows("q", in.q, in.q_strides, in.dtype));
  SHOWO_RETURN_IF_ERROR(check_rows("k", in.k, in.k_strides, in.dtype));
  return check_rows("v", in.v, in.v_strides, in.dtype);
}

}  // namespace showo
