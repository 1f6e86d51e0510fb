// The emulated CUDA runtime keeps what host code has registered; tests ask for it here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace showo::ptx {

std::vector<std::string> registered_kernels();  // throws if a registered module has no usable PTX
std::string last_finding();
void clear_finding();

// A list in JSON of the runtime's calls that may fail, since the last question: [name, stream] of each.
std::string take_calls();
// Call number `index` from now on fails without doing anything, once; -1: none.
void fail_call(int64_t index);

}  // namespace showo::ptx
