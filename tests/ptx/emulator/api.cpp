// The C interface that tests use through ctypes. A function that fails returns 0 (or null) and leaves a message.
#include <cstring>
#include <map>

#include "module.h"
#include "runtime.h"

using namespace showo::ptx;

namespace {

thread_local std::string g_error;

template <class F>
auto guarded(F f) -> decltype(f()) {
  try {
    g_error.clear();
    return f();
  } catch (const Finding& e) {
    g_error = e.what();
  } catch (const std::exception& e) {
    g_error = std::string("error: ") + e.what();
  }
  return {};
}

const char* keep(const std::string& text) {
  thread_local std::string kept;
  kept = text;
  return kept.c_str();
}

std::string joined(const std::vector<std::string>& names) {
  std::string all;
  for (const std::string& name : names) all += name + "\n";
  return all;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char* ptx_error() { return g_error.c_str(); }

EXPORT Module* ptx_load(const void* image, size_t bytes) {
  return guarded([&] { return new Module(image, bytes); });
}
EXPORT void ptx_unload(Module* module) { delete module; }
EXPORT const char* ptx_entries(Module* module) { return keep(joined(module->entries())); }

// "registers live_registers static_shared frame_bytes instructions" of a kernel.
EXPORT const char* ptx_facts(Module* module, const char* kernel) {
  return guarded([&]() -> const char* {
    const Program& p = module->program(kernel);
    return keep(std::to_string(module->registers(kernel)) + " " + std::to_string(p.live_registers) + " " +
                std::to_string(p.static_shared) + " " + std::to_string(p.frame_bytes) + " " +
                std::to_string(p.code.size()));
  });
}

// Bytes of every parameter of a kernel.
EXPORT const char* ptx_params(Module* module, const char* kernel) {
  return guarded([&]() -> const char* {
    std::string sizes;
    for (const auto& [offset, bytes] : module->program(kernel).params) sizes += std::to_string(bytes) + " ";
    return keep(sizes);
  });
}

EXPORT int ptx_launch(Module* module, const char* kernel, const uint32_t* grid, const uint32_t* block,
                      uint64_t dynamic_shared, void* const* arguments, int count) {
  return guarded([&] {
    const Program& p = module->program(kernel);
    if (static_cast<int>(p.params.size()) != count) {
      throw std::runtime_error("kernel " + p.name + " takes " + std::to_string(p.params.size()) + " arguments, got " +
                               std::to_string(count));
    }
    LaunchRequest r;
    r.grid = {grid[0], grid[1], grid[2]};
    r.block = {block[0], block[1], block[2]};
    r.dynamic_shared = dynamic_shared;
    r.dynamic_limit = 163 * 1024;
    module->launch(kernel, r, arguments);
    return 1;
  });
}

EXPORT uint64_t ptx_variable(Module* module, const char* name) {
  return guarded([&] { return module->address(name); });
}

EXPORT void ptx_add_tensor(const char* name, uint64_t base, uint64_t bytes, int initialised, int read_only) {
  RegionTable::instance().add(name, base, bytes, initialised != 0, read_only != 0);
}
EXPORT void ptx_remove_tensor(uint64_t base) { RegionTable::instance().remove(base); }
EXPORT void ptx_clear_tensors() { RegionTable::instance().clear_tensors(); }
EXPORT void ptx_add_piece(uint64_t first, uint64_t base, uint64_t bytes) {
  RegionTable::instance().add_piece(first, base, bytes);
}

EXPORT void ptx_mark_written(uint64_t base, uint64_t bytes) { RegionTable::instance().mark_written(base, bytes); }
EXPORT int ptx_is_tensor(uint64_t base, uint64_t bytes) { return RegionTable::instance().contains(base, bytes); }

EXPORT const char* ptx_take_records() { return keep(take_records()); }
EXPORT void ptx_forget_launches() { forget_launches(); }
EXPORT const char* ptx_launched() { return keep(launched_kernels()); }
// Kernels of every module that host code has registered, and the last finding of one of its launches.
EXPORT const char* ptx_registered() {
  return guarded([&]() -> const char* { return keep(joined(registered_kernels())); });
}
EXPORT const char* ptx_last_finding() { return keep(last_finding()); }
EXPORT void ptx_clear_finding() { clear_finding(); }
EXPORT const char* ptx_take_calls() { return keep(take_calls()); }
EXPORT void ptx_fail_call(int64_t index) { fail_call(index); }

EXPORT int ptx_set_option(const char* name, int64_t value) {
  if (std::strcmp(name, "threads") == 0) {
    options().threads = static_cast<int>(value);
  } else if (std::strcmp(name, "max_steps") == 0) {
    options().max_steps = static_cast<uint64_t>(value);
  } else if (std::strcmp(name, "lines") == 0) {
    options().lines = value != 0;
  } else if (std::strcmp(name, "mma_rounding") == 0) {
    options().mma_rounding = static_cast<int>(value);
  } else {
    return 0;
  }
  return 1;
}
