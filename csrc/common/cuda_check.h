// Turning CUDA runtime errors into a Status. Host side only.
#pragma once

#include <cuda_runtime_api.h>

#include "common/status.h"

namespace showo {

inline Status check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return ok_status();
  cudaGetLastError();  // clears the error, so that it is not found after somebody else's launch
  return cuda_error("%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

// Call right after a launch: reports a bad configuration.
inline Status check_launch(const char* kernel) { return check_cuda(cudaGetLastError(), kernel); }

}  // namespace showo
