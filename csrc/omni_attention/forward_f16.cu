// omni_attention forward in fp16: the instantiations of forward_tile.cuh.
#include "omni_attention/forward_launch.cuh"

namespace showo {

Status omni_forward_f16(const OmniForwardParams& params, cudaStream_t stream) {
  return launch_omni_forward<__half>(params, stream);
}

}  // namespace showo
