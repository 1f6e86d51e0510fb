// What a launch did, per instruction; sums by class and by line are made from it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "program.h"

namespace showo::ptx {

struct InstrCount {
  uint64_t warps = 0;    // warp-instructions issued
  uint64_t threads = 0;  // lanes that executed
  uint64_t units = 0;    // shared: wavefronts; global: 32-byte sectors; branch: divergent executions
  uint64_t least = 0;    // the minimum of units for the same bytes
};

struct Counters {
  std::vector<InstrCount> by_instr;
  uint64_t mma_flops = 0;

  void resize(size_t n) { by_instr.assign(n, {}); }
  void add(const Counters& other);
};

}  // namespace showo::ptx
