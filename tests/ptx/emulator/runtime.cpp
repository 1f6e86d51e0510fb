// The CUDA runtime, as far as nvcc's host code and our launchers call it. Device pointers are host pointers; streams
// run at once. What a launch finds wrong becomes an error whose string is the whole report.
#include "runtime.h"

#include <algorithm>

#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "module.h"

using namespace showo::ptx;

// Declared here rather than included, so that the emulator builds without the CUDA headers.
enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidSymbol = 13,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorInvalidDevice = 101,
  cudaErrorNotSupported = 801,
  cudaErrorLaunchFailure = 719
};
struct dim3 {
  unsigned x, y, z;
};
using Stream = void*;

namespace {

struct Kernel {
  void** module;
  std::string name;
  uint64_t dynamic_limit = 48 * 1024;
};

struct Registered {
  const void* image = nullptr;
  std::unique_ptr<Module> module;  // loaded on first use
  Module& get() {
    if (!module) module = std::make_unique<Module>(image, ~size_t{0});
    return *module;
  }
};

struct Runtime {
  std::mutex mutex;
  std::map<void**, std::unique_ptr<Registered>> modules;
  std::map<const void*, Kernel> kernels;                            // by host stub
  std::map<const void*, std::pair<void**, std::string>> variables;  // by host shadow
  std::map<void*, std::unique_ptr<uint8_t[]>> allocations;
  std::string finding;
  cudaError_t last = cudaSuccess;
  std::vector<std::pair<const char*, Stream>> calls;
  int64_t calls_until_failure = -1;  // negative: none is to fail
};
Runtime& runtime() {
  static auto* r = new Runtime;  // outlives the modules' own destructors
  return *r;
}

struct CallConfiguration {
  dim3 grid, block;
  size_t shared;
  Stream stream;
};
thread_local std::vector<CallConfiguration> g_calls;

cudaError_t fail(cudaError_t error, const std::string& what = "") {
  if (error != cudaSuccess) {
    runtime().last = error;
    if (!what.empty()) runtime().finding = what;
  }
  return error;
}

// Every call that may fail begins with this: the call is noted, and fails if a test wants it to.
cudaError_t begin(const char* call, Stream stream = nullptr) {
  Runtime& r = runtime();
  r.calls.emplace_back(call, stream);
  if (r.calls_until_failure < 0 || r.calls_until_failure-- > 0) return cudaSuccess;
  return fail(cudaErrorNotSupported, std::string("error: ") + call + " was made to fail");
}

// Host memory that a copy or a memset changes counts as written by the host.
void wrote(void* to, size_t bytes) { RegionTable::instance().mark_written(reinterpret_cast<uint64_t>(to), bytes); }

cudaError_t check_device_range(const void* p, size_t bytes, const char* call) {
  if (bytes == 0 || RegionTable::instance().contains(reinterpret_cast<uint64_t>(p), bytes)) return cudaSuccess;
  return fail(cudaErrorInvalidValue, std::string("out-of-bounds: ") + call + " of " + std::to_string(bytes) +
                                         " bytes: the destination " +
                                         RegionTable::instance().describe(reinterpret_cast<uint64_t>(p), bytes));
}

cudaError_t launch(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared, Stream stream) {
  if (const cudaError_t e = begin("cudaLaunchKernel", stream)) return e;
  Runtime& r = runtime();
  const auto found = r.kernels.find(function);
  if (found == r.kernels.end())
    return fail(cudaErrorInvalidDeviceFunction, "error: launch of a function that was not registered");
  LaunchRequest request;
  request.grid = {grid.x, grid.y, grid.z};
  request.block = {block.x, block.y, block.z};
  request.dynamic_shared = shared;
  request.dynamic_limit = found->second.dynamic_limit;
  try {
    Module* module;
    {
      const std::lock_guard<std::mutex> lock(r.mutex);
      module = &r.modules.at(found->second.module)->get();
    }
    module->launch(found->second.name, request, arguments);
    return cudaSuccess;
  } catch (const Finding& e) {
    return fail(e.kind == "resource-limit" ? cudaErrorInvalidConfiguration : cudaErrorLaunchFailure, e.what());
  } catch (const std::exception& e) {
    return fail(cudaErrorLaunchFailure, std::string("error: ") + e.what());
  }
}

}  // namespace

