// Blocks and warps: scheduling, divergence, barriers.
#include "machine.h"

#include <algorithm>

namespace showo::ptx {

void Warp::branch(uint32_t taken, uint32_t to) {
  const uint32_t stay = mask & ~taken;
  if (stay == 0) {
    pc = to;
    return;
  }
  if (taken == 0) return;
  splits.push_back({depth, to, taken});
  mask = stay;
  schedule();
}

void Warp::schedule() {
  if (mask != 0) splits.push_back({depth, pc, mask});
  mask = 0;
  next_pc = kNone;
  if (splits.empty()) {
    state = State::kDone;
    return;
  }
  size_t best = 0;
  const auto before = [](const Split& a, const Split& b) {
    return a.depth != b.depth ? a.depth > b.depth : a.pc < b.pc;
  };
  for (size_t i = 1; i < splits.size(); ++i) {
    if (before(splits[i], splits[best])) best = i;
  }
  depth = splits[best].depth;
  pc = splits[best].pc;
  for (size_t i = splits.size(); i-- > 0;) {
    if (splits[i].depth != depth) continue;
    if (splits[i].pc == pc) {
      mask |= splits[i].mask;
      splits[i] = splits.back();
      splits.pop_back();
    } else {
      next_pc = std::min(next_pc, splits[i].pc);
    }
  }
}

void Warp::exit_lanes(uint32_t lanes) {
  alive &= ~lanes;
  mask &= ~lanes;
  if (mask == 0) schedule();
}

Block::Block(const Launch& launch_) : launch(launch_), program(*launch_.program) {
  const uint64_t threads = launch.block.count();
  const auto count = static_cast<uint32_t>((threads + kLanes - 1) / kLanes);
  warps.resize(count);
  register_file_.assign(size_t{program.register_bytes} * count + 64, 0);
  local_.assign(size_t{program.frame_bytes} * count * kLanes + 64, 0);
  counters.resize(program.code.size());
  region_cache.assign(program.code.size(), 0);
  shared.configure(kSharedReserved + program.static_shared + launch.dynamic_shared, count, program.narrow_shared,
                   program.shared_atomics);
  uint8_t* registers = register_file_.data() + (64 - reinterpret_cast<uintptr_t>(register_file_.data()) % 64) % 64;
  for (uint32_t i = 0; i < count; ++i) {
    Warp& w = warps[i];
    w.block = this;
    w.index = i;
    w.regs = registers + size_t{program.register_bytes} * i;
    w.local = local_.data() + size_t{program.frame_bytes} * kLanes * i;
    for (const ConstantSlot& slot : program.constants) {
      if (slot.bits == 64) {
        std::fill_n(w.lanes<uint64_t>(slot.offset), kLanes, slot.value);
      } else {
        std::fill_n(w.lanes<uint32_t>(slot.offset), kLanes, static_cast<uint32_t>(slot.value));
      }
    }
  }
}

static uint64_t special_value(const Block& block, const Warp& w, SpecialRegister which, uint32_t lane) {
  using S = SpecialRegister;
  const Dim3& n = block.launch.block;
  const uint32_t linear = w.index * kLanes + lane;
  switch (which) {
    case S::kTidX:
      return linear % n.x;
    case S::kTidY:
      return linear / n.x % n.y;
    case S::kTidZ:
      return linear / (n.x * n.y);
    case S::kNtidX:
      return n.x;
    case S::kNtidY:
      return n.y;
    case S::kNtidZ:
      return n.z;
    case S::kCtaidX:
      return block.id[0];
    case S::kCtaidY:
      return block.id[1];
    case S::kCtaidZ:
      return block.id[2];
    case S::kNctaidX:
      return block.launch.grid.x;
    case S::kNctaidY:
      return block.launch.grid.y;
    case S::kNctaidZ:
      return block.launch.grid.z;
    case S::kLaneId:
      return lane;
    case S::kWarpId:
      return w.index;
    case S::kNwarpId:
      return block.warps.size();
    case S::kNsmId:
      return 108;
    case S::kLanemaskEq:
      return 1u << lane;
    case S::kLanemaskLe:
      return (2u << lane) - 1;
    case S::kLanemaskLt:
      return (1u << lane) - 1;
    case S::kLanemaskGe:
      return ~((1u << lane) - 1);
    case S::kLanemaskGt:
      return ~((2u << lane) - 1);
    case S::kDynamicSmem:
      return block.launch.dynamic_shared;
    case S::kTotalSmem:
      return block.launch.dynamic_shared + block.program.static_shared;
    case S::kSmId:
    case S::kClock:
    case S::kClock64:
    case S::kGlobaltimer:
    case S::kGridId:
      return 0;
  }
  return 0;
}

void Block::start(uint64_t linear_index) {
  id[0] = static_cast<uint32_t>(linear_index % launch.grid.x);
  id[1] = static_cast<uint32_t>(linear_index / launch.grid.x % launch.grid.y);
  id[2] = static_cast<uint32_t>(linear_index / launch.grid.x / launch.grid.y);
  steps = 0;
  barriers.fill(Barrier{});
  shared.begin_block();
  const uint64_t threads = launch.block.count();
  for (Warp& w : warps) {
    const uint64_t here = std::min<uint64_t>(kLanes, threads - uint64_t{w.index} * kLanes);
    w.mask = w.alive = here == kLanes ? kFull : (1u << here) - 1;
    w.pc = w.depth = 0;
    w.next_pc = kNone;
    w.state = Warp::State::kReady;
    w.splits.clear();
    w.copies.clear();
    w.commit_groups.fill(0);
    for (const SpecialSlot& slot : program.specials) {
      for (uint32_t lane = 0; lane < kLanes; ++lane) {
        const uint64_t value = special_value(*this, w, slot.which, lane);
        if (slot.wide) {
          w.lanes<uint64_t>(slot.offset)[lane] = value;
        } else {
          w.lanes<uint32_t>(slot.offset)[lane] = static_cast<uint32_t>(value);
        }
      }
    }
  }
}

void Block::run_warp(Warp& w, int quantum) {
  const Instr* code = program.code.data();
  InstrCount* counts = counters.by_instr.data();
  running = &w;
  for (; quantum > 0 && w.state == Warp::State::kReady; --quantum) {
    if (w.pc >= w.next_pc) w.schedule();
    const Instr& in = code[w.pc];
    current = &in;
    w.active = in.guard == kNone ? w.mask : w.mask & (w.predicate(in.guard) ^ in.guard_flip);
    InstrCount& count = counts[w.pc];
    ++count.warps;
    count.threads += static_cast<uint32_t>(__builtin_popcount(w.active));
    ++w.pc;
    if (w.active != 0) in.fn(w, in);
  }
}

void Block::run(uint64_t linear_index) {
  constexpr int kQuantum = 4096;  // long enough to keep a warp's registers in cache; a spinning warp yields
  start(linear_index);
  for (;;) {
    bool ready = false, done = true;
    for (Warp& w : warps) {
      if (w.state == Warp::State::kReady) {
        ready = true;
        run_warp(w, kQuantum);
        steps += kQuantum;
        if (w.state == Warp::State::kDone) complete_barriers();
      }
      done &= w.state == Warp::State::kDone;
    }
    if (done) return;
    if (!ready) {
      std::string waiting;
      for (size_t i = 0; i < barriers.size(); ++i) {
        if (barriers[i].waiting == 0) continue;
        waiting += " barrier " + std::to_string(i) + " has " + std::to_string(__builtin_popcount(barriers[i].arrived)) +
                   " warps of " + std::to_string(barriers[i].expected ? barriers[i].expected / kLanes : live_warps()) +
                   ";";
      }
      throw Finding("deadlock", "every warp that has not exited waits at a barrier that cannot complete:" + waiting);
    }
    if (launch.max_steps != 0 && steps > launch.max_steps * warps.size()) {
      throw Finding(
          "hang", "the block has run " + std::to_string(launch.max_steps) + " instructions per warp and not finished");
    }
  }
}

uint32_t Block::live_warps() const {
  return static_cast<uint32_t>(
      std::count_if(warps.begin(), warps.end(), [](const Warp& w) { return w.state != Warp::State::kDone; }));
}

void Block::complete_barriers() {
  for (Barrier& barrier : barriers) {
    if (barrier.arrived == 0) continue;
    uint32_t threads = 0;
    bool complete = true;
    for (const Warp& w : warps) {
      const bool here = barrier.arrived >> w.index & 1;
      threads += here ? kLanes : 0;
      complete &= here || w.state == Warp::State::kDone;
    }
    if (barrier.expected != 0) complete = threads >= barrier.expected;
    if (!complete) continue;
    for (const Warp& w : warps) {  // a barrier of the whole block also orders what exited warps did
      if (barrier.expected == 0 && w.state == Warp::State::kDone) barrier.seen[w.index] = SharedMemory::kLastClock;
    }
    for (Warp& w : warps) {
      if (!(barrier.waiting >> w.index & 1)) continue;
      shared.acquire(w.index, barrier.seen.data());
      w.state = Warp::State::kReady;
      if (w.barrier_result != kNone) {
        const uint32_t value = w.barrier_op == BarrierOp::kPopc  ? barrier.popc
                               : w.barrier_op == BarrierOp::kAnd ? (barrier.popc == barrier.count ? kFull : 0)
                                                                 : (barrier.popc != 0 ? kFull : 0);
        if (w.barrier_op == BarrierOp::kPopc) {
          std::fill_n(w.lanes<uint32_t>(w.barrier_result), kLanes, value);
        } else {
          w.predicate(w.barrier_result) = value;
        }
      }
    }
    barrier = Barrier{};
  }
}

std::string Block::describe(const Finding& finding) const {
  const auto triple = [](uint64_t x, uint64_t y, uint64_t z) {
    return "(" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
  };
  std::string text = finding.kind + ": " + finding.what() + "\n  kernel " + program.name;
  if (current != nullptr) {
    text += ", ptx line " + std::to_string(current->line);
    const std::string source = program.source_name(current->source);
    if (!source.empty()) text += " (" + source + ")";
    const size_t line = static_cast<size_t>(current->line);
    if (program.text && line >= 1 && line <= program.text->size()) {
      const std::string& code = (*program.text)[line - 1];
      text += ": " + code.substr(std::min(code.find_first_not_of(" \t"), code.size()));
    }
  }
  text += "\n  block " + triple(id[0], id[1], id[2]);
  if (running != nullptr) {
    const uint32_t lanes = running->active != 0 ? running->active : running->mask;
    const uint32_t lane = finding.lane >= 0 ? static_cast<uint32_t>(finding.lane) : lanes ? __builtin_ctz(lanes) : 0;
    const uint64_t t = running->index * kLanes + lane;
    const Dim3& n = launch.block;
    text += ", thread " + triple(t % n.x, t / n.x % n.y, t / (uint64_t{n.x} * n.y)) + " (warp " +
            std::to_string(running->index) + ", lane " + std::to_string(lane) + ")";
  }
  return text;
}

}  // namespace showo::ptx
