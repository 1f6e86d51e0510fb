// The forward kernels of each dtype, in files of their own so that they compile side by side. `forward.cu` has checked
// the parameters.
#pragma once

#include <cuda_runtime_api.h>

#include "omni_attention/params.h"

namespace showo {

Status omni_forward_f16(const OmniForwardParams& params, cudaStream_t stream);
Status omni_forward_bf16(const OmniForwardParams& params, cudaStream_t stream);
Status omni_forward_f32(const OmniForwardParams& params, cudaStream_t stream);

}  // namespace showo