namespace showo::ptx {

std::vector<std::string> registered_kernels() {
  std::vector<std::string> names;
  for (auto& [handle, registered] : runtime().modules) {
    for (const std::string& name : registered->get().entries()) names.push_back(name);
  }
  return names;
}
std::string last_finding() { return runtime().finding; }
void clear_finding() {
  runtime().finding.clear();
  runtime().last = cudaSuccess;
}
std::string take_calls() {
  std::string all = "[";
  for (const auto& [name, stream] : runtime().calls) {
    all += (all.size() > 1 ? ", [\"" : "[\"") + std::string(name) + "\", " +
           std::to_string(reinterpret_cast<uintptr_t>(stream)) + "]";
  }
  runtime().calls.clear();
  return all + "]";
}
void fail_call(int64_t index) { runtime().calls_until_failure = index; }

}  // namespace showo::ptx

#define EXPORT extern "C" __attribute__((visibility("default")))

// ---- what nvcc's host code calls ------------------------------------------------------------------------------------

EXPORT void** __cudaRegisterFatBinary(void* wrapper) {
  struct Wrapper {
    int magic, version;
    const void* image;
    void* file;
  };
  auto registered = std::make_unique<Registered>();
  registered->image = static_cast<const Wrapper*>(wrapper)->image;
  void** handle = reinterpret_cast<void**>(registered.get());
  runtime().modules[handle] = std::move(registered);
  return handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void** handle) {
  Runtime& r = runtime();
  for (auto k = r.kernels.begin(); k != r.kernels.end();)
    k = k->second.module == handle ? r.kernels.erase(k) : std::next(k);
  r.modules.erase(handle);
}
EXPORT char __cudaInitModule(void**) { return 1; }
EXPORT void __cudaRegisterFunction(void** handle, const char* host, char*, const char* name, int, void*, void*, void*,
                                   void*, int*) {
  runtime().kernels[host] = {handle, name};
}
EXPORT void __cudaRegisterVar(void** handle, char* host, char*, const char* name, int, size_t, int, int) {
  runtime().variables[host] = {handle, name};
}
EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, Stream stream) {
  g_calls.push_back({grid, block, shared, stream});
  return 0;
}
EXPORT cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  if (g_calls.empty()) return fail(cudaErrorInvalidConfiguration);
  *grid = g_calls.back().grid;
  *block = g_calls.back().block;
  *shared = g_calls.back().shared;
  std::memcpy(stream, &g_calls.back().stream, sizeof(Stream));
  g_calls.pop_back();
  return cudaSuccess;
}
EXPORT cudaError_t __cudaGetKernel(const void** kernel, const void* function) {
  *kernel = function;
  return cudaSuccess;
}
EXPORT cudaError_t __cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                                      Stream stream) {
  return launch(kernel, grid, block, arguments, shared, stream);
}
EXPORT cudaError_t __cudaLaunchKernel_ptsz(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                                           Stream stream) {
  return launch(kernel, grid, block, arguments, shared, stream);
}
EXPORT cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                                    Stream stream) {
  return launch(function, grid, block, arguments, shared, stream);
}

// ---- what our launchers call ----------------------------------------------------------------------------------------

