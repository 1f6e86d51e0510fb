// setp, set, slct, testp: comparisons, also combined with a predicate.
#include "halves.h"

namespace showo::ptx {
namespace {

// Comparison of lanes -> one bit per lane. The entry's imm holds the comparison, so that the handlers below are few.
using Comparison = uint32_t (*)(Warp& w, const Instr& in, int a_index);

template <class T, class F>
Comparison comparison(F f) {
  static F op = f;
  return [](Warp& w, const Instr& in, int a_index) {
    const auto* a = w.lanes<Lane<T>>(in.ops[a_index]);
    const auto* b = w.lanes<Lane<T>>(in.ops[a_index + 1]);
    uint32_t result = 0;
    for (int i = 0; i < kLanes; ++i) {
      result |= static_cast<uint32_t>(op(static_cast<T>(a[i]), static_cast<T>(b[i]))) << i;
    }
    return result;
  };
}

uint32_t compare(Warp& w, const Instr& in, int a_index) { return reinterpret_cast<Comparison>(in.imm)(w, in, a_index); }

enum class Combine { kNone, kAnd, kOr, kXor };

uint32_t combine(Combine how, uint32_t a, uint32_t c) {
  return how == Combine::kAnd ? a & c : how == Combine::kOr ? a | c : how == Combine::kXor ? a ^ c : a;
}

template <Combine kHow>
void setp(Warp& w, const Instr& in) {
  const uint32_t result = compare(w, in, 2);
  const uint32_t c = kHow == Combine::kNone ? 0 : w.predicate(in.ops[4]);
  uint32_t& p = w.predicate(in.ops[0]);
  uint32_t& q = w.predicate(in.ops[1]);
  const uint32_t active = w.active;
  q = (q & ~active) | (combine(kHow, ~result, c) & active);
  p = (p & ~active) | (combine(kHow, result, c) & active);
}

template <uint32_t kYes>
void set(Warp& w, const Instr& in) {
  const uint32_t result = compare(w, in, 1);
  for_lanes(w, w.lanes<uint32_t>(in.ops[0]), [&](int i) { return result >> i & 1 ? kYes : 0u; });
}

void add_all_forms(OpTable& t, const std::string& name, const std::string& type, const std::string& s,
                   Comparison comparison) {
  constexpr InstrClass c = InstrClass::kInteger;
  constexpr uint32_t kOne = 0x3f800000;
  const auto op = reinterpret_cast<int64_t>(comparison);
  for (const char* ftz : {"", ".ftz"}) {
    const std::string head = "setp." + name, tail = std::string(ftz) + "." + type;
    t.add(head + tail, c, "Q" + s + s, setp<Combine::kNone>, op);
    t.add(head + ".and" + tail, c, "Q" + s + s + "p", setp<Combine::kAnd>, op);
    t.add(head + ".or" + tail, c, "Q" + s + s + "p", setp<Combine::kOr>, op);
    t.add(head + ".xor" + tail, c, "Q" + s + s + "p", setp<Combine::kXor>, op);
    t.add("set." + name + ftz + ".u32." + type, c, "d" + s + s, set<kFull>, op);
    t.add("set." + name + ftz + ".s32." + type, c, "d" + s + s, set<kFull>, op);
    t.add("set." + name + ftz + ".f32." + type, c, "d" + s + s, set<kOne>, op);
  }
}

template <class T, class F>
void add_comparison(OpTable& t, const char* name, const std::string& type, F f) {
  add_all_forms(t, name, type, kWide<T> ? "S" : "s", comparison<T>(f));
}

template <class T>
void add_equal(OpTable& t, const std::string& type) {
  add_comparison<T>(t, "eq", type, [](T a, T b) { return a == b; });
  add_comparison<T>(t, "ne", type, [](T a, T b) { return a != b; });
}

template <class T>
void add_ordered(OpTable& t, const std::string& type) {
  add_equal<T>(t, type);
  add_comparison<T>(t, "lt", type, [](T a, T b) { return a < b; });
  add_comparison<T>(t, "le", type, [](T a, T b) { return a <= b; });
  add_comparison<T>(t, "gt", type, [](T a, T b) { return a > b; });
  add_comparison<T>(t, "ge", type, [](T a, T b) { return a >= b; });
  add_comparison<T>(t, "lo", type, [](T a, T b) { return a < b; });
  add_comparison<T>(t, "ls", type, [](T a, T b) { return a <= b; });
  add_comparison<T>(t, "hi", type, [](T a, T b) { return a > b; });
  add_comparison<T>(t, "hs", type, [](T a, T b) { return a >= b; });
}

// Load turns the stored bits into a number; the comparisons without u are false on nan, those with u true.
template <class T, class L>
void add_float(OpTable& t, const std::string& type, L load) {
  static L get = load;
  const auto nan = [](auto a, auto b) { return a != a || b != b; };
  static auto unordered = nan;
  add_comparison<T>(t, "eq", type, [](T a, T b) { return get(a) == get(b); });
  add_comparison<T>(t, "ne", type, [](T a, T b) { return get(a) != get(b) && !unordered(get(a), get(b)); });
  add_comparison<T>(t, "lt", type, [](T a, T b) { return get(a) < get(b); });
  add_comparison<T>(t, "le", type, [](T a, T b) { return get(a) <= get(b); });
  add_comparison<T>(t, "gt", type, [](T a, T b) { return get(a) > get(b); });
  add_comparison<T>(t, "ge", type, [](T a, T b) { return get(a) >= get(b); });
  add_comparison<T>(t, "equ", type, [](T a, T b) { return get(a) == get(b) || unordered(get(a), get(b)); });
  add_comparison<T>(t, "neu", type, [](T a, T b) { return get(a) != get(b); });
  add_comparison<T>(t, "ltu", type, [](T a, T b) { return !(get(a) >= get(b)); });
  add_comparison<T>(t, "leu", type, [](T a, T b) { return !(get(a) > get(b)); });
  add_comparison<T>(t, "gtu", type, [](T a, T b) { return !(get(a) <= get(b)); });
  add_comparison<T>(t, "geu", type, [](T a, T b) { return !(get(a) < get(b)); });
  add_comparison<T>(t, "num", type, [](T a, T b) { return !unordered(get(a), get(b)); });
  add_comparison<T>(t, "nan", type, [](T a, T b) { return unordered(get(a), get(b)); });
}

template <class F>
Handler testp(F f) {
  static F op = f;
  return [](Warp& w, const Instr& in) {
    const auto* a = w.lanes<float>(in.ops[1]);
    uint32_t result = 0;
    for (int i = 0; i < kLanes; ++i) result |= static_cast<uint32_t>(op(a[i])) << i;
    uint32_t& p = w.predicate(in.ops[0]);
    p = (p & ~w.active) | (result & w.active);
  };
}

}  // namespace

void add_compare_ops(OpTable& t) {
  add_ordered<uint16_t>(t, "u16");
  add_ordered<int16_t>(t, "s16");
  add_equal<uint16_t>(t, "b16");
  add_ordered<uint32_t>(t, "u32");
  add_ordered<int32_t>(t, "s32");
  add_equal<uint32_t>(t, "b32");
  add_ordered<uint64_t>(t, "u64");
  add_ordered<int64_t>(t, "s64");
  add_equal<uint64_t>(t, "b64");
  add_float<float>(t, "f32", [](float a) { return a; });
  add_float<double>(t, "f64", [](double a) { return a; });
  add_float<uint16_t>(t, "f16", [](uint16_t a) { return half_to_float(a); });
  add_float<uint16_t>(t, "bf16", [](uint16_t a) { return bfloat_to_float(a); });
  t.add("testp.finite.f32", InstrClass::kInteger, "qs", testp([](float a) { return std::isfinite(a); }));
  t.add("testp.infinite.f32", InstrClass::kInteger, "qs", testp([](float a) { return std::isinf(a); }));
  t.add("testp.notanumber.f32", InstrClass::kInteger, "qs", testp([](float a) { return std::isnan(a); }));
  t.add("testp.number.f32", InstrClass::kInteger, "qs", testp([](float a) { return !std::isnan(a); }));
  for (const char* type : {"b32", "u32", "s32", "f32"}) {
    add3<uint32_t, uint32_t, uint32_t, int32_t>(t, std::string("slct.") + type + ".s32", InstrClass::kInteger,
                                                [](uint32_t a, uint32_t b, int32_t c) { return c >= 0 ? a : b; });
  }
}

}  // namespace showo::ptx
