// A loaded module: its variables in memory, its kernels decoded on first use, and the launching of them.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "machine.h"

namespace showo::ptx {

struct Options {
  int threads = 0;                // worker threads, 0: one per core
  uint64_t max_steps = 1u << 31;  // warp-instructions per warp before a block counts as hung
  bool lines = false;             // record counters line by line
  int mma_rounding = 0;           // of every sum within an mma: 0 to nearest, 1 toward zero, 2 up, 3 down
};
Options& options();

struct LaunchRequest {
  Dim3 grid, block;
  uint64_t dynamic_shared = 0;
  uint64_t dynamic_limit = 48 * 1024;  // cudaFuncAttributeMaxDynamicSharedMemorySize
};

class Module : public SymbolTable {
 public:
  Module(const void* image, size_t bytes);  // PTX text or a fat binary; throws std::runtime_error
  ~Module() override;
  Module(const Module&) = delete;

  std::vector<std::string> entries() const;
  const Program& program(const std::string& kernel);
  int registers(const std::string& kernel) const;  // 0 if unknown
  uint64_t address(const std::string& name) const override;
  bool known(const std::string& name) const override { return variables_.count(name) != 0; }
  uint64_t variable_bytes(const std::string& name) const { return variables_.at(name).second; }

  // Runs a kernel to its end and records what it did. Throws Finding with the full report as its text, or
  // std::runtime_error if the kernel cannot be decoded. `arguments[i]` points at parameter i.
  void launch(const std::string& kernel, const LaunchRequest& request, void* const* arguments);

 private:
  TextModule text_;
  std::shared_ptr<const std::vector<std::string>> lines_;
  std::map<std::string, int> registers_;
  std::map<std::string, std::pair<uint64_t, uint64_t>> variables_;  // name -> (address, bytes)
  std::vector<std::unique_ptr<uint8_t[]>> storage_;
  std::map<std::string, std::unique_ptr<Program>> programs_;
  std::mutex mutex_;

  void place_variables();
};

// What launches have recorded since the last call: a JSON list.
std::string take_records();
void forget_launches();
// JSON: every kernel that has been launched since then, with the most that a launch of it has asked for.
std::string launched_kernels();
void record_launch(const Launch& launch, int registers, const Counters& counters,
                   const std::vector<RegionTraffic>& traffic);

}  // namespace showo::ptx
