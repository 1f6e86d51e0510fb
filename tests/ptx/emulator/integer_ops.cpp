// Integer arithmetic.
#include <algorithm>

#include "ops.h"

namespace showo::ptx {
namespace {

constexpr InstrClass kClass = InstrClass::kInteger;

template <class T>
struct Wider;
template <>
struct Wider<uint16_t> {
  using type = uint32_t;
};
template <>
struct Wider<int16_t> {
  using type = int32_t;
};
template <>
struct Wider<uint32_t> {
  using type = uint64_t;
};
template <>
struct Wider<int32_t> {
  using type = int64_t;
};
template <>
struct Wider<uint64_t> {
  using type = unsigned __int128;
};
template <>
struct Wider<int64_t> {
  using type = __int128;
};

template <class T>
using Unsigned = std::make_unsigned_t<T>;

template <class T>
T high_product(T a, T b) {
  using W = typename Wider<T>::type;
  return static_cast<T>((static_cast<W>(a) * static_cast<W>(b)) >> (8 * sizeof(T)));
}

// Wrapping arithmetic, done on unsigned types at least as wide as unsigned int.
template <class T>
auto u(T a) {
  return static_cast<std::common_type_t<Unsigned<T>, unsigned>>(static_cast<Unsigned<T>>(a));
}

// Division by zero gives all ones, as the hardware's routine does; remainder gives the dividend.
template <class T>
T quotient(T a, T b) {
  if (b == 0) return static_cast<T>(~T{0});
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return static_cast<T>(0 - u(a));
  return static_cast<T>(a / b);
}
template <class T>
T remainder(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
  return static_cast<T>(a % b);
}

template <class T>
void add_type(OpTable& t, const std::string& type) {
  const auto op2 = [&](const std::string& name, auto f) { add2<T, T, T>(t, name + "." + type, kClass, f); };
  op2("add", [](T a, T b) { return static_cast<T>(u(a) + u(b)); });
  op2("sub", [](T a, T b) { return static_cast<T>(u(a) - u(b)); });
  op2("mul.lo", [](T a, T b) { return static_cast<T>(u(a) * u(b)); });
  op2("mul.hi", [](T a, T b) { return high_product(a, b); });
  op2("div", [](T a, T b) { return quotient(a, b); });
  op2("rem", [](T a, T b) { return remainder(a, b); });
  op2("min", [](T a, T b) { return b < a ? b : a; });
  op2("max", [](T a, T b) { return a < b ? b : a; });
  add3<T, T, T, T>(t, "mad.lo." + type, kClass, [](T a, T b, T c) { return static_cast<T>(u(a) * u(b) + u(c)); });
  add3<T, T, T, T>(t, "mad.hi." + type, kClass,
                   [](T a, T b, T c) { return static_cast<T>(u(high_product(a, b)) + u(c)); });
  add3<T, T, T, T>(t, "sad." + type, kClass,
                   [](T a, T b, T c) { return static_cast<T>(u(c) + (a < b ? u(b) - u(a) : u(a) - u(b))); });
  if constexpr (std::is_signed_v<T>) {
    add1<T, T>(t, "neg." + type, kClass, [](T a) { return static_cast<T>(0 - u(a)); });
    add1<T, T>(t, "abs." + type, kClass, [](T a) { return a < 0 ? static_cast<T>(0 - u(a)) : a; });
  }
}

template <class T>
void add_wide(OpTable& t, const std::string& type) {
  using W = typename Wider<T>::type;
  add2<W, T, T>(t, "mul.wide." + type, kClass,
                [](T a, T b) { return static_cast<W>(static_cast<W>(a) * static_cast<W>(b)); });
  add3<W, T, T, W>(t, "mad.wide." + type, kClass, [](T a, T b, W c) {
    return static_cast<W>(u(static_cast<W>(static_cast<W>(a) * static_cast<W>(b))) + u(c));
  });
}

template <class A, class B>
void add_dot(OpTable& t, const std::string& types) {
  add3<int32_t, uint32_t, uint32_t, int32_t>(t, "dp4a." + types, kClass, [](uint32_t a, uint32_t b, int32_t c) {
    uint32_t sum = static_cast<uint32_t>(c);
    for (int k = 0; k < 32; k += 8) sum += static_cast<uint32_t>(static_cast<A>(a >> k) * static_cast<B>(b >> k));
    return static_cast<int32_t>(sum);
  });
}

}  // namespace

void add_integer_ops(OpTable& t) {
  add_type<uint16_t>(t, "u16");
  add_type<int16_t>(t, "s16");
  add_type<uint32_t>(t, "u32");
  add_type<int32_t>(t, "s32");
  add_type<uint64_t>(t, "u64");
  add_type<int64_t>(t, "s64");
  add_wide<uint16_t>(t, "u16");
  add_wide<int16_t>(t, "s16");
  add_wide<uint32_t>(t, "u32");
  add_wide<int32_t>(t, "s32");
  add_dot<uint8_t, uint8_t>(t, "u32.u32");
  add_dot<int8_t, int8_t>(t, "s32.s32");
  add_dot<uint8_t, int8_t>(t, "u32.s32");
  add_dot<int8_t, uint8_t>(t, "s32.u32");
  for (const char* name : {"mul24.lo.u32", "mul24.lo.s32"}) {
    add2<uint32_t, uint32_t, uint32_t>(t, name, kClass,
                                       [](uint32_t a, uint32_t b) { return (a & 0xffffff) * (b & 0xffffff); });
  }
}

}  // namespace showo::ptx
