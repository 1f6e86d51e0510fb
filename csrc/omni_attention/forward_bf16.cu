// omni_attention forward in bf16: the instantiations of forward_tile.cuh.
#include "omni_attention/forward_launch.cuh"

namespace showo {

Status omni_forward_bf16(const OmniForwardParams& params, cudaStream_t stream) {
  return launch_omni_forward<__nv_bfloat16>(params, stream);
}

}  // namespace showo
