#include "module.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <sstream>
#include <system_error>
#include <thread>

#include "fatbin.h"

namespace showo::ptx {
namespace {

// Limits of sm_80.
constexpr uint64_t kSharedPerBlock = 163 * 1024, kSharedWithoutOptIn = 48 * 1024;
constexpr uint32_t kRegistersPerBlock = 65536, kThreadsPerBlock = 1024;

uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

void check_resources(const Program& p, const LaunchRequest& r, int registers) {
  const auto fail = [&](const std::string& what) {
    throw Finding("resource-limit", "resource-limit: " + what + "\n  kernel " + p.name);
  };
  const uint64_t threads = r.block.count();
  if (threads == 0 || r.grid.count() == 0) fail("grid and block sizes must not be zero");
  if (threads > kThreadsPerBlock || r.block.x > 1024 || r.block.y > 1024 || r.block.z > 64) {
    fail("a block of " + std::to_string(threads) + " threads exceeds the limit of 1024 (64 in z)");
  }
  if (p.max_threads != 0 && threads > static_cast<uint64_t>(p.max_threads)) {
    fail("a block of " + std::to_string(threads) + " threads exceeds the kernel's launch bound of " +
         std::to_string(p.max_threads));
  }
  if (r.grid.x > 0x7fffffffu || r.grid.y > 65535 || r.grid.z > 65535)
    fail("the grid exceeds 2^31 - 1 x 65535 x 65535 blocks");
  if (p.static_shared > kSharedWithoutOptIn)
    fail(std::to_string(p.static_shared) + " bytes of static shared memory exceed 49152");
  if (r.dynamic_shared > r.dynamic_limit) {
    fail(std::to_string(r.dynamic_shared) + " bytes of dynamic shared memory exceed the " +
         std::to_string(r.dynamic_limit) + " that the kernel is allowed (cudaFuncSetAttribute raises it)");
  }
  if (p.static_shared + r.dynamic_shared > kSharedPerBlock) {
    fail(std::to_string(p.static_shared + r.dynamic_shared) +
         " bytes of shared memory exceed the 163 KiB of a block on sm_80");
  }
  const uint64_t warps = (threads + 31) / 32;
  const uint64_t used = round_up(round_up(static_cast<uint64_t>(registers), 8) * 32, 256) * round_up(warps, 4);
  if (used > kRegistersPerBlock) {
    fail(std::to_string(registers) + " registers x " + std::to_string(threads) +
         " threads exceed the 65536 registers of sm_80");
  }
}

}  // namespace

Options& options() {
  static Options o;
  return o;
}

Module::Module(const void* image, size_t bytes) {
  std::string ptx;
  if (is_fatbinary(image, bytes)) {
    FatBinary fat = read_fatbinary(image, bytes);
    ptx = std::move(fat.ptx);
    registers_ = std::move(fat.registers);
  } else {
    ptx.assign(static_cast<const char*>(image), bytes);
  }
  text_ = parse_ptx(ptx);
  auto lines = std::make_shared<std::vector<std::string>>();
  std::istringstream stream(ptx);
  for (std::string line; std::getline(stream, line);) lines->push_back(line);
  lines_ = lines;
  place_variables();
}

Module::~Module() {
  for (const auto& [name, place] : variables_) RegionTable::instance().remove(place.first);
}

void Module::place_variables() {
  constexpr uint64_t kGuard = 256;
  for (const TextVariable& v : text_.variables) {
    if (v.space != Space::kGlobal && v.space != Space::kConst) continue;
    const auto bytes = static_cast<uint64_t>(v.bytes);
    storage_.push_back(std::make_unique<uint8_t[]>(bytes + 3 * kGuard));
    const uint64_t base = round_up(reinterpret_cast<uint64_t>(storage_.back().get()) + kGuard, kGuard);
    if (!v.initial.empty()) std::memcpy(reinterpret_cast<void*>(base), v.initial.data(), v.initial.size());
    variables_[v.name] = {base, bytes};
    RegionTable::instance().add(v.name, base, bytes, true, v.space == Space::kConst, true);
  }
  for (const TextVariable& v : text_.variables) {
    for (const auto& [offset, symbol] : v.pointers) {
      const uint64_t target = address(symbol);
      std::memcpy(reinterpret_cast<uint8_t*>(variables_.at(v.name).first) + offset, &target, sizeof target);
    }
  }
}

std::vector<std::string> Module::entries() const {
  std::vector<std::string> names;
  for (const TextFunction& f : text_.functions) {
    if (f.is_entry) names.push_back(f.name);
  }
  return names;
}

int Module::registers(const std::string& kernel) const {
  const auto found = registers_.find(kernel);
  return found == registers_.end() ? 0 : found->second;
}

uint64_t Module::address(const std::string& name) const {
  const auto found = variables_.find(name);
  if (found == variables_.end()) throw std::runtime_error("unknown symbol '" + name + "'");
  return found->second.first;
}

const Program& Module::program(const std::string& kernel) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::unique_ptr<Program>& p = programs_[kernel];
  if (!p) {
    p = build_program(text_, kernel, *this);
    p->text = lines_;
  }
  return *p;
}

void Module::launch(const std::string& kernel, const LaunchRequest& request, void* const* arguments) {
  const Program& p = program(kernel);
  check_resources(p, request, registers(kernel));
  Launch launch;
  launch.program = &p;
  launch.grid = request.grid;
  launch.block = request.block;
  launch.dynamic_shared = static_cast<uint32_t>(request.dynamic_shared);
  launch.max_steps = options().max_steps;
  launch.params.resize(p.param_bytes);
  for (size_t i = 0; i < p.params.size(); ++i)
    std::memcpy(&launch.params[p.params[i].first], arguments[i], p.params[i].second);
  launch.regions = RegionTable::instance().of_call(launch.params);
  begin_launch(launch.regions);

  const uint64_t blocks = request.grid.count();
  const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  const auto workers = static_cast<unsigned>(
      std::min<uint64_t>(options().threads > 0 ? static_cast<unsigned>(options().threads) : cores, blocks));
  std::atomic<uint64_t> next{0};
  std::mutex mutex;
  std::unique_ptr<Finding> first;
  std::exception_ptr other;
  uint64_t first_block = ~0ull;
  Counters total;
  total.resize(p.code.size());
  const auto work = [&] {
    try {
      Block block(launch);
      for (uint64_t i; (i = next.fetch_add(1)) < blocks;) {  // in order: a block may wait for one before it
        try {
          block.run(i);
        } catch (const Finding& finding) {
          const std::lock_guard<std::mutex> lock(mutex);
          if (i < first_block)
            first = std::make_unique<Finding>(finding.kind, block.describe(finding)), first_block = i;
          next = blocks;
          break;
        }
      }
      const std::lock_guard<std::mutex> lock(mutex);
      total.add(block.counters);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      other = std::current_exception();
      next = blocks;
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(workers);
  try {
    while (threads.size() + 1 < workers) threads.emplace_back(work);
  } catch (const std::system_error&) {
    // No more threads are to be had: those that exist, this one at least, run all blocks.
  }
  work();
  for (std::thread& t : threads) t.join();
  record_launch(launch, registers(kernel), total, end_launch(launch.regions));
  if (other) std::rethrow_exception(other);
  if (first) throw *first;
}

}  // namespace showo::ptx
