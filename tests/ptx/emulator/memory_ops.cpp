// ld and st in all widths and spaces.
#include <atomic>

#include "memory.h"
#include "ops.h"

namespace showo::ptx {
namespace {

template <class R, class T>
R to_lane_of(T value) {
  if constexpr (std::is_signed_v<T> && sizeof(R) == 8) {
    return static_cast<R>(static_cast<int64_t>(value));
  } else {
    return static_cast<R>(to_lane(value));
  }
}

// R is the register type: a narrow value may be loaded into, or stored from, a 64-bit register.
template <class T, class R, int kCount>
void load(Warp& w, const Instr& in) {
  const Addresses a = lane_addresses(w, in, kCount, 0);
  Pointers p;
  resolve(w, in, static_cast<Space>(in.imm), a, w.active, sizeof(T) * kCount, sizeof(T) * kCount, Access::kRead, p);
  for (int k = 0; k < kCount; ++k) {
    auto* d = w.lanes<R>(in.ops[k]);
    for (uint32_t rest = w.active; rest != 0; rest &= rest - 1) {
      const int i = __builtin_ctz(rest);
      T value;
      std::memcpy(&value, p.at[i] + sizeof(T) * k, sizeof value);
      d[i] = to_lane_of<R>(value);
    }
  }
}

template <class T, class R, int kCount>
void store(Warp& w, const Instr& in) {
  const Addresses a = lane_addresses(w, in, 0, 0);
  Pointers p;
  resolve(w, in, static_cast<Space>(in.imm), a, w.active, sizeof(T) * kCount, sizeof(T) * kCount, Access::kWrite, p);
  for (int k = 0; k < kCount; ++k) {
    const auto* s = w.lanes<R>(in.ops[1 + k]);
    for (uint32_t rest = w.active; rest != 0; rest &= rest - 1) {
      const int i = __builtin_ctz(rest);
      const T value = static_cast<T>(s[i]);
      std::memcpy(p.at[i] + sizeof(T) * k, &value, sizeof value);
    }
  }
}

struct SpaceName {
  const char* name;
  Space space;
  InstrClass cls;
};
constexpr SpaceName kSpaces[] = {
    {".global", Space::kGlobal, InstrClass::kGlobal}, {".shared", Space::kShared, InstrClass::kShared},
    {".local", Space::kLocal, InstrClass::kLocal},    {".param", Space::kParam, InstrClass::kParam},
    {".const", Space::kConst, InstrClass::kParam},    {"", Space::kGeneric, InstrClass::kGlobal}};

std::string repeat(const std::string& s, int n) {
  std::string r;
  for (int i = 0; i < n; ++i) r += s;
  return r;
}

template <class T, class R, int kCount>
void add_access(OpTable& t, const std::string& type) {
  const std::string vector = kCount == 1 ? "" : ".v" + std::to_string(kCount);
  const std::string tail = vector + "." + type + (sizeof(R) == 8 && sizeof(T) < 8 ? "/wide" : "");
  for (const SpaceName& s : kSpaces) {
    const auto space = static_cast<int64_t>(s.space);
    t.add(std::string("ld") + s.name + tail, s.cls, repeat(dest_code<R>(), kCount) + "A", load<T, R, kCount>, space,
          kRead);
    if (s.space == Space::kConst || s.space == Space::kParam) continue;
    t.add(std::string("st") + s.name + tail, s.cls, "A" + repeat(source_code<R>(), kCount), store<T, R, kCount>, space,
          kWrite);
  }
}

template <class T>
void add_widths(OpTable& t, const std::string& type) {
  add_access<T, Lane<T>, 1>(t, type);
  add_access<T, Lane<T>, 2>(t, type);
  if constexpr (sizeof(T) <= 4) {
    add_access<T, Lane<T>, 4>(t, type);
    add_access<T, uint64_t, 1>(t, type);
    add_access<T, uint64_t, 2>(t, type);
  }
}

void fence(Warp&, const Instr&) { std::atomic_thread_fence(std::memory_order_seq_cst); }
void nothing(Warp&, const Instr&) {}

// Does a generic address lie in the window of this space?
template <uint64_t kWindow>
void is_space(Warp& w, const Instr& in) {
  const auto* a = w.lanes<uint64_t>(in.ops[1]);
  uint32_t result = 0;
  for (int i = 0; i < kLanes; ++i) result |= static_cast<uint32_t>(a[i] >> 56 == kWindow >> 56) << i;
  uint32_t& p = w.predicate(in.ops[0]);
  p = (p & ~w.active) | (result & w.active);
}

}  // namespace

void add_memory_ops(OpTable& t) {
  t.add("isspacep.global", InstrClass::kInteger, "qS", is_space<0>);
  t.add("isspacep.shared", InstrClass::kInteger, "qS", is_space<kSharedWindow>);
  t.add("isspacep.local", InstrClass::kInteger, "qS", is_space<kLocalWindow>);
  add_widths<uint8_t>(t, "u8");
  add_widths<uint8_t>(t, "b8");
  add_widths<int8_t>(t, "s8");
  for (const char* type : {"u16", "b16", "f16", "bf16"}) add_widths<uint16_t>(t, type);
  add_widths<int16_t>(t, "s16");
  for (const char* type : {"u32", "b32", "f32", "f16x2", "bf16x2"}) add_widths<uint32_t>(t, type);
  add_widths<int32_t>(t, "s32");
  for (const char* type : {"u64", "b64", "s64", "f64"}) add_widths<uint64_t>(t, type);
  for (const char* name : {"membar.cta", "membar.gl", "membar.sys", "fence.acq_rel.cta", "fence.acq_rel.gpu",
                           "fence.acq_rel.sys", "fence.sc.cta", "fence.sc.gpu", "fence.sc.sys"}) {
    t.add(name, InstrClass::kBarrier, "", fence);
  }
  for (const char* name : {"prefetch.global", "prefetch.global.L1", "prefetch.global.L2", "prefetchu.L1"})
    t.add(name, InstrClass::kGlobal, "A", nothing);
}

}  // namespace showo::ptx
