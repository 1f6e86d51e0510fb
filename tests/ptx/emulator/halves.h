// fp16 and bf16 as bits: conversions without branches, so that lane loops vectorise.
#pragma once

#include <cstdint>

#include "ops.h"

namespace showo::ptx {

inline float half_to_float(uint16_t h) {
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fff) << 13;
  const uint32_t scaled = bits_as<uint32_t>(bits_as<float>(magnitude) * bits_as<float>(0x77800000u));  // * 2^112
  const uint32_t special = magnitude | 0x7f800000u;                                                    // inf, nan
  return bits_as<float>(((h & 0x7c00) == 0x7c00 ? special : scaled) | static_cast<uint32_t>(h & 0x8000) << 16);
}

inline float bfloat_to_float(uint16_t h) { return bits_as<float>(static_cast<uint32_t>(h) << 16); }

inline uint16_t float_to_half(float f) {  // to nearest even
  const uint32_t bits = bits_as<uint32_t>(f);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t large = magnitude > 0x7f800000u ? 0x7fffu : 0x7c00u;
  return static_cast<uint16_t>((magnitude >= 0x477ff000u ? large : finite) | (bits >> 16 & 0x8000u));
}

inline uint16_t float_to_bfloat(float f) {  // to nearest even
  const uint32_t bits = bits_as<uint32_t>(f);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : rounded);
}

// p + c rounded to odd in double: whatever narrower type the result is rounded to next, that rounding gives what it
// would have given for the exact sum.
inline double sum_to_odd(double p, double c) {
  const double s = p + c;
  const double back = s - p;
  const double error = (p - (s - back)) + (c - back);
  const uint64_t bits = bits_as<uint64_t>(s);
  if (error == 0 || !(error == error) || bits & 1) return s;
  return bits_as<double>((error > 0) == (s > 0) ? bits + 1 : bits - 1);
}

// double -> float to odd, so that float -> half rounds correctly.
inline float double_to_float_odd(double d) {
  const float f = static_cast<float>(d);
  const uint32_t bits = bits_as<uint32_t>(f);
  if (static_cast<double>(f) == d || f != f || bits & 1) return f;
  const bool away = std::fabs(static_cast<double>(f)) > std::fabs(d);  // inf after an overflow as well
  return bits_as<float>(away ? bits - 1 : bits + 1);
}

struct Half {
  static float load(uint16_t h) { return half_to_float(h); }
  static uint16_t store(float f) { return float_to_half(f); }
};
struct Bfloat {
  static float load(uint16_t h) { return bfloat_to_float(h); }
  static uint16_t store(float f) { return float_to_bfloat(f); }
};

template <class H>
uint16_t half_fma(uint16_t a, uint16_t b, uint16_t c) {
  const double product = static_cast<double>(H::load(a)) * static_cast<double>(H::load(b));
  return H::store(double_to_float_odd(sum_to_odd(product, static_cast<double>(H::load(c)))));
}

}  // namespace showo::ptx
