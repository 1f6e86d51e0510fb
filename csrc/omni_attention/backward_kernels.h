// The kernels of omni_attention's backward, one launcher each, and the table of their instantiations. For .cu files.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "common/launch.h"
#include "common/launch_kernel.cuh"
#include "omni_attention/head_dim.h"
#include "omni_attention/params.h"
#include "omni_attention/softcap.cuh"

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

// Calls f(TypeTag<T>, integral_constant<int, D>).
template <class F>
Status dispatch_16bit(const OmniInputs& in, F&& f) {
  return dispatch_head_dim(in.head_dim, [&](auto size) {
    return in.dtype == DType::kF16 ? f(TypeTag<__half>(), size) : f(TypeTag<__nv_bfloat16>(), size);
  });
}

// A thread block of M::kThreads threads and M::kShared bytes for every M::kRows of `length` rows of `heads` heads.
template <class M>
Status launch_rows(void (*kernel)(OmniBackwardCudaParams, Softcap), const char* name, const OmniBackwardCudaParams& p,
                   int64_t heads, int64_t length, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.in.batch * heads), static_cast<unsigned>(ceil_div(length, M::kRows)));
  return launch_kernel(kernel, name, grid, M::kThreads, M::kShared, stream, p, Softcap(p.in));
}

}  // namespace showo
