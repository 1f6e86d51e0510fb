// What the words of PTX stand for.
#pragma once

#include <string>

#include "ops.h"

namespace showo::ptx {

// Null for a name that is no special register's.
const SpecialRegister* special_register(const std::string& name);

// Drops modifiers that change no result here (cache hints, .aligned, .uni) and notes the synchronising ones in `flags`.
std::string canonical_opcode(const std::string& opcode, uint16_t& flags);

}  // namespace showo::ptx
