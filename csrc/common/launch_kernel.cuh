// Launching a kernel that needs more dynamic shared memory than is granted unasked. For .cu files.
#pragma once

#include <cuda_runtime.h>

#include "common/cuda_check.h"

namespace showo {

template <class... Params>
Status launch_kernel(void (*kernel)(Params...), const char* name, const dim3& grid, int threads, int shared_bytes,
                     cudaStream_t stream, const Params&... params) {
  SHOWO_RETURN_IF_ERROR(
      check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), name));
  kernel<<<grid, threads, shared_bytes, stream>>>(params...);
  return check_launch(name);
}

}  // namespace showo
