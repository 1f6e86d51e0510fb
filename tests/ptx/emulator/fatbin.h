// The container nvcc puts device code into: PTX text (perhaps compressed) and cubins.
#pragma once

#include <cstddef>
#include <map>
#include <string>

namespace showo::ptx {

struct FatBinary {
  std::string ptx;                       // of the newest architecture up to sm_80
  std::map<std::string, int> registers;  // per kernel, as ptxas allocated them for sm_80; empty without a cubin
};

// Throws std::runtime_error saying what is missing.
FatBinary read_fatbinary(const void* image, size_t limit = ~size_t{0});
bool is_fatbinary(const void* image, size_t bytes);

}  // namespace showo::ptx
