// The machine that runs a Program: launch, block and warp. Handlers of instructions see a Warp.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "counters.h"
#include "program.h"
#include "regions.h"
#include "shared.h"

namespace showo::ptx {

constexpr int kLanes = 32;
constexpr uint32_t kFull = 0xffffffffu;

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
  uint64_t count() const { return uint64_t{x} * y * z; }
};

// Something a kernel did wrong. `kind` is a stable word for tests ("out-of-bounds", "race", ...).
struct Finding : std::runtime_error {
  Finding(std::string kind_, const std::string& what, int lane_ = -1)
      : std::runtime_error(what), kind(std::move(kind_)), lane(lane_) {}
  std::string kind;
  int lane;
};

struct Launch {
  const Program* program = nullptr;
  Dim3 grid, block;
  uint32_t dynamic_shared = 0;
  std::vector<uint8_t> params;
  std::vector<Region*> regions;  // sorted by base: the tensors of the call and the module's variables
  uint64_t max_steps = 0;        // warp instructions of one block before it counts as hung
};

struct Block;

// Lanes that wait at `pc` of the call depth `depth` while others run.
struct Split {
  uint32_t depth, pc, mask;
};

// One 4, 8 or 16 byte piece that a lane has asked for and not yet waited for.
struct AsyncCopy {
  uint32_t to;
  uint8_t bytes;
  uint8_t lane;
  uint32_t group;
  std::array<uint8_t, 16> data;
};

enum class BarrierOp : uint8_t { kPopc, kAnd, kOr };

struct Warp {
  enum class State : uint8_t { kReady, kAtBarrier, kDone };

  uint8_t* regs = nullptr;
  uint32_t active = 0;  // lanes that execute the current instruction (guard applied)
  uint32_t mask = 0;    // lanes at pc
  uint32_t pc = 0;
  uint32_t next_pc = kNone;  // where the next group of waiting lanes stands
  uint32_t depth = 0;
  uint32_t alive = 0;  // lanes that have not exited
  uint32_t index = 0;
  State state = State::kReady;
  Block* block = nullptr;
  std::vector<Split> splits;
  std::array<std::array<uint32_t, kLanes>, kMaxDepth> return_pc;
  uint8_t* local = nullptr;

  std::array<uint32_t, kLanes> commit_groups;  // cp.async groups committed by each lane
  std::vector<AsyncCopy> copies;
  uint32_t barrier_result = kNone;  // destination of bar.red
  BarrierOp barrier_op = BarrierOp::kPopc;

  template <class T>
  T* lanes(uint32_t offset) {
    return reinterpret_cast<T*>(regs + offset);
  }
  uint32_t& predicate(uint32_t offset) { return *reinterpret_cast<uint32_t*>(regs + offset); }

  // Moves `lanes` of the running group to `to`, the others stay at pc.
  void branch(uint32_t lanes, uint32_t to);
  // Puts the running group aside and picks the group to run next: of the deepest calls that with the lowest pc. Groups
  // at the same place become one.
  void schedule();
  void exit_lanes(uint32_t lanes);
};

struct Barrier {
  uint32_t arrived = 0;             // a bit for each warp
  uint32_t waiting = 0;             // a bit for each arrived warp that waits for the others
  uint32_t expected = 0;            // threads, 0: every thread of the block
  uint32_t popc = 0;                // of bar.red
  uint32_t count = 0;               // threads that contributed a predicate
  std::array<uint32_t, 32> seen{};  // clocks that participants publish
};

// One worker thread's machine: it runs blocks one after another and keeps their storage.
struct Block {
  explicit Block(const Launch& launch_);
  void run(uint64_t linear_index);  // throws Finding

  const Launch& launch;
  const Program& program;
  std::vector<Warp> warps;
  std::array<Barrier, 16> barriers;
  SharedMemory shared;
  Counters counters;
  uint32_t id[3] = {0, 0, 0};
  uint64_t steps = 0;
  const Instr* current = nullptr;  // for messages
  Warp* running = nullptr;
  std::vector<uint32_t> region_cache;  // per instruction: the region its last access fell into

  uint32_t live_warps() const;
  void complete_barriers();
  std::string describe(const Finding& finding) const;

 private:
  std::vector<uint8_t> register_file_;
  std::vector<uint8_t> local_;
  void start(uint64_t linear_index);
  void run_warp(Warp& w, int quantum);
};

}  // namespace showo::ptx
