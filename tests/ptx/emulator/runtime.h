// The emulated CUDA runtime keeps what host code has registered; tests ask for it here.
#pragma once

#include <string>
#include <vector>

namespace showo::ptx {

std::vector<std::string> registered_kernels();  // throws if a registered module has no usable PTX
std::string last_finding();
void clear_finding();

}  // namespace showo::ptx
