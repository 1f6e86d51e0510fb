// vq_encode in bf16: the instantiations of vq_scores.cuh.
#include "codebook/vq_scores.cuh"

namespace showo {

Status vq_scores_bf16(const VqScoreParams& params, const VqPlan& plan, int64_t dim, cudaStream_t stream) {
  return launch_vq_scores<__nv_bfloat16>(params, plan, dim, stream);
}

}  // namespace showo
