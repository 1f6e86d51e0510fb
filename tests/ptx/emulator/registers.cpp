// Linear-scan register allocation: thousands of virtual registers share a few hundred places, so that a warp's
// registers stay in the L1 and L2 caches of the host. It also estimates the register need of the kernel.
#include <algorithm>
#include <map>

#include "draft.h"

namespace showo::ptx {
namespace {

using Bits = std::vector<uint64_t>;

bool test(const Bits& b, int i) { return b[i >> 6] >> (i & 63) & 1; }
void set(Bits& b, int i) { b[i >> 6] |= 1ull << (i & 63); }

struct Interval {
  int value, from, to;
};

uint32_t place_bytes(int bits) { return bits == 1 ? 4 : bits == 32 ? 128 : 256; }

}  // namespace

uint32_t allocate_registers(const std::vector<Draft>& code, const std::vector<std::vector<int>>& blocks,
                            const std::vector<std::vector<int>>& successors, std::vector<Value>& values, uint32_t first,
                            int& live) {
  const size_t words = (values.size() + 63) / 64;
  const auto is_register = [&](int v) { return values[v].kind == Value::kRegister; };
  std::vector<Bits> used(blocks.size(), Bits(words)), killed(blocks.size(), Bits(words)),
      in(blocks.size(), Bits(words)), out(blocks.size(), Bits(words));
  for (size_t b = 0; b < blocks.size(); ++b) {
    for (const int at : blocks[b]) {
      const Draft& d = code[at];
      const auto use = [&](int v) {
        if (is_register(v) && !test(killed[b], v)) set(used[b], v);
      };
      if (d.guard >= 0) use(d.guard);
      for (size_t i = 0; i < d.ops.size(); ++i) {
        if (!d.defines[i] || d.guard >= 0) use(d.ops[i]);  // a guarded write keeps the old value of other lanes
      }
      for (size_t i = 0; i < d.ops.size(); ++i) {
        if (d.defines[i] && d.guard < 0 && is_register(d.ops[i])) set(killed[b], d.ops[i]);
      }
    }
  }
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t b = blocks.size(); b-- > 0;) {
      for (const int next : successors[b]) {
        for (size_t k = 0; k < words; ++k) out[b][k] |= in[next][k];
      }
      for (size_t k = 0; k < words; ++k) {
        const uint64_t now = used[b][k] | (out[b][k] & ~killed[b][k]);
        changed |= now != in[b][k];
        in[b][k] = now;
      }
    }
  }

  std::vector<Interval> intervals(values.size());
  for (size_t v = 0; v < values.size(); ++v) intervals[v] = {static_cast<int>(v), 1 << 30, -1};
  const auto touch = [&](int v, int position) {
    intervals[v].from = std::min(intervals[v].from, position);
    intervals[v].to = std::max(intervals[v].to, position);
  };
  int position = 0;
  live = 0;
  for (size_t b = 0; b < blocks.size(); ++b) {
    const int begin = position;
    for (const int at : blocks[b]) {
      const Draft& d = code[at];
      if (d.guard >= 0) touch(d.guard, position);
      for (const int v : d.ops) touch(v, position);
      ++position;
    }
    int width = 0;
    for (size_t v = 0; v < values.size(); ++v) {
      if (test(in[b], v)) touch(v, begin);
      if (test(out[b], v)) touch(v, std::max(position - 1, begin)), width += values[v].bits / 32;
    }
    live = std::max(live, width);
  }

  std::sort(intervals.begin(), intervals.end(), [](const Interval& a, const Interval& b) { return a.from < b.from; });
  std::map<int, std::vector<uint32_t>> free;  // by width
  std::vector<Interval> active;               // heap, the earliest end on top
  const auto later = [](const Interval& a, const Interval& b) { return a.to > b.to; };
  uint32_t end = first;
  for (const Interval& interval : intervals) {
    Value& value = values[interval.value];
    if (value.kind != Value::kRegister || interval.to < 0) continue;
    while (!active.empty() && active.front().to < interval.from) {
      const Value& done = values[active.front().value];
      free[done.bits].push_back(done.offset);
      std::pop_heap(active.begin(), active.end(), later);
      active.pop_back();
    }
    std::vector<uint32_t>& places = free[value.bits];
    if (places.empty()) {
      value.offset = end;
      end += place_bytes(value.bits);
      if (value.bits == 1) {  // predicates come sixteen to a cache line
        for (uint32_t k = 1; k < 32; ++k) places.push_back(value.offset + 4 * (32 - k));
        end = value.offset + 128;
      }
    } else {
      value.offset = places.back();
      places.pop_back();
    }
    active.push_back(interval);
    std::push_heap(active.begin(), active.end(), later);
  }
  return end;
}

}  // namespace showo::ptx
