// vq_encode in fp32: the instantiations of vq_scores.cuh.
#include "codebook/vq_scores.cuh"

namespace showo {

Status vq_scores_f32(const VqScoreParams& params, const VqPlan& plan, int64_t dim, cudaStream_t stream) {
  return launch_vq_scores<float>(params, plan, dim, stream);
}

}  // namespace showo
