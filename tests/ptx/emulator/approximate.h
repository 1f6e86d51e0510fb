// The approximate functions: ex2, lg2, rcp, rsqrt, sqrt, sin, cos, tanh, div.approx and div.full. PTX says how far each
// may be off and leaves the bits to the processor. Here each errs by as much as PTX allows: a hash of the operand draws
// the error, evenly between its bounds. So an operand has one result, and a kernel or a budget that counts on more than
// PTX promises fails. What PTX does promise, the results of 0, infinity and NaN, is exact. The bounds are those of PTX
// ISA 9.0, sections 9.7.3 (fp32 and fp64) and 9.7.4 (fp16 and bf16).
#pragma once

#include "halves.h"

namespace showo::ptx {

// ---- formats of a result; store rounds to the nearest

struct Single {
  static constexpr int kMantissa = 23;
  static constexpr double kLeast = 0x1p-149;
  static float store(double x) { return static_cast<float>(x); }
  static double load(float x) { return x; }
};

template <class H>
struct Short {
  static uint16_t store(double x) { return H::store(double_to_float_odd(x)); }
  static double load(uint16_t x) { return H::load(x); }
};

// A double whose lower word is 0.
struct UpperWord {
  static constexpr int kMantissa = 20;
  static constexpr double kLeast = std::numeric_limits<double>::min();
  static double store(double x) {
    return x == x ? bits_as<double>((bits_as<uint64_t>(x) + 0x80000000u) >> 32 << 32) : x;
  }
  static double load(double x) { return x; }
};

// ---- the error

inline double two_to(int n) { return bits_as<double>(static_cast<int64_t>(n + 1023) << 52); }

// A unit in the last place of R at `exact`; 0 where `exact` rounds to 0.
template <class R>
double ulp(double exact) {
  const double power = bits_as<double>(bits_as<uint64_t>(exact) & 0x7ff0000000000000u);  // of two, not above |exact|
  const double unit = power * two_to(-R::kMantissa);
  return std::fabs(exact) <= R::kLeast / 2 ? 0.0 : unit > R::kLeast ? unit : R::kLeast;
}

// Evenly distributed in [-1, 1), one number for an operand.
inline double error_share(uint32_t operand) {
  operand = (operand ^ operand >> 16) * 0x7feb352du;
  operand = (operand ^ operand >> 15) * 0x846ca68bu;
  return static_cast<int32_t>(operand ^ operand >> 16) * 0x1p-31;
}

// A value of R that is off by `bound` at most. The nearest one where the bound is 0 or the drawn one is too far off.
template <class R>
auto approximation(double exact, double bound, uint32_t operand) {
  const auto nearest = R::store(exact);
  const auto drawn = R::store(exact + error_share(operand) * bound);
  return bound > 0.0 && std::fabs(R::load(drawn) - exact) <= bound ? drawn : nearest;
}

inline float approximation(double exact, double bound, float operand) {
  return approximation<Single>(exact, bound, bits_as<uint32_t>(operand));
}

// ---- fp32

// 2^x, right to 2^-40 of it: Taylor polynomial of what rounding x to an integer leaves.
inline double exp2_exact(float x) {
  const float clamped = x < -200.0f ? -200.0f : x > 200.0f ? 200.0f : x;  // a nan passes
  const float whole = __builtin_rintf(clamped);
  const double t = static_cast<double>(clamped - whole) * 0.6931471805599453;
  double p = 1.0 / 3628800;
  p = __builtin_fma(p, t, 1.0 / 362880);
  p = __builtin_fma(p, t, 1.0 / 40320);
  p = __builtin_fma(p, t, 1.0 / 5040);
  p = __builtin_fma(p, t, 1.0 / 720);
  p = __builtin_fma(p, t, 1.0 / 120);
  p = __builtin_fma(p, t, 1.0 / 24);
  p = __builtin_fma(p, t, 1.0 / 6);
  p = __builtin_fma(p, t, 0.5);
  p = __builtin_fma(p, t, 1.0);
  p = __builtin_fma(p, t, 1.0);
  return p * two_to(x == x ? static_cast<int>(whole) : 0);
}

inline float exp2_approximate(float a) {
  const double exact = exp2_exact(a);
  return approximation(exact, a == 0.0f ? 0.0 : 2 * ulp<Single>(exact), a);
}

inline float log2_approximate(float a) {
  const double exact = std::log2(static_cast<double>(a));
  return approximation(exact, 0x1p-22 * (a > 0.5f && a < 2.0f ? 1.0 : std::fabs(exact)), a);
}

inline float reciprocal_approximate(float a) {
  const double exact = 1.0 / static_cast<double>(a);
  return approximation(exact, ulp<Single>(exact), a);
}

inline float rsqrt_approximate(float a) {
  const double exact = 1.0 / std::sqrt(static_cast<double>(a));
  return approximation(exact, std::exp2(-22.9) * exact, a);
}

inline float sqrt_approximate(float a) {
  const double exact = std::sqrt(static_cast<double>(a));
  return approximation(exact, 0x1p-23 * exact, a);
}

// Of sin and cos. PTX promises nothing beyond 100 pi; the bound stays what it is up to there.
inline double angle_bound(float a) {
  return a == 0.0f ? 0.0 : std::fabs(a) <= 6.2831853f ? std::exp2(-20.5) : std::exp2(-14.7);
}
inline float sin_approximate(float a) { return approximation(std::sin(static_cast<double>(a)), angle_bound(a), a); }
inline float cos_approximate(float a) { return approximation(std::cos(static_cast<double>(a)), angle_bound(a), a); }

inline float tanh_approximate(float a) {
  const double exact = std::tanh(static_cast<double>(a));
  const bool promised = std::fabs(a) < std::numeric_limits<float>::min() || std::isinf(a);
  return approximation(exact, promised ? 0.0 : 0x1p-11 * std::fabs(exact), a);
}

inline float quotient_approximate(float a, float b) {  // div.full
  const double exact = static_cast<double>(a) / static_cast<double>(b);
  const uint32_t operands = bits_as<uint32_t>(a) ^ bits_as<uint32_t>(b) * 0x9e3779b1u;
  return approximation<Single>(exact, 2 * ulp<Single>(exact), operands);
}

// div.approx is a * (1 / b), and the reciprocal of a large b is 0.
inline float quotient_by_reciprocal(float a, float b) {
  const bool large = std::fabs(b) > 0x1p126f && !std::isinf(b);
  return large ? a * std::copysign(0.0f, b) : quotient_approximate(a, b);
}

// ---- fp64: the upper word of an operand gives the upper word of a result

// PTX gives no bound, only the format: a unit in the last of its places. Subnormals are 0.
template <class F>
double upper_word_approximate(double a, F function) {
  const auto flush = [](double x) {
    return std::fabs(x) < std::numeric_limits<double>::min() ? std::copysign(0.0, x) : x;
  };
  const double upper = flush(bits_as<double>(bits_as<uint64_t>(a) >> 32 << 32));
  const double exact = function(upper);
  return flush(
      approximation<UpperWord>(exact, ulp<UpperWord>(exact), static_cast<uint32_t>(bits_as<uint64_t>(upper) >> 32)));
}

// ---- fp16 and bf16

template <class H>
uint16_t exp2_approximate(uint16_t a) {
  const double exact = exp2_exact(H::load(a));
  const double bound = std::is_same_v<H, Half> ? std::exp2(-9.9) : 0x1p-7;
  return approximation<Short<H>>(exact, H::load(a) == 0.0f ? 0.0 : bound * exact, a);
}

template <class H>
uint16_t tanh_approximate(uint16_t a) {
  const float x = H::load(a);
  const double bound = std::is_same_v<H, Half> ? std::exp2(-10.987) : 0x1p-8;
  return approximation<Short<H>>(std::tanh(static_cast<double>(x)), x == 0.0f || std::isinf(x) ? 0.0 : bound, a);
}

}  // namespace showo::ptx
