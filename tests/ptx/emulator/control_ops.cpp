// Branches, calls, returns and barriers.
#include <algorithm>
#include <map>

#include "ops.h"

namespace showo::ptx {
namespace {

InstrCount& count_of(Warp& w, const Instr& in) {
  return w.block->counters.by_instr[static_cast<size_t>(&in - w.block->program.code.data())];
}

void branch(Warp& w, const Instr& in) {
  if (w.active != w.mask) ++count_of(w, in).units;  // divergent
  w.branch(w.active, in.target);
}

void jump(Warp& w, const Instr& in) { w.pc = in.target; }

void branch_indexed(Warp& w, const Instr& in) {
  const std::vector<uint32_t>& table = w.block->program.tables[static_cast<size_t>(in.extra)];
  const auto* index = w.lanes<uint32_t>(in.ops[0]);
  std::map<uint32_t, uint32_t> groups;  // target -> lanes
  for (uint32_t rest = w.active; rest != 0; rest &= rest - 1) {
    const int i = __builtin_ctz(rest);
    if (index[i] >= table.size()) {
      throw Finding(
          "invalid",
          "brx.idx index " + std::to_string(index[i]) + " is outside its " + std::to_string(table.size()) + " targets",
          i);
    }
    groups[table[index[i]]] |= 1u << i;
  }
  if (groups.size() > 1 || w.active != w.mask) ++count_of(w, in).units;
  w.mask &= ~w.active;
  for (const auto& [target, lanes] : groups) w.splits.push_back({w.depth, target, lanes});
  w.schedule();
}

void copy_frame(Warp& w, const std::vector<FrameCopy>& copies, uint32_t lanes) {
  const size_t frame = w.block->program.frame_bytes;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    uint8_t* local = w.local + static_cast<size_t>(__builtin_ctz(rest)) * frame;
    for (const FrameCopy& c : copies) std::memmove(local + c.to, local + c.from, c.bytes);
  }
}

void call(Warp& w, const Instr& in) {
  if (w.depth + 1 >= kMaxDepth) throw Finding("invalid", "calls nest too deeply");
  copy_frame(w, w.block->program.calls[static_cast<size_t>(in.extra)].arguments, w.active);
  for (uint32_t rest = w.active; rest != 0; rest &= rest - 1)
    w.return_pc[w.depth][static_cast<size_t>(__builtin_ctz(rest))] = w.pc;
  w.mask &= ~w.active;
  w.splits.push_back({w.depth + 1, in.target, w.active});
  w.schedule();
}

// At depth 0 the lanes exit; deeper they go back, each to its own call.
void return_(Warp& w, const Instr&) {
  if (w.depth == 0) return w.exit_lanes(w.active);
  const Program& program = w.block->program;
  std::map<uint32_t, uint32_t> groups;
  for (uint32_t rest = w.active; rest != 0; rest &= rest - 1) {
    const auto i = static_cast<size_t>(__builtin_ctz(rest));
    groups[w.return_pc[w.depth - 1][i]] |= 1u << i;
  }
  w.mask &= ~w.active;
  for (const auto& [pc, lanes] : groups) {
    copy_frame(w, program.calls[static_cast<size_t>(program.code[pc - 1].extra)].results, lanes);
    w.splits.push_back({w.depth - 1, pc, lanes});
  }
  w.schedule();
}

void exit(Warp& w, const Instr&) { w.exit_lanes(w.active); }
void trap(Warp&, const Instr&) { throw Finding("trap", "the kernel executed trap"); }
void assert_fail(Warp&, const Instr&) { throw Finding("assert", "an assertion of the kernel failed"); }
void sleep(Warp&, const Instr&) {}

void arrive(Warp& w, uint32_t id, uint32_t threads, bool waits) {
  Block& block = *w.block;
  if (id >= block.barriers.size()) throw Finding("invalid", "barrier " + std::to_string(id) + " does not exist");
  if (w.active != w.alive) {
    throw Finding("divergent-barrier", "barrier " + std::to_string(id) + " is reached by " +
                                           std::to_string(__builtin_popcount(w.active)) + " of the warp's " +
                                           std::to_string(__builtin_popcount(w.alive)) + " live lanes");
  }
  if (threads != kNone && (threads == 0 || threads % kLanes != 0)) {
    throw Finding("invalid", "barrier count " + std::to_string(threads) + " is not a multiple of the warp size");
  }
  Barrier& barrier = block.barriers[id];
  const uint32_t expected = threads == kNone ? 0 : threads;
  if (barrier.arrived != 0 && barrier.expected != expected) {
    throw Finding("invalid", "barrier " + std::to_string(id) + " is used with different thread counts at once");
  }
  if (barrier.arrived >> w.index & 1)
    throw Finding("invalid", "the warp arrives twice at barrier " + std::to_string(id));
  barrier.expected = expected;
  barrier.arrived |= 1u << w.index;
  block.shared.publish(w.index, barrier.seen.data());
  block.shared.advance(w.index);
  if (waits) {
    barrier.waiting |= 1u << w.index;
    w.state = Warp::State::kAtBarrier;
  }
}

void barrier_sync(Warp& w, const Instr& in) {
  w.barrier_result = kNone;
  arrive(w, w.lanes<uint32_t>(in.ops[0])[0], w.lanes<uint32_t>(in.ops[1])[0], true);
  w.block->complete_barriers();
}

void barrier_arrive(Warp& w, const Instr& in) {
  arrive(w, w.lanes<uint32_t>(in.ops[0])[0], w.lanes<uint32_t>(in.ops[1])[0], false);
  w.block->complete_barriers();
}

// bar.red d, a{, b}, p: the count is optional, so the two forms have names of their own.
void barrier_reduce(Warp& w, const Instr& in, uint32_t threads, uint32_t predicate) {
  const uint32_t id = w.lanes<uint32_t>(in.ops[1])[0];
  w.barrier_result = in.ops[0];
  w.barrier_op = static_cast<BarrierOp>(in.imm);
  arrive(w, id, threads, true);
  Barrier& barrier = w.block->barriers[id];
  barrier.popc += static_cast<uint32_t>(__builtin_popcount(predicate & w.active));
  barrier.count += static_cast<uint32_t>(__builtin_popcount(w.active));
  w.block->complete_barriers();
}
void barrier_reduce_all(Warp& w, const Instr& in) { barrier_reduce(w, in, kNone, w.predicate(in.ops[2])); }
void barrier_reduce_some(Warp& w, const Instr& in) {
  barrier_reduce(w, in, w.lanes<uint32_t>(in.ops[2])[0], w.predicate(in.ops[3]));
}

}  // namespace

