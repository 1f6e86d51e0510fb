// The table of known instructions and the templates their handlers are made from.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <unordered_map>

#include "machine.h"

namespace showo::ptx {

// One instruction. The signature has a letter for each operand, in order, and for each element of a vector:
//   d, D   destination of 32 or 64 bits (a 16-bit register lives in a 32-bit lane)
//   q      destination predicate; Q: one that a second predicate may follow
//   s, S   source of 32 or 64 bits; p: source predicate
//   A      address
//   |      a predicate that may follow the destination before it, as in %r1|%p1
//   ?      the operands after it may be missing; they are -1 then
struct OpEntry {
  Handler fn;
  InstrClass cls;
  std::string signature;
  int64_t imm = 0;
  uint16_t flags = 0;
};

class OpTable {
 public:
  void add(const std::string& name, InstrClass cls, const std::string& signature, Handler fn, int64_t imm = 0,
           uint16_t flags = 0) {
    entries_[name] = {fn, cls, signature, imm, flags};
  }
  const OpEntry* find(const std::string& name) const {
    const auto found = entries_.find(name);
    return found == entries_.end() ? nullptr : &found->second;
  }
  static const OpTable& instance();

 private:
  std::unordered_map<std::string, OpEntry> entries_;
};

void add_integer_ops(OpTable&);
void add_bit_ops(OpTable&);
void add_float_ops(OpTable&);
void add_half_ops(OpTable&);
void add_conversions(OpTable&);
void add_compare_ops(OpTable&);
void add_memory_ops(OpTable&);
void add_atomic_ops(OpTable&);
void add_async_ops(OpTable&);
void add_matrix_ops(OpTable&);
void add_warp_ops(OpTable&);
void add_control_ops(OpTable&);

// 8- and 16-bit values live in 32-bit lanes whose upper bits mean nothing.
template <class T>
using Lane = std::conditional_t<(sizeof(T) < 4), uint32_t, T>;

template <class T>
constexpr bool kWide = sizeof(T) == 8;

template <class T>
Lane<T> to_lane(T value) {
  if constexpr (sizeof(T) < 4 && std::is_signed_v<T>) {
    return static_cast<uint32_t>(static_cast<int32_t>(value));
  } else {
    return static_cast<Lane<T>>(value);
  }
}

// dst[i] = f(i) for the active lanes. Sources may be the destination (same lane), never overlap it otherwise.
template <class D, class F>
inline void for_lanes(Warp& w, D* __restrict dst, F f) {
  if (w.active == kFull) {
#pragma GCC ivdep
    for (int i = 0; i < kLanes; ++i) dst[i] = f(i);
  } else {
    for (uint32_t rest = w.active; rest != 0; rest &= rest - 1) {
      const int i = __builtin_ctz(rest);
      dst[i] = f(i);
    }
  }
}

template <class R>
std::string dest_code() {
  return kWide<R> ? "D" : "d";
}
template <class T>
std::string source_code() {
  return kWide<T> ? "S" : "s";
}

// Handlers from stateless lambdas: a distinct static per lambda type keeps the lane loop free of indirect calls.
template <class R, class A, class F>
Handler unary(F f) {
  static F op = f;
  return [](Warp& w, const Instr& in) {
    auto* d = w.lanes<Lane<R>>(in.ops[0]);
    const auto* a = w.lanes<Lane<A>>(in.ops[1]);
    for_lanes(w, d, [&](int i) { return to_lane<R>(op(static_cast<A>(a[i]))); });
  };
}

template <class R, class A, class B, class F>
Handler binary(F f) {
  static F op = f;
  return [](Warp& w, const Instr& in) {
    auto* d = w.lanes<Lane<R>>(in.ops[0]);
    const auto* a = w.lanes<Lane<A>>(in.ops[1]);
    const auto* b = w.lanes<Lane<B>>(in.ops[2]);
    for_lanes(w, d, [&](int i) { return to_lane<R>(op(static_cast<A>(a[i]), static_cast<B>(b[i]))); });
  };
}

template <class R, class A, class B, class C, class F>
Handler ternary(F f) {
  static F op = f;
  return [](Warp& w, const Instr& in) {
    auto* d = w.lanes<Lane<R>>(in.ops[0]);
    const auto* a = w.lanes<Lane<A>>(in.ops[1]);
    const auto* b = w.lanes<Lane<B>>(in.ops[2]);
    const auto* c = w.lanes<Lane<C>>(in.ops[3]);
    for_lanes(w, d,
              [&](int i) { return to_lane<R>(op(static_cast<A>(a[i]), static_cast<B>(b[i]), static_cast<C>(c[i]))); });
  };
}

template <class R, class A, class F>
void add1(OpTable& t, const std::string& name, InstrClass cls, F f) {
  t.add(name, cls, dest_code<R>() + source_code<A>(), unary<R, A>(f));
}
template <class R, class A, class B, class F>
void add2(OpTable& t, const std::string& name, InstrClass cls, F f) {
  t.add(name, cls, dest_code<R>() + source_code<A>() + source_code<B>(), binary<R, A, B>(f));
}
template <class R, class A, class B, class C, class F>
void add3(OpTable& t, const std::string& name, InstrClass cls, F f) {
  t.add(name, cls, dest_code<R>() + source_code<A>() + source_code<B>() + source_code<C>(), ternary<R, A, B, C>(f));
}

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace showo::ptx
