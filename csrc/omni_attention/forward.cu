// The launcher of omni_attention forward: checks, then the kernels of one dtype (forward_f16.cu, forward_bf16.cu and
// forward_f32.cu).
#include <cuda_runtime.h>

#include "common/launch.h"
#include "omni_attention/forward.h"

namespace showo {
namespace {

constexpr int64_t kMaxInt = 2147483647;

Status check_rows(const char* name, const void* pointer, const OmniStrides& strides, int64_t bytes) {
  SHOWO_CHECK_ARGUMENT(is_aligned(pointer, 16) && strides.batch * bytes % 16 == 0 && strides.head * bytes % 16 == 0 &&
                           strides.row * bytes % 16 == 0,
                       "omni_attention: %s must lie at multiples of 16 bytes, pointer and strides", name);
  SHOWO_CHECK_ARGUMENT(strides.row >= 0 && strides.row * bytes < kMaxInt / 64,
                       "omni_attention: rows of %s are %lld elements apart, too far", name,
                       static_cast<long long>(strides.row));
  return ok_status();
}

}  // namespace

Status omni_attention_forward_cuda(const OmniForwardParams& p, void* stream) {
  const OmniInputs& in = p.in;
  if (in.batch <= 0 || in.heads <= 0 || in.q_length <= 0) return ok_status();
  const int64_t d = in.head_dim, bytes = in.dtype == DType::kF32 ? 4 : 2;
  if (d != 32 && d != 64 && d != 96 && d != 128)
    return unsupported("omni_attention: head_dim %lld, expected 32, 64, 96 or 128", static_cast<long long>(d));
  SHOWO_CHECK_ARGUMENT(in.num_intervals >= 1 && in.num_intervals <= 8,
                       "omni_attention: %lld intervals per row, expected 1 to 8",
                       static_cast<long long>(in.num_intervals));
  SHOWO_CHECK_ARGUMENT(in.q_length < kMaxInt / 2 && in.kv_length < kMaxInt / 2,
                       "omni_attention: lengths %lld and %lld are too large", static_cast<long long>(in.q_length),
                       static_cast<long long>(in.kv_length));
  SHOWO_CHECK_ARGUMENT(in.heads <= kMaxGridX && p.order_length <= kMaxGridY && in.batch <= kMaxGridY,
                       "omni_attention: batch %lld with %lld query rows is too large for one launch",
                       static_cast<long long>(in.batch), static_cast<long long>(in.q_length));
  SHOWO_RETURN_IF_ERROR(check_rows("q", in.q, in.q_strides, bytes));
  SHOWO_RETURN_IF_ERROR(check_rows("k", in.k, in.k_strides, bytes));
  SHOWO_RETURN_IF_ERROR(check_rows("v", in.v, in.v_strides, bytes));
  SHOWO_RETURN_IF_ERROR(check_rows("out", p.out, p.out_strides, bytes));
  const cudaStream_t to = static_cast<cudaStream_t>(stream);
  switch (in.dtype) {
    case DType::kF16:
      return omni_forward_f16(p, to);
    case DType::kBF16:
      return omni_forward_bf16(p, to);
    default:
      return omni_forward_f32(p, to);
  }
}

}  // namespace showo