EXPORT cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, Stream stream) {
  if (const cudaError_t e = begin("cudaMemsetAsync", stream)) return e;
  if (const cudaError_t e = check_device_range(to, bytes, "cudaMemsetAsync")) return e;
  std::memset(to, value, bytes);
  wrote(to, bytes);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemset(void* to, int value, size_t bytes) { return cudaMemsetAsync(to, value, bytes, nullptr); }
EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, Stream stream) {
  if (const cudaError_t e = begin("cudaMemcpyAsync", stream)) return e;
  std::memmove(to, from, bytes);
  wrote(to, bytes);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, int kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
EXPORT cudaError_t cudaGetSymbolAddress(void** address, const void* symbol) {
  const auto found = runtime().variables.find(symbol);
  if (found == runtime().variables.end()) return fail(cudaErrorInvalidSymbol);
  *address = reinterpret_cast<void*>(runtime().modules.at(found->second.first)->get().address(found->second.second));
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyToSymbolAsync(const void* symbol, const void* from, size_t bytes, size_t offset, int,
                                           Stream) {
  void* to = nullptr;
  if (const cudaError_t e = cudaGetSymbolAddress(&to, symbol)) return e;
  std::memcpy(static_cast<uint8_t*>(to) + offset, from, bytes);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, size_t bytes, size_t offset, int kind) {
  return cudaMemcpyToSymbolAsync(symbol, from, bytes, offset, kind, nullptr);
}

EXPORT cudaError_t cudaMalloc(void** out, size_t bytes) {
  constexpr size_t kGuard = 256;
  auto storage = std::make_unique<uint8_t[]>(bytes + 3 * kGuard);
  const uint64_t base = (reinterpret_cast<uint64_t>(storage.get()) + 2 * kGuard - 1) / kGuard * kGuard;
  *out = reinterpret_cast<void*>(base);
  RegionTable::instance().add("cudaMalloc", base, bytes, false, false);
  runtime().allocations[*out] = std::move(storage);
  return cudaSuccess;
}
EXPORT cudaError_t cudaFree(void* p) {
  RegionTable::instance().remove(reinterpret_cast<uint64_t>(p));
  runtime().allocations.erase(p);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMallocAsync(void** out, size_t bytes, Stream) { return cudaMalloc(out, bytes); }
EXPORT cudaError_t cudaFreeAsync(void* p, Stream) { return cudaFree(p); }

EXPORT cudaError_t cudaFuncSetAttribute(const void* function, int attribute, int value) {
  if (const cudaError_t e = begin("cudaFuncSetAttribute")) return e;
  constexpr int kMaxDynamicShared = 8, kCarveout = 9;
  const auto found = runtime().kernels.find(function);
  if (found == runtime().kernels.end()) return fail(cudaErrorInvalidDeviceFunction);
  if (attribute == kCarveout) return cudaSuccess;
  if (attribute != kMaxDynamicShared || value < 0 || value > 163 * 1024) return fail(cudaErrorInvalidValue);
  found->second.dynamic_limit = static_cast<uint64_t>(value);
  return cudaSuccess;
}

// Attributes as an A100-SXM4-80GB reports them; numbers are those of enum cudaDeviceAttr.
EXPORT cudaError_t cudaDeviceGetAttribute(int* value, int attribute, int device) {
  if (device != 0) return fail(cudaErrorInvalidDevice);
  static const std::map<int, int> kValues = {
      {1, 1024},  {2, 1024},      {3, 1024},  {4, 64},     {5, 2147483647}, {6, 65535},   {7, 65535},
      {8, 49152}, {9, 65536},     {10, 32},   {12, 65536}, {13, 1410000},   {16, 108},    {36, 1593000},
      {37, 5120}, {38, 41943040}, {39, 2048}, {75, 8},     {76, 0},         {81, 167936}, {82, 65536},
      {95, 1},    {97, 166912},   {106, 32},  {111, 1024}};
  const auto found = kValues.find(attribute);
  if (found == kValues.end())
    return fail(cudaErrorInvalidValue,
                "error: cudaDeviceGetAttribute: attribute " + std::to_string(attribute) + " is not emulated");
  *value = found->second;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
EXPORT cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : fail(cudaErrorInvalidDevice); }
EXPORT cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function,
                                                                          int threads, size_t shared, unsigned) {
  Runtime& r = runtime();
  const auto found = r.kernels.find(function);
  if (found == r.kernels.end()) return fail(cudaErrorInvalidDeviceFunction);
  try {
    Module& module = r.modules.at(found->second.module)->get();
    const Program& p = module.program(found->second.name);
    const int warps = (threads + 31) / 32;
    const int registers = std::max(1, (module.registers(p.name) + 7) / 8 * 8 * 32);
    const auto bytes = static_cast<int>(p.static_shared + shared + kSharedReserved);
    *blocks = std::min(std::min(32, 64 / warps), std::min(65536 / registers / warps, 164 * 1024 / bytes));
    return cudaSuccess;
  } catch (const std::exception& e) {
    return fail(cudaErrorInvalidDeviceFunction, e.what());
  }
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads,
                                                                 size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared, 0);
}

EXPORT cudaError_t cudaStreamSynchronize(Stream) { return runtime().last; }
EXPORT cudaError_t cudaDeviceSynchronize() { return runtime().last; }
EXPORT cudaError_t cudaStreamCreate(Stream* s) { return *s = nullptr, cudaSuccess; }
EXPORT cudaError_t cudaStreamDestroy(Stream) { return cudaSuccess; }
EXPORT cudaError_t cudaGetLastError() {
  const cudaError_t e = runtime().last;
  runtime().last = cudaSuccess;
  return e;
}
EXPORT cudaError_t cudaPeekAtLastError() { return runtime().last; }
EXPORT const char* cudaGetErrorName(cudaError_t e) {
  switch (e) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDeviceFunction:
      return "cudaErrorInvalidDeviceFunction";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    default:
      return "cudaErrorUnknown";
  }
}
EXPORT const char* cudaGetErrorString(cudaError_t e) {
  const std::string& finding = runtime().finding;
  return e != cudaSuccess && !finding.empty() ? finding.c_str() : cudaGetErrorName(e);
}
