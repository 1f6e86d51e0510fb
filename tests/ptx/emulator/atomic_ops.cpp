// atom and red, on global and shared memory. Blocks run on several threads, so global ones use host atomics.
#include "halves.h"
#include "memory.h"

namespace showo::ptx {
namespace {

// Lanes go one after another, as the hardware serialises them; the order is by lane.
template <class T, class F>
T update(uint8_t* place, F f) {
  T* p = reinterpret_cast<T*>(place);
  T old = __atomic_load_n(p, __ATOMIC_SEQ_CST);
  while (!__atomic_compare_exchange_n(p, &old, f(old), false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
  return old;
}

template <class T, bool kReturns, class F>
Handler atomic(F f) {
  static F op = f;
  return [](Warp& w, const Instr& in) {
    constexpr int kAddress = kReturns ? 1 : 0;
    const Addresses a = lane_addresses(w, in, kAddress, 0);
    Pointers p;
    resolve(w, in, static_cast<Space>(in.imm), a, w.active, sizeof(T), sizeof(T), Access::kAtomic, p);
    const auto* b = w.lanes<Lane<T>>(in.ops[kAddress + 1]);
    for (uint32_t rest = w.active; rest != 0; rest &= rest - 1) {
      const int i = __builtin_ctz(rest);
      const T value = static_cast<T>(b[i]);
      const T old = update<T>(p.at[i], [&](T now) { return op(now, value); });
      if (kReturns) w.lanes<Lane<T>>(in.ops[0])[i] = to_lane(old);
    }
  };
}

template <class T>
void compare_and_swap(Warp& w, const Instr& in) {
  const Addresses a = lane_addresses(w, in, 1, 0);
  Pointers p;
  resolve(w, in, static_cast<Space>(in.imm), a, w.active, sizeof(T), sizeof(T), Access::kAtomic, p);
  const auto* expected = w.lanes<Lane<T>>(in.ops[2]);
  const auto* desired = w.lanes<Lane<T>>(in.ops[3]);
  auto* d = w.lanes<Lane<T>>(in.ops[0]);
  for (uint32_t rest = w.active; rest != 0; rest &= rest - 1) {
    const int i = __builtin_ctz(rest);
    T old = static_cast<T>(expected[i]);
    __atomic_compare_exchange_n(reinterpret_cast<T*>(p.at[i]), &old, static_cast<T>(desired[i]), false,
                                __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    d[i] = to_lane(old);
  }
}

constexpr struct {
  const char* name;
  Space space;
} kSpaces[] = {{".global", Space::kGlobal}, {".shared", Space::kShared}, {"", Space::kGeneric}};

template <class T, class F>
void add(OpTable& t, const std::string& op, F f) {
  for (const auto& s : kSpaces) {
    const auto space = static_cast<int64_t>(s.space);
    const uint16_t flags = kRead | kWrite | kAtomicAccess;
    t.add(std::string("atom") + s.name + "." + op, InstrClass::kAtomic, dest_code<T>() + "A" + source_code<T>(),
          atomic<T, true>(f), space, flags);
    t.add(std::string("red") + s.name + "." + op, InstrClass::kAtomic, "A" + source_code<T>(), atomic<T, false>(f),
          space, flags);
  }
}

template <class T>
void add_integer(OpTable& t, const std::string& type) {
  using S = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  using U = std::make_unsigned_t<T>;
  static_cast<void>(sizeof(S));
  add<U>(t, "add." + type, [](U a, U b) { return static_cast<U>(a + b); });
  add<T>(t, "min." + type, [](T a, T b) { return b < a ? b : a; });
  add<T>(t, "max." + type, [](T a, T b) { return a < b ? b : a; });
}

template <class T>
void add_bits(OpTable& t, const std::string& type) {
  add<T>(t, "and." + type, [](T a, T b) { return a & b; });
  add<T>(t, "or." + type, [](T a, T b) { return a | b; });
  add<T>(t, "xor." + type, [](T a, T b) { return a ^ b; });
  add<T>(t, "exch." + type, [](T, T b) { return b; });
  for (const auto& s : kSpaces) {
    const std::string d = dest_code<T>(), v = source_code<T>();
    t.add(std::string("atom") + s.name + ".cas." + type, InstrClass::kAtomic, d + "A" + v + v, compare_and_swap<T>,
          static_cast<int64_t>(s.space), kRead | kWrite | kAtomicAccess);
  }
}

template <class H>
uint16_t half_sum(uint16_t a, uint16_t b) {
  return H::store(double_to_float_odd(sum_to_odd(H::load(a), H::load(b))));
}

template <class H>
void add_half(OpTable& t, const std::string& type) {
  add<uint16_t>(t, "add.noftz." + type, [](uint16_t a, uint16_t b) { return half_sum<H>(a, b); });
  add<uint16_t>(t, "add." + type, [](uint16_t a, uint16_t b) { return half_sum<H>(a, b); });
  const auto packed = [](uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(half_sum<H>(static_cast<uint16_t>(a), static_cast<uint16_t>(b))) |
           static_cast<uint32_t>(half_sum<H>(static_cast<uint16_t>(a >> 16), static_cast<uint16_t>(b >> 16))) << 16;
  };
  add<uint32_t>(t, "add." + type + "x2", packed);
}

}  // namespace

void add_atomic_ops(OpTable& t) {
  add_integer<uint32_t>(t, "u32");
  add_integer<int32_t>(t, "s32");
  add_integer<uint64_t>(t, "u64");
  add_integer<int64_t>(t, "s64");
  add_bits<uint32_t>(t, "b32");
  add_bits<uint64_t>(t, "b64");
  add<uint32_t>(t, "inc.u32", [](uint32_t a, uint32_t b) { return a >= b ? 0 : a + 1; });
  add<uint32_t>(t, "dec.u32", [](uint32_t a, uint32_t b) { return a == 0 || a > b ? b : a - 1; });
  add<uint32_t>(t, "add.f32",
                [](uint32_t a, uint32_t b) { return bits_as<uint32_t>(bits_as<float>(a) + bits_as<float>(b)); });
  add<uint64_t>(t, "add.f64",
                [](uint64_t a, uint64_t b) { return bits_as<uint64_t>(bits_as<double>(a) + bits_as<double>(b)); });
  add_half<Half>(t, "f16");
  add_half<Bfloat>(t, "bf16");
}

}  // namespace showo::ptx
