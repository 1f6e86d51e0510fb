// setp, set, slct, testp: comparisons, also combined with a predicate.
#include "halves.h"

namespace showo::ptx {
namespace {

enum class Combine : int64_t { kNone, kAnd, kOr, kXor };

// Comparison of lanes -> one bit per lane.
template <class T, class F>
__attribute__((noinline)) uint32_t compare(Warp& w, const Instr& in, int a_index, F op) {
  const auto* a = w.lanes<Lane<T>>(in.ops[a_index]);
  const auto* b = w.lanes<Lane<T>>(in.ops[a_index + 1]);
  alignas(64) uint32_t bit[kLanes];
  for (int i = 0; i < kLanes; ++i) bit[i] = static_cast<uint32_t>(op(static_cast<T>(a[i]), static_cast<T>(b[i]))) << i;
  uint32_t result = 0;
  for (int i = 0; i < kLanes; ++i) result |= bit[i];
  return result;
}

uint32_t combine(Combine how, uint32_t a, uint32_t c) {
  return how == Combine::kAnd ? a & c : how == Combine::kOr ? a | c : how == Combine::kXor ? a ^ c : a;
}

template <class T, class F>
Handler setp(F f) {
  static F op = f;
  return [](Warp& w, const Instr& in) {
    const uint32_t result = compare<T>(w, in, 2, op);
    const auto how = static_cast<Combine>(in.imm);
    const uint32_t c = how == Combine::kNone ? 0 : w.predicate(in.ops[4]);
    uint32_t& p = w.predicate(in.ops[0]);
    uint32_t& q = w.predicate(in.ops[1]);
    const uint32_t active = w.active;
    q = (q & ~active) | (combine(how, ~result, c) & active);
    p = (p & ~active) | (combine(how, result, c) & active);
  };
}

template <class T, class D, class F>
Handler set(F f, D yes) {
  static F op = f;
  static D one = yes;
  return [](Warp& w, const Instr& in) {
    const uint32_t result = compare<T>(w, in, 1, op);
    auto* d = w.lanes<D>(in.ops[0]);
    for_lanes(w, d, [&](int i) { return result >> i & 1 ? one : D{0}; });
  };
}

template <class T, class F>
void add_comparison(OpTable& t, const std::string& name, const std::string& type, F f) {
  const std::string s = source_code<T>();
  for (const char* ftz : {"", ".ftz"}) {
    const std::string head = "setp." + name;
    t.add(head + ftz + "." + type, InstrClass::kInteger, "Q" + s + s, setp<T>(f), static_cast<int64_t>(Combine::kNone));
    t.add(head + ".and" + ftz + "." + type, InstrClass::kInteger, "Q" + s + s + "p", setp<T>(f),
          static_cast<int64_t>(Combine::kAnd));
    t.add(head + ".or" + ftz + "." + type, InstrClass::kInteger, "Q" + s + s + "p", setp<T>(f),
          static_cast<int64_t>(Combine::kOr));
    t.add(head + ".xor" + ftz + "." + type, InstrClass::kInteger, "Q" + s + s + "p", setp<T>(f),
          static_cast<int64_t>(Combine::kXor));
    t.add("set." + name + ftz + ".u32." + type, InstrClass::kInteger, "d" + s + s, set<T, uint32_t>(f, kFull));
    t.add("set." + name + ftz + ".s32." + type, InstrClass::kInteger, "d" + s + s, set<T, uint32_t>(f, kFull));
    t.add("set." + name + ftz + ".f32." + type, InstrClass::kInteger, "d" + s + s, set<T, float>(f, 1.0f));
  }
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