void add_control_ops(OpTable& t) {
  constexpr InstrClass b = InstrClass::kBranch;
  t.add("bra", b, "L", branch);
  t.add("brx.idx", b, "sL", branch_indexed);
  t.add("jump", b, "", jump);
  t.add("call", b, "", call);
  t.add("ret", b, "", return_);
  t.add("exit", b, "", exit);
  t.add("trap", b, "", trap);
  t.add("brkpt", b, "", trap);
  t.add("assertfail", b, "", assert_fail);
  t.add("nanosleep.u32", b, "s", sleep);
  for (const char* name : {"bar", "barrier"}) {
    const std::string head = name;
    for (const char* scope : {"", ".cta"}) {
      const std::string s = scope;
      t.add(head + s + ".sync", InstrClass::kBarrier, "s?s", barrier_sync);
      t.add(head + s + ".arrive", InstrClass::kBarrier, "ss", barrier_arrive);
      const struct {
        const char* op;
        const char* dest;
        BarrierOp how;
      } kReductions[] = {{".red.popc.u32", "d", BarrierOp::kPopc},
                         {".red.and.pred", "q", BarrierOp::kAnd},
                         {".red.or.pred", "q", BarrierOp::kOr}};
      for (const auto& r : kReductions) {
        t.add(head + s + r.op, InstrClass::kBarrier, std::string(r.dest) + "sp", barrier_reduce_all,
              static_cast<int64_t>(r.how));
        t.add(head + s + r.op + "/counted", InstrClass::kBarrier, std::string(r.dest) + "ssp", barrier_reduce_some,
              static_cast<int64_t>(r.how));
      }
    }
  }
}

}  // namespace showo::ptx
