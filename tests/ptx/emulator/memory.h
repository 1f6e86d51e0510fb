// Access to global, shared, local and parameter memory, checked and counted. Used by every instruction that has an
// address operand.
#pragma once

#include "machine.h"

namespace showo::ptx {

enum class Access : uint8_t { kRead, kWrite, kAtomic };

struct Addresses {
  uint64_t at[kLanes];
};

// Address operand `op`, with the instruction's offset number `which`.
Addresses lane_addresses(Warp& w, const Instr& in, int op, int which);

// Checks `bytes` at every lane's address and notes the access. Returns nothing: global addresses are host pointers.
void touch_global(Warp& w, const Instr& in, const Addresses& a, uint32_t lanes, uint32_t bytes, uint32_t alignment,
                  Access access);

// Same for shared addresses; `w.block->shared.data() + address` is the place. Counts wavefronts.
void touch_shared(Warp& w, const Instr& in, const Addresses& a, uint32_t lanes, uint32_t bytes, uint32_t alignment,
                  Access access);

// Pointers to the bytes of every lane in `lanes`, after the checks of its space.
struct Pointers {
  uint8_t* at[kLanes];
};
void resolve(Warp& w, const Instr& in, Space space, const Addresses& a, uint32_t lanes, uint32_t bytes,
             uint32_t alignment, Access access, Pointers& out);

// Wavefronts of one shared access (and what they would be without bank conflicts).
void count_wavefronts(Warp& w, const Instr& in, const uint32_t* addresses, uint32_t lanes, uint32_t bytes);

}  // namespace showo::ptx
