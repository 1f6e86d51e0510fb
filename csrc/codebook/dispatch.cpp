// Chooses the copy of each CPU launcher that suits this machine.
#include "common/dispatch.h"

#include "codebook/params.h"

#define SHOWO_DISPATCH_CODEBOOK(function, Params) \
  SHOWO_DISPATCH_ISA(Status, function, (const Params& params, int num_threads), (params, num_threads))

namespace showo {

SHOWO_DISPATCH_CODEBOOK(lfq_encode_cpu, LfqParams)
SHOWO_DISPATCH_CODEBOOK(lfq_decode_cpu, LfqParams)
SHOWO_DISPATCH_CODEBOOK(vq_encode_cpu, VqEncodeParams)
SHOWO_DISPATCH_CODEBOOK(codebook_lookup_forward_cpu, CodebookLookupParams)
SHOWO_DISPATCH_CODEBOOK(codebook_lookup_backward_cpu, CodebookLookupParams)

}  // namespace showo
