// cp.async: data moves when it is waited for, not before; touching the destination in between is a finding.
#include <algorithm>

#include "memory.h"
#include "ops.h"

namespace showo::ptx {
namespace {

void issue(Warp& w, const Instr& in) {
  const Addresses to = lane_addresses(w, in, 0, 0);
  const Addresses from = lane_addresses(w, in, 1, 1);
  const uint32_t bytes = w.lanes<uint32_t>(in.ops[2])[0];
  const auto* given = w.lanes<uint32_t>(in.ops[3]);  // bytes to read, the rest becomes zero; absent: all
  if (bytes != 4 && bytes != 8 && bytes != 16)
    throw Finding("invalid", "cp.async of " + std::to_string(bytes) + " bytes");
  SharedMemory& shared = w.block->shared;
  uint32_t place[kLanes];
  uint32_t whole = 0;
  for (uint32_t rest = w.active; rest != 0; rest &= rest - 1) {
    const int i = __builtin_ctz(rest);
    place[i] = static_cast<uint32_t>(std::min<uint64_t>(to.at[i], 0xfffffff0u));
    shared.check_bounds(place[i], bytes, bytes, i);
    shared.begin_async(w.index, place[i], bytes, i);
    if (given[i] >= bytes) whole |= 1u << i;
  }
  if (whole != 0) touch_global(w, in, from, whole, bytes, bytes, Access::kRead);
  for (uint32_t rest = w.active; rest != 0; rest &= rest - 1) {
    const int i = __builtin_ctz(rest);
    AsyncCopy copy{place[i], static_cast<uint8_t>(bytes), static_cast<uint8_t>(i), w.commit_groups[i], {}};
    const uint32_t n = std::min(given[i], bytes);
    if (n != 0 && n < bytes) touch_global(w, in, from, 1u << i, n, 1, Access::kRead);
    if (n != 0) std::memcpy(copy.data.data(), reinterpret_cast<const void*>(from.at[i]), n);
    w.copies.push_back(copy);
  }
}

void commit(Warp& w, const Instr&) {
  for (uint32_t rest = w.active; rest != 0; rest &= rest - 1) ++w.commit_groups[__builtin_ctz(rest)];
}

// Completes the copies of active lanes in all but the newest `pending` groups. -1: everything, committed or not.
void wait(Warp& w, int64_t pending) {
  size_t kept = 0;
  for (const AsyncCopy& copy : w.copies) {
    const bool done =
        (w.active >> copy.lane & 1) &&
        (pending < 0 || static_cast<int64_t>(copy.group) < static_cast<int64_t>(w.commit_groups[copy.lane]) - pending);
    if (done) {
      std::memcpy(w.block->shared.data() + copy.to, copy.data.data(), copy.bytes);
      w.block->shared.end_async(w.index, copy.to, copy.bytes, copy.lane);
    } else {
      w.copies[kept++] = copy;
    }
  }
  w.copies.resize(kept);
}

void wait_group(Warp& w, const Instr& in) { wait(w, w.lanes<uint32_t>(in.ops[0])[0]); }
void wait_all(Warp& w, const Instr&) { wait(w, -1); }

}  // namespace

void add_async_ops(OpTable& t) {
  t.add("cp.async.shared.global", InstrClass::kAsyncCopy, "AAs?s", issue);
  t.add("cp.async.commit_group", InstrClass::kAsyncCopy, "", commit);
  t.add("cp.async.wait_group", InstrClass::kAsyncCopy, "s", wait_group);
  t.add("cp.async.wait_all", InstrClass::kAsyncCopy, "", wait_all);
}

}  // namespace showo::ptx
