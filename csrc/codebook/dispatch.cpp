// Chooses the copy of each CPU launcher that suits this machine.
#include "common/dispatch.h"

#include "codebook/params.h"

namespace showo {

SHOWO_DISPATCH_ISA(Status, lfq_encode_cpu, (const LfqParams& params, int num_threads), (params, num_threads))
SHOWO_DISPATCH_ISA(Status, lfq_decode_cpu, (const LfqParams& params, int num_threads), (params, num_threads))

}  // namespace showo
