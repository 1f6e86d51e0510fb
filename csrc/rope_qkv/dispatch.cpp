// Chooses the copy of each CPU launcher that suits this machine.
#include "common/dispatch.h"

#include "rope_qkv/params.h"

namespace showo {

SHOWO_DISPATCH_ISA(Status, rope_qkv_forward_cpu, (const RopeQkvParams& params, int num_threads), (params, num_threads))
SHOWO_DISPATCH_ISA(Status, rope_qkv_backward_cpu, (const RopeQkvParams& params, int num_threads), (params, num_threads))

}  // namespace showo
