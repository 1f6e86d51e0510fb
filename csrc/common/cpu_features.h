// Which instruction sets this machine has, and which one the CPU kernels use.
#pragma once

#include <cstdint>

namespace showo {

enum class Isa : int32_t { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

// The best instruction set that both this machine and this build have.
Isa best_isa();

// The one in use: best_isa() unless set_isa() asked for less (tests run every copy that the machine can run).
Isa active_isa();

// False, and no change, when the machine or the build lacks it.
bool set_isa(Isa isa);

const char* isa_name(Isa isa);

}  // namespace showo
