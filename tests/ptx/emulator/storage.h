// Where variables lie.
#pragma once

#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "program.h"
#include "ptx_text.h"

namespace showo::ptx {

// Gives shared variables, per-thread frames and kernel parameters their addresses, and the program its sizes.
class Storage {
 public:
  using Place = std::pair<Space, uint32_t>;

  // functions: the kernel, then the device functions that it calls.
  Storage(const TextModule& module, const std::vector<const TextFunction*>& functions, Program& program);

  // A function's own variable or one of the module; null if there is none of that name.
  const Place* find(const TextFunction& function, const std::string& name) const;

 private:
  void place(const TextFunction& f, const TextVariable& v, uint32_t& offset);

  std::unordered_map<std::string, Place> places_;  // "function/name" or "name"
};

}  // namespace showo::ptx
