// Chooses the copy of each CPU launcher that suits this machine.
#include "common/dispatch.h"

#include "codebook/params.h"
#include "codebook/vq_plan.h"

#define SHOWO_DISPATCH_CODEBOOK(function, Params) \
  SHOWO_DISPATCH_ISA(Status, function, (const Params& params, int num_threads), (params, num_threads))

namespace showo {

SHOWO_DISPATCH_CODEBOOK(lfq_encode_cpu, LfqParams)
SHOWO_DISPATCH_CODEBOOK(lfq_decode_cpu, LfqParams)
SHOWO_DISPATCH_CODEBOOK(vq_encode_cpu, VqEncodeParams)
SHOWO_DISPATCH_CODEBOOK(codebook_lookup_forward_cpu, CodebookLookupParams)
SHOWO_DISPATCH_CODEBOOK(codebook_lookup_backward_cpu, CodebookLookupParams)

VqEncodeSizes vq_encode_cuda_sizes(int64_t num_rows, int64_t num_codes, int64_t dim, DType dtype) {
  const VqPlan plan = vq_encode_plan(num_rows, num_codes, dim, dtype);
  return {plan.splits, plan.groups * kVqGroupBytes};
}

}  // namespace showo
