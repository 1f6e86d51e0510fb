#include "codebook/vq_plan.h"

#include "codebook/params.h"

namespace showo {

VqEncodeSizes vq_encode_cuda_sizes(int64_t num_rows, int64_t num_codes, int64_t dim, DType dtype) {
  const VqPlan plan = vq_encode_plan(num_rows, num_codes, dim, dtype);
  return {plan.splits, plan.groups * kVqGroupBytes};
}

}  // namespace showo
