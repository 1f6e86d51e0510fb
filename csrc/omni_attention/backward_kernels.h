// The kernels of omni_attention's backward, one launcher each, and the table of their instantiations. For .cu files.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <type_traits>

#include "common/cuda_check.h"
#include "common/launch.h"
#include "omni_attention/params.h"

namespace showo {

// fp16, bf16: dk, dv, and where dq_sums is given what belongs to dq.
Status omni_backward_dkdv(const OmniBackwardCudaParams& p, cudaStream_t stream);
// fp16, bf16: dq, reproducibly.
Status omni_backward_dq(const OmniBackwardCudaParams& p, cudaStream_t stream);
// fp32: dq, dk, dv, reproducibly.
Status omni_backward_fp32(const OmniBackwardCudaParams& p, cudaStream_t stream);

template <class T>
struct TypeTag {
  using Type = T;
};

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

// Calls f(TypeTag<T>, integral_constant<int, D>).
template <class F>
Status dispatch_16bit(const OmniInputs& in, F&& f) {
  return dispatch_head_dim(in.head_dim, [&](auto size) {
    return in.dtype == DType::kF16 ? f(TypeTag<__half>(), size) : f(TypeTag<__nv_bfloat16>(), size);
  });
}

// A thread block of M::kThreads threads and M::kShared bytes for every M::kRows of `length` rows of `heads` heads.
template <class M>
Status launch_rows(void (*kernel)(OmniBackwardCudaParams), const char* name, const OmniBackwardCudaParams& p,
                   int64_t heads, int64_t length, cudaStream_t stream) {
  SHOWO_RETURN_IF_ERROR(check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, M::kShared), "cudaFuncSetAttribute"));
  const dim3 grid(static_cast<unsigned>(p.in.batch * heads), static_cast<unsigned>(ceil_div(length, M::kRows)));
  kernel<<<grid, M::kThreads, M::kShared, stream>>>(p);
  return check_launch(name);
}

}  // namespace showo
