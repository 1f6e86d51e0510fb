// The launcher of omni_attention forward: checks, then the kernels of one dtype (forward_f16.cu, forward_bf16.cu and
// forward_f32.cu).
#include <cuda_runtime.h>

#include "omni_attention/checks.h"
#include "omni_attention/forward.h"

namespace showo {

Status omni_attention_forward_cuda(const OmniForwardParams& p, void* stream) {
  const OmniInputs& in = p.in;
  if (in.batch <= 0 || in.heads <= 0 || in.q_length <= 0) return ok_status();
  SHOWO_RETURN_IF_ERROR(check_inputs(in));
  SHOWO_RETURN_IF_ERROR(check_rows("out", p.out, p.out_strides, in.dtype));
  SHOWO_CHECK_ARGUMENT(in.kv_length == 0 || (in.block_states != nullptr && in.seen != nullptr),
                       "omni_attention: no block table");
  SHOWO_CHECK_ARGUMENT(p.tile_rows == 64 || (in.softcap == 0 && in.head_dim <= 128),
                       "omni_attention: a softcap, and heads of more than 128 numbers, take tiles of 64 rows, got %lld",
                       static_cast<long long>(p.tile_rows));
  SHOWO_CHECK_ARGUMENT(in.heads <= kMaxGridX && p.order_length <= kMaxGridY && in.batch <= kMaxGridY,
                       "omni_attention: batch %lld with %lld query rows is too large for one launch",
                       static_cast<long long>(in.batch), static_cast<long long>(in.q_length));
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
