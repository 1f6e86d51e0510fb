// fp32 and fp64 arithmetic and the special function unit. One rounding per fma; .ftz flushes subnormals both ways.
#include "approximate.h"
#include "ops.h"

namespace showo::ptx {
namespace {

constexpr InstrClass kFloat = InstrClass::kFloat;
constexpr InstrClass kDouble = InstrClass::kDouble;
constexpr InstrClass kSpecial = InstrClass::kSpecial;

struct Keep {
  static float flush(float x) { return x; }
};
struct Flush {
  static float flush(float x) {
    const uint32_t bits = bits_as<uint32_t>(x);
    return bits_as<float>((bits & 0x7f800000u) == 0 ? bits & 0x80000000u : bits);
  }
};

inline float saturate(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }  // nan -> 0

// min and max: a number beats a nan, and -0 < +0.
template <class T>
T least(T a, T b) {
  if (a != a) return b != b ? std::numeric_limits<T>::quiet_NaN() : b;
  if (b != b) return a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
}
template <class T>
T most(T a, T b) {
  if (a != a) return b != b ? std::numeric_limits<T>::quiet_NaN() : b;
  if (b != b) return a;
  return b < a || (a == b && std::signbit(b)) ? a : b;
}

template <class Z>
void add_fp32(OpTable& t, const std::string& ftz) {
  const auto op1 = [&](const std::string& name, InstrClass cls, auto f) {
    static auto g = f;
    add1<float, float>(t, name + ftz + ".f32", cls, [](float a) { return Z::flush(g(Z::flush(a))); });
  };
  const auto op2 = [&](const std::string& name, InstrClass cls, auto f) {
    static auto g = f;
    for (const char* rounding : {"", ".rn"}) {
      if (rounding[0] && (name == "min" || name == "max")) continue;
      add2<float, float, float>(t, name + rounding + ftz + ".f32", cls,
                                [](float a, float b) { return Z::flush(g(Z::flush(a), Z::flush(b))); });
      add2<float, float, float>(t, name + rounding + ftz + ".sat.f32", cls,
                                [](float a, float b) { return saturate(Z::flush(g(Z::flush(a), Z::flush(b)))); });
    }
  };
  op2("add", kFloat, [](float a, float b) { return a + b; });
  op2("sub", kFloat, [](float a, float b) { return a - b; });
  op2("mul", kFloat, [](float a, float b) { return a * b; });
  op2("div", kFloat, [](float a, float b) { return a / b; });
  op2("div.approx", kSpecial, [](float a, float b) { return quotient_by_reciprocal(a, b); });
  op2("div.full", kSpecial, [](float a, float b) { return quotient_approximate(a, b); });
  op2("min", kFloat, [](float a, float b) { return least(a, b); });
  op2("max", kFloat, [](float a, float b) { return most(a, b); });
  const auto fma = [](float a, float b, float c) {
    return Z::flush(__builtin_fmaf(Z::flush(a), Z::flush(b), Z::flush(c)));
  };
  static auto multiply_add = fma;
  for (const char* name : {"fma.rn", "mad.rn", "mad"}) {
    add3<float, float, float, float>(t, std::string(name) + ftz + ".f32", kFloat, fma);
    add3<float, float, float, float>(t, std::string(name) + ftz + ".sat.f32", kFloat,
                                     [](float a, float b, float c) { return saturate(multiply_add(a, b, c)); });
  }
  op1("neg", kFloat, [](float a) { return -a; });
  op1("abs", kFloat, [](float a) { return std::fabs(a); });
  op1("sqrt.rn", kSpecial, [](float a) { return std::sqrt(a); });
  op1("sqrt.approx", kSpecial, [](float a) { return sqrt_approximate(a); });
  op1("rcp.rn", kSpecial, [](float a) { return 1.0f / a; });
  op1("rcp.approx", kSpecial, [](float a) { return reciprocal_approximate(a); });
  op1("rsqrt.approx", kSpecial, [](float a) { return rsqrt_approximate(a); });
  op1("ex2.approx", kSpecial, [](float a) { return exp2_approximate(a); });
  op1("lg2.approx", kSpecial, [](float a) { return log2_approximate(a); });
  op1("sin.approx", kSpecial, [](float a) { return sin_approximate(a); });
  op1("cos.approx", kSpecial, [](float a) { return cos_approximate(a); });
  op1("tanh.approx", kSpecial, [](float a) { return tanh_approximate(a); });
  // A nan in, a nan out.
  const auto either_nan = [](float a, float b) { return a != a || b != b; };
  static auto unordered = either_nan;
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  add2<float, float, float>(t, "min" + ftz + ".NaN.f32", kFloat,
                            [](float a, float b) { return unordered(a, b) ? kNan : least(Z::flush(a), Z::flush(b)); });
  add2<float, float, float>(t, "max" + ftz + ".NaN.f32", kFloat,
                            [](float a, float b) { return unordered(a, b) ? kNan : most(Z::flush(a), Z::flush(b)); });
}

// Directed rounding of +, * and fma in fp32, from an exact or sticky result in double.
enum class Round { kZero, kDown, kUp };

template <Round kRound>
float directed(double exact, bool more, bool less) {  // more/less: the true value lies above/below `exact`
  float f = static_cast<float>(exact);
  if (f != f || exact - exact != 0) return f;
  const bool above = static_cast<double>(f) > exact || (static_cast<double>(f) == exact && less);
  const bool below = static_cast<double>(f) < exact || (static_cast<double>(f) == exact && more);
  const float down = -std::numeric_limits<float>::infinity(), up = -down;
  if (kRound == Round::kDown || (kRound == Round::kZero && exact > 0)) return above ? std::nextafter(f, down) : f;
  return below ? std::nextafter(f, up) : f;
}

template <Round kRound>
float directed_sum(double p, double c) {
  const double s = p + c;
  const double back = s - p;
  const double error = (p - (s - back)) + (c - back);
  if (kRound == Round::kDown && s == 0 && error == 0 && (std::signbit(p) || std::signbit(c)) &&
      !(p == 0 && c == 0 && std::signbit(p) == std::signbit(c))) {
    return -0.0f;
  }
  return directed<kRound>(s, error > 0, error < 0);
}

template <Round kRound>
void add_directed(OpTable& t, const std::string& rounding) {
  add2<float, float, float>(t, "add." + rounding + ".f32", kFloat,
                            [](float a, float b) { return directed_sum<kRound>(a, b); });
  add2<float, float, float>(t, "sub." + rounding + ".f32", kFloat,
                            [](float a, float b) { return directed_sum<kRound>(a, -static_cast<double>(b)); });
  add2<float, float, float>(t, "mul." + rounding + ".f32", kFloat, [](float a, float b) {
    return directed<kRound>(static_cast<double>(a) * b, false, false);
  });
  add3<float, float, float, float>(t, "fma." + rounding + ".f32", kFloat, [](float a, float b, float c) {
    return directed_sum<kRound>(static_cast<double>(a) * b, c);
  });
}

void add_fp64(OpTable& t) {
  const auto op1 = [&](const std::string& name, auto f) { add1<double, double>(t, name + ".f64", kDouble, f); };
  const auto op2 = [&](const std::string& name, auto f) { add2<double, double, double>(t, name + ".f64", kDouble, f); };
  for (const char* rounding : {"", ".rn"}) {
    const std::string r = rounding;
    op2("add" + r, [](double a, double b) { return a + b; });
    op2("sub" + r, [](double a, double b) { return a - b; });
    op2("mul" + r, [](double a, double b) { return a * b; });
    op2("div" + r, [](double a, double b) { return a / b; });
    op1("sqrt" + r, [](double a) { return std::sqrt(a); });
    op1("rcp" + r, [](double a) { return 1.0 / a; });
    add3<double, double, double, double>(t, "fma" + r + ".f64", kDouble,
                                         [](double a, double b, double c) { return __builtin_fma(a, b, c); });
    add3<double, double, double, double>(t, "mad" + r + ".f64", kDouble,
                                         [](double a, double b, double c) { return __builtin_fma(a, b, c); });
  }
  op2("min", [](double a, double b) { return least(a, b); });
  op2("max", [](double a, double b) { return most(a, b); });
  op1("neg", [](double a) { return -a; });
  op1("abs", [](double a) { return std::fabs(a); });
  op1("rcp.approx.ftz", [](double a) { return upper_word_approximate(a, [](double x) { return 1.0 / x; }); });
  op1("rsqrt.approx.ftz",
      [](double a) { return upper_word_approximate(a, [](double x) { return 1.0 / std::sqrt(x); }); });
  op1("rsqrt.approx", [](double a) { return 1.0 / std::sqrt(a); });  // software, for which PTX gives no bound
}

}  // namespace

void add_float_ops(OpTable& t) {
  add_fp32<Keep>(t, "");
  add_fp32<Flush>(t, ".ftz");
  add_directed<Round::kZero>(t, "rz");
  add_directed<Round::kDown>(t, "rm");
  add_directed<Round::kUp>(t, "rp");
  add_fp64(t);
  add2<float, float, float>(t, "copysign.f32", kFloat, [](float a, float b) { return std::copysign(b, a); });
  add2<double, double, double>(t, "copysign.f64", kDouble, [](double a, double b) { return std::copysign(b, a); });
}

}  // namespace showo::ptx
