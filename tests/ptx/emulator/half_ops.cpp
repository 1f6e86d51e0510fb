// fp16 and bf16 arithmetic, scalar and packed: every operation rounds once.
#include "approximate.h"
#include "halves.h"

namespace showo::ptx {
namespace {

constexpr InstrClass kClass = InstrClass::kHalf;

template <class F>
void add_unary(OpTable& t, const std::string& name, const std::string& type, F f, InstrClass cls = kClass) {
  static F op = f;
  add1<uint16_t, uint16_t>(t, name + "." + type, cls, f);
  add1<uint32_t, uint32_t>(t, name + "." + type + "x2", cls, [](uint32_t a) {
    return static_cast<uint32_t>(op(static_cast<uint16_t>(a))) |
           static_cast<uint32_t>(op(static_cast<uint16_t>(a >> 16))) << 16;
  });
}

template <class F>
void add_binary(OpTable& t, const std::string& name, const std::string& type, F f) {
  static F op = f;
  add2<uint16_t, uint16_t, uint16_t>(t, name + "." + type, kClass, f);
  add2<uint32_t, uint32_t, uint32_t>(t, name + "." + type + "x2", kClass, [](uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(op(static_cast<uint16_t>(a), static_cast<uint16_t>(b))) |
           static_cast<uint32_t>(op(static_cast<uint16_t>(a >> 16), static_cast<uint16_t>(b >> 16))) << 16;
  });
}

template <class F>
void add_ternary(OpTable& t, const std::string& name, const std::string& type, F f) {
  static F op = f;
  add3<uint16_t, uint16_t, uint16_t, uint16_t>(t, name + "." + type, kClass, f);
  add3<uint32_t, uint32_t, uint32_t, uint32_t>(
      t, name + "." + type + "x2", kClass, [](uint32_t a, uint32_t b, uint32_t c) {
        return static_cast<uint32_t>(op(static_cast<uint16_t>(a), static_cast<uint16_t>(b), static_cast<uint16_t>(c))) |
               static_cast<uint32_t>(
                   op(static_cast<uint16_t>(a >> 16), static_cast<uint16_t>(b >> 16), static_cast<uint16_t>(c >> 16)))
                   << 16;
      });
}

constexpr uint16_t kNan = 0x7fff;

template <class H>
uint16_t relu(uint16_t h) {
  const float x = H::load(h);
  return x != x ? kNan : x > 0 ? h : 0;
}
template <class H>
uint16_t saturate(uint16_t h) {
  const float x = H::load(h);
  return x > 0 ? (x < 1 ? h : H::store(1.0f)) : 0;
}

template <class H>
uint16_t least(uint16_t a, uint16_t b) {
  const float x = H::load(a), y = H::load(b);
  if (x != x) return y != y ? kNan : b;
  if (y != y) return a;
  return x < y || (x == y && (a & 0x8000)) ? a : b;
}
template <class H>
uint16_t most(uint16_t a, uint16_t b) {
  const float x = H::load(a), y = H::load(b);
  if (x != x) return y != y ? kNan : b;
  if (y != y) return a;
  return y < x || (x == y && (b & 0x8000)) ? a : b;
}
template <class H>
bool unordered(uint16_t a, uint16_t b) {
  const float x = H::load(a), y = H::load(b);
  return x != x || y != y;
}

template <class H>
void add_type(OpTable& t, const std::string& type) {
  // Sums and products of two halves are exact in double, and so round once; float does for f16 but not for bf16 sums.
  const auto sum = [](uint16_t a, uint16_t b) {
    return H::store(double_to_float_odd(sum_to_odd(H::load(a), H::load(b))));
  };
  const auto difference = [](uint16_t a, uint16_t b) {
    return H::store(double_to_float_odd(sum_to_odd(H::load(a), -static_cast<double>(H::load(b)))));
  };
  const auto product = [](uint16_t a, uint16_t b) {
    return H::store(double_to_float_odd(static_cast<double>(H::load(a)) * H::load(b)));
  };
  for (const char* rounding : {"", ".rn"}) {
    const std::string r = rounding;
    add_binary(t, "add" + r, type, sum);
    add_binary(t, "sub" + r, type, difference);
    add_binary(t, "mul" + r, type, product);
  }
  add_ternary(t, "fma.rn", type, [](uint16_t a, uint16_t b, uint16_t c) { return half_fma<H>(a, b, c); });
  add_ternary(t, "fma.rn.relu", type, [](uint16_t a, uint16_t b, uint16_t c) { return relu<H>(half_fma<H>(a, b, c)); });
  add_ternary(t, "fma.rn.sat", type,
              [](uint16_t a, uint16_t b, uint16_t c) { return saturate<H>(half_fma<H>(a, b, c)); });
  add_binary(t, "min", type, [](uint16_t a, uint16_t b) { return least<H>(a, b); });
  add_binary(t, "max", type, [](uint16_t a, uint16_t b) { return most<H>(a, b); });
  add_binary(t, "min.NaN", type, [](uint16_t a, uint16_t b) { return unordered<H>(a, b) ? kNan : least<H>(a, b); });
  add_binary(t, "max.NaN", type, [](uint16_t a, uint16_t b) { return unordered<H>(a, b) ? kNan : most<H>(a, b); });
  add_unary(t, "neg", type, [](uint16_t a) { return static_cast<uint16_t>(a ^ 0x8000); });
  add_unary(t, "abs", type, [](uint16_t a) { return static_cast<uint16_t>(a & 0x7fff); });
  add_unary(t, "tanh.approx", type, [](uint16_t a) { return tanh_approximate<H>(a); }, InstrClass::kSpecial);
  add_unary(t, "ex2.approx", type, [](uint16_t a) { return exp2_approximate<H>(a); }, InstrClass::kSpecial);
  add_unary(t, "ex2.approx.ftz", type, [](uint16_t a) { return exp2_approximate<H>(a); }, InstrClass::kSpecial);
}

}  // namespace

void add_half_ops(OpTable& t) {
  add_type<Half>(t, "f16");
  add_type<Bfloat>(t, "bf16");
}

}  // namespace showo::ptx
