#include "storage.h"

#include <algorithm>
#include <set>

namespace showo::ptx {
namespace {

uint32_t align(uint32_t offset, int64_t alignment) {
  return static_cast<uint32_t>((offset + alignment - 1) / alignment * alignment);
}

}  // namespace

Storage::Storage(const TextModule& module, const std::vector<const TextFunction*>& functions, Program& program) {
  uint32_t shared = kSharedReserved, frame = 0, param = 0, dynamic_alignment = 16;
  std::set<std::string> mentioned;
  for (const TextFunction* f : functions) {
    for (const TextInstruction& in : f->body) {
      for (const TextOperand& o : in.operands) mentioned.insert(o.name);
    }
    for (const TextVariable& v : f->locals) place(*f, v, v.space == Space::kShared ? shared : frame);
    for (const auto* list : {&f->params, &f->returns}) {
      for (const TextVariable& v : *list) {
        if (f->is_entry) {
          param = align(param, v.alignment);
          program.params.emplace_back(param, static_cast<uint32_t>(v.bytes));
          places_[f->name + "/" + v.name] = {Space::kParam, param};
          param += static_cast<uint32_t>(v.bytes);
        } else {
          place(*f, v, frame);
        }
      }
    }
  }
  for (const TextVariable& v : module.variables) {
    if (v.space != Space::kShared || !mentioned.count(v.name)) continue;
    if (v.is_extern) {
      dynamic_alignment = std::max<uint32_t>(dynamic_alignment, static_cast<uint32_t>(v.alignment));
    } else {
      shared = align(shared, v.alignment);
      places_[v.name] = {Space::kShared, shared};
      shared += static_cast<uint32_t>(v.bytes);
    }
  }
  shared = align(shared, dynamic_alignment);
  for (const TextVariable& v : module.variables) {
    if (v.space == Space::kShared && v.is_extern) places_[v.name] = {Space::kShared, shared};
  }
  program.static_shared = shared - kSharedReserved;
  program.frame_bytes = align(frame, 16);
  program.param_bytes = param;
}

void Storage::place(const TextFunction& f, const TextVariable& v, uint32_t& offset) {
  offset = align(offset, v.alignment);
  places_[f.name + "/" + v.name] = {v.space == Space::kParam ? Space::kLocal : v.space, offset};
  offset += static_cast<uint32_t>(v.bytes);
}

const Storage::Place* Storage::find(const TextFunction& function, const std::string& name) const {
  auto found = places_.find(function.name + "/" + name);
  if (found == places_.end()) found = places_.find(name);
  return found == places_.end() ? nullptr : &found->second;
}

}  // namespace showo::ptx
