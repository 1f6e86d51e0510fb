// Instructions in which lanes see each other: shfl, vote, match, redux, activemask, elect-like masks.
#include <algorithm>

#include "ops.h"

namespace showo::ptx {
namespace {

// A *.sync instruction names the lanes that take part. All of them must be here now, each naming itself.
void check_members(Warp& w, const uint32_t* members) {
  for (uint32_t rest = w.active; rest != 0; rest &= rest - 1) {
    const int i = __builtin_ctz(rest);
    const uint32_t mask = members[i];
    if (!(mask >> i & 1)) {
      throw Finding("sync-mask", "the lane executes a .sync instruction whose member mask does not name it", i);
    }
    const uint32_t absent = mask & ~w.active;
    if (absent != 0) {
      const int missing = __builtin_ctz(absent);
      throw Finding("absent-lane",
                    "member mask names lane " + std::to_string(missing) + ", which " +
                        (w.alive >> missing & 1 ? "is on another path" : "has exited"),
                    i);
    }
  }
}

enum class Shuffle : int64_t { kUp, kDown, kBfly, kIdx };

void shuffle(Warp& w, const Instr& in) {
  check_members(w, w.lanes<uint32_t>(in.ops[5]));
  auto* d = w.lanes<uint32_t>(in.ops[0]);
  uint32_t& p = w.predicate(in.ops[1]);
  const auto* a = w.lanes<uint32_t>(in.ops[2]);
  const auto* b = w.lanes<uint32_t>(in.ops[3]);
  const auto* c = w.lanes<uint32_t>(in.ops[4]);
  uint32_t value[kLanes], valid = 0;
  const auto mode = static_cast<Shuffle>(in.imm);
  for (uint32_t rest = w.active; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    const int by = static_cast<int>(b[lane] & 31), clamp = static_cast<int>(c[lane] & 31),
              segment = static_cast<int>(c[lane] >> 8 & 31);
    const int last = (lane & segment) | (clamp & ~segment), first = lane & segment;
    int from = lane;
    bool ok = false;
    switch (mode) {
      case Shuffle::kUp:
        from = lane - by, ok = from >= last;
        break;
      case Shuffle::kDown:
        from = lane + by, ok = from <= last;
        break;
      case Shuffle::kBfly:
        from = lane ^ by, ok = from <= last;
        break;
      case Shuffle::kIdx:
        from = first | (by & ~segment), ok = from <= last;
        break;
    }
    if (!ok) from = lane;
    if (!(w.active >> from & 1)) {
      throw Finding("absent-lane", "shfl.sync reads lane " + std::to_string(from) + ", which does not take part", lane);
    }
    value[lane] = a[from];
    valid |= static_cast<uint32_t>(ok) << lane;
  }
  for_lanes(w, d, [&](int i) { return value[i]; });
  p = (p & ~w.active) | valid;
}

enum class Vote : int64_t { kAll, kAny, kUni, kBallot };

// Lanes with the same member mask vote together.
void vote(Warp& w, const Instr& in) {
  const auto* members = w.lanes<uint32_t>(in.ops[2]);
  check_members(w, members);
  const uint32_t yes = w.predicate(in.ops[1]);
  const auto mode = static_cast<Vote>(in.imm);
  uint32_t result = 0, ballots[kLanes];
  for (uint32_t rest = w.active; rest != 0; rest &= rest - 1) {
    const int i = __builtin_ctz(rest);
    const uint32_t mask = members[i], here = yes & mask;
    const bool value = mode == Vote::kAll ? here == mask : mode == Vote::kAny ? here != 0 : here == mask || here == 0;
    result |= static_cast<uint32_t>(value) << i;
    ballots[i] = here;
  }
  if (mode == Vote::kBallot) {
    for_lanes(w, w.lanes<uint32_t>(in.ops[0]), [&](int i) { return ballots[i]; });
  } else {
    uint32_t& p = w.predicate(in.ops[0]);
    p = (p & ~w.active) | result;
  }
}

template <class T>
void match_any(Warp& w, const Instr& in) {
  const auto* a = w.lanes<T>(in.ops[1]);
  const auto* members = w.lanes<uint32_t>(in.ops[2]);
  check_members(w, members);
  uint32_t same[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    same[i] = 0;
    for (int k = 0; k < kLanes; ++k) same[i] |= static_cast<uint32_t>(a[i] == a[k]) << k;
    same[i] &= members[i];
  }
  for_lanes(w, w.lanes<uint32_t>(in.ops[0]), [&](int i) { return same[i]; });
}

template <class T>
void match_all(Warp& w, const Instr& in) {
  const auto* a = w.lanes<T>(in.ops[2]);
  const auto* members = w.lanes<uint32_t>(in.ops[3]);
  check_members(w, members);
  uint32_t equal = 0, masks[kLanes];
  for (uint32_t rest = w.active; rest != 0; rest &= rest - 1) {
    const int i = __builtin_ctz(rest);
    bool all = true;
    for (uint32_t m = members[i]; m != 0; m &= m - 1) all &= a[__builtin_ctz(m)] == a[i];
    equal |= static_cast<uint32_t>(all) << i;
    masks[i] = all ? members[i] : 0;
  }
  for_lanes(w, w.lanes<uint32_t>(in.ops[0]), [&](int i) { return masks[i]; });
  uint32_t& p = w.predicate(in.ops[1]);
  p = (p & ~w.active) | equal;
}

template <class T, class F>
Handler reduce(F f) {
  static F op = f;
  return [](Warp& w, const Instr& in) {
    const auto* a = w.lanes<T>(in.ops[1]);
    const auto* members = w.lanes<uint32_t>(in.ops[2]);
    check_members(w, members);
    T result[kLanes];
    for (uint32_t rest = w.active; rest != 0; rest &= rest - 1) {
      const int i = __builtin_ctz(rest);
      uint32_t m = members[i];
      T sum = a[__builtin_ctz(m)];
      while ((m &= m - 1) != 0) sum = op(sum, a[__builtin_ctz(m)]);
      result[i] = sum;
    }
    for_lanes(w, w.lanes<T>(in.ops[0]), [&](int i) { return result[i]; });
  };
}

void active_mask(Warp& w, const Instr& in) {
  const uint32_t mask = w.active;
  for_lanes(w, w.lanes<uint32_t>(in.ops[0]), [&](int) { return mask; });
}

// Orders the memory accesses of all lanes, of those too that the mask leaves out: a race with them is not found.
void warp_barrier(Warp& w, const Instr& in) {
  check_members(w, w.lanes<uint32_t>(in.ops[0]));
  w.block->shared.advance(w.index);
}

}  // namespace

void add_warp_ops(OpTable& t) {
  constexpr InstrClass c = InstrClass::kShuffle;
  t.add("shfl.sync.up.b32", c, "d|ssss", shuffle, static_cast<int64_t>(Shuffle::kUp));
  t.add("shfl.sync.down.b32", c, "d|ssss", shuffle, static_cast<int64_t>(Shuffle::kDown));
  t.add("shfl.sync.bfly.b32", c, "d|ssss", shuffle, static_cast<int64_t>(Shuffle::kBfly));
  t.add("shfl.sync.idx.b32", c, "d|ssss", shuffle, static_cast<int64_t>(Shuffle::kIdx));
  t.add("vote.sync.all.pred", c, "qps", vote, static_cast<int64_t>(Vote::kAll));
  t.add("vote.sync.any.pred", c, "qps", vote, static_cast<int64_t>(Vote::kAny));
  t.add("vote.sync.uni.pred", c, "qps", vote, static_cast<int64_t>(Vote::kUni));
  t.add("vote.sync.ballot.b32", c, "dps", vote, static_cast<int64_t>(Vote::kBallot));
  t.add("match.any.sync.b32", c, "dss", match_any<uint32_t>);
  t.add("match.any.sync.b64", c, "dSs", match_any<uint64_t>);
  t.add("match.all.sync.b32", c, "d|ss", match_all<uint32_t>);
  t.add("match.all.sync.b64", c, "d|Ss", match_all<uint64_t>);
  const auto redux = [&](const std::string& name, Handler fn) { t.add("redux.sync." + name, c, "dss", fn); };
  for (const char* type : {"u32", "s32"}) {
    redux(std::string("add.") + type, reduce<uint32_t>([](uint32_t a, uint32_t b) { return a + b; }));
  }
  redux("min.u32", reduce<uint32_t>([](uint32_t a, uint32_t b) { return std::min(a, b); }));
  redux("max.u32", reduce<uint32_t>([](uint32_t a, uint32_t b) { return std::max(a, b); }));
  redux("min.s32", reduce<int32_t>([](int32_t a, int32_t b) { return std::min(a, b); }));
  redux("max.s32", reduce<int32_t>([](int32_t a, int32_t b) { return std::max(a, b); }));
  redux("and.b32", reduce<uint32_t>([](uint32_t a, uint32_t b) { return a & b; }));
  redux("or.b32", reduce<uint32_t>([](uint32_t a, uint32_t b) { return a | b; }));
  redux("xor.b32", reduce<uint32_t>([](uint32_t a, uint32_t b) { return a ^ b; }));
  t.add("activemask.b32", c, "d", active_mask);
  t.add("bar.warp.sync", InstrClass::kBarrier, "s", warp_barrier);
}

}  // namespace showo::ptx
