// The forward and decode kernels of each dtype, in files of their own so that they compile side by side, and what their
// launchers, `forward.cu` and `decode.cu`, check before they call them.
#pragma once

#include <cuda_runtime_api.h>

#include "common/launch.h"
#include "omni_attention/params.h"

namespace showo {

Status omni_forward_f16(const OmniForwardParams& params, cudaStream_t stream);
Status omni_forward_bf16(const OmniForwardParams& params, cudaStream_t stream);
Status omni_forward_f32(const OmniForwardParams& params, cudaStream_t stream);
Status omni_decode_f32(const OmniDecodeParams& params, cudaStream_t stream);

// The same with strides in units of 16 bits, of which fp32 rows have 2 D: copies are the same for all dtypes then.
template <class Params>
Params in_halves(Params p) {
  for (OmniStrides* s : {&p.in.q_strides, &p.in.k_strides, &p.in.v_strides, &p.out_strides})
    *s = {2 * s->batch, 2 * s->head, 2 * s->row};
  return p;
}

constexpr int64_t kMaxInt = 2147483647;

inline Status check_rows(const char* name, const void* pointer, const OmniStrides& strides, int64_t bytes) {
  SHOWO_CHECK_ARGUMENT(is_aligned(pointer, 16) && strides.batch * bytes % 16 == 0 && strides.head * bytes % 16 == 0 &&
                           strides.row * bytes % 16 == 0,
                       "omni_attention: %s must lie at multiples of 16 bytes, pointer and strides", name);
  SHOWO_CHECK_ARGUMENT(strides.row >= 0 && strides.row * bytes < kMaxInt / 64,
                       "omni_attention: rows of %s are %lld elements apart, too far", name,
                       static_cast<long long>(strides.row));
  return ok_status();
}

inline Status check_forward(const OmniInputs& in, const void* out, const OmniStrides& out_strides) {
  const int64_t d = in.head_dim, bytes = in.dtype == DType::kF32 ? 4 : 2;
  if (d != 32 && d != 64 && d != 96 && d != 128)
    return unsupported("omni_attention: head_dim %lld, expected 32, 64, 96 or 128", static_cast<long long>(d));
  SHOWO_CHECK_ARGUMENT(in.num_intervals >= 1 && in.num_intervals <= 8,
                       "omni_attention: %lld intervals per row, expected 1 to 8",
                       static_cast<long long>(in.num_intervals));
  SHOWO_CHECK_ARGUMENT(in.q_length < kMaxInt / 2 && in.kv_length < kMaxInt / 2,
                       "omni_attention: lengths %lld and %lld are too large", static_cast<long long>(in.q_length),
                       static_cast<long long>(in.kv_length));
  SHOWO_RETURN_IF_ERROR(check_rows("q", in.q, in.q_strides, bytes));
  SHOWO_RETURN_IF_ERROR(check_rows("k", in.k, in.k_strides, bytes));
  SHOWO_RETURN_IF_ERROR(check_rows("v", in.v, in.v_strides, bytes));
  return check_rows("out", out, out_strides, bytes);
}

}  // namespace showo
