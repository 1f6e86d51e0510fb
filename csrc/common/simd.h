// Vectors of the instruction set that a file is compiled for, written with the compiler's vector extensions.
//
// Include it only in sources that cmake/operators.cmake compiles once per instruction set. Everything lives in the
// namespace named by SHOWO_ISA and is forced inline, so that no copy compiled for a newer machine is ever shared with
// an older one.
//
//   VecF x = load(p);  x = select(x > y, x, y);  store(p, exp2_bounded(x));
//
// Comparisons give masks of the type VecI, each lane 0 or -1.
// Relative errors measured over the whole range: exp2_bounded, exp and log below 1.2e-7, tanh below 2.4e-7.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/dtype.h"

#ifndef SHOWO_ISA
#define SHOWO_ISA baseline
#endif

#define SHOWO_INLINE static inline __attribute__((always_inline))

namespace showo {
namespace SHOWO_ISA {

// SHOWO_LANES overrides the width, to run the code of a wider machine on a narrow one.
#if defined(SHOWO_LANES)
constexpr int kLanes = SHOWO_LANES;
#elif defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float VecF __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecI __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecU __attribute__((vector_size(kLanes * 4)));
typedef uint16_t VecU16 __attribute__((vector_size(kLanes * 2)));
// The same, at any address.
typedef float VecFAny __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t VecIAny __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint16_t VecU16Any __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

SHOWO_INLINE VecF set1(float x) { return x - VecF{}; }  // x - 0 keeps the sign of zero
SHOWO_INLINE VecI set1(int32_t x) { return x - VecI{}; }
SHOWO_INLINE VecF load(const float* p) { return *reinterpret_cast<const VecFAny*>(p); }
SHOWO_INLINE VecI load(const int32_t* p) { return *reinterpret_cast<const VecIAny*>(p); }
SHOWO_INLINE void store(float* p, VecF x) { *reinterpret_cast<VecFAny*>(p) = x; }
SHOWO_INLINE void store(int32_t* p, VecI x) { *reinterpret_cast<VecIAny*>(p) = x; }

SHOWO_INLINE VecI as_int(VecF x) { return reinterpret_cast<VecI>(x); }
SHOWO_INLINE VecF as_float(VecI x) { return reinterpret_cast<VecF>(x); }
SHOWO_INLINE VecF select(VecI mask, VecF yes, VecF no) { return mask ? yes : no; }
SHOWO_INLINE VecI select(VecI mask, VecI yes, VecI no) { return mask ? yes : no; }
// A NaN in x is dropped, a NaN in y is kept.
SHOWO_INLINE VecF max(VecF x, VecF y) { return x > y ? x : y; }
SHOWO_INLINE VecF min(VecF x, VecF y) { return x < y ? x : y; }

// Folds kWidth floats in halves: each of the lower half with its partner in the upper half, then the results likewise.
template <int kWidth, class Combine>
SHOWO_INLINE float fold(const float* x, const Combine& combine) {
  if constexpr (kWidth == 1) {
    return x[0];
  } else {
    typedef float Part __attribute__((vector_size(kWidth * 2), aligned(4), may_alias));
    const Part part = combine(*reinterpret_cast<const Part*>(x), *reinterpret_cast<const Part*>(x + kWidth / 2));
    return fold<kWidth / 2>(reinterpret_cast<const float*>(&part), combine);
  }
}

SHOWO_INLINE float sum(VecF x) {
  return fold<kLanes>(reinterpret_cast<const float*>(&x), [](auto a, auto b) { return a + b; });
}

SHOWO_INLINE float max(VecF x) {
  return fold<kLanes>(reinterpret_cast<const float*>(&x), [](auto a, auto b) { return a > b ? a : b; });
}

// 16-bit floats. The conversion is exact, denormals and NaN included.
SHOWO_INLINE VecF load(const BFloat16* p) {
  const VecU16 bits = *reinterpret_cast<const VecU16Any*>(p);
  return reinterpret_cast<VecF>(__builtin_convertvector(bits, VecU) << 16);
}

SHOWO_INLINE VecF of_half(VecU bits) {
  const VecU magnitude = bits & 0x7fffu;
  // 2^112 moves the exponent bias from 15 to 127 and makes denormals exact as well.
  const VecU finite = reinterpret_cast<VecU>(reinterpret_cast<VecF>(magnitude << 13) * 0x1p112f);
  const VecU special = (magnitude << 13) | 0x7f800000u;
  const VecU is_special = reinterpret_cast<VecU>(magnitude >= 0x7c00u);
  return reinterpret_cast<VecF>(((bits & 0x8000u) << 16) | (is_special & special) | (~is_special & finite));
}

SHOWO_INLINE VecF load(const Half* p) {
  return of_half(__builtin_convertvector(*reinterpret_cast<const VecU16Any*>(p), VecU));
}

// 2^(x - less) for x <= 128 and less from 0 to 127: where x - less is below -127, 0 (denormals are flushed); NaN gives
// NaN. What `less` takes away is exact.
SHOWO_INLINE VecF exp2_bounded(VecF x, int32_t less = 0) {
  x = max(set1(less - 127.0f), x);
  const VecF shifted = x + 0x1.8p23f;  // the low bits now hold round(x)
  const VecF f = x - (shifted - 0x1.8p23f);
  VecF p = f * 1.5353361959569156e-4f + 1.3398875016719103e-3f;
  p = p * f + 9.61843691766262e-3f;
  p = p * f + 5.5503323674201965e-2f;
  p = p * f + 2.4022647738456726e-1f;
  p = p * f + 6.931471824645996e-1f;
  p = p * f + 1.0f;
  return p * as_float((as_int(shifted) << 23) + ((127 - less) << 23));
}

// e^x: 0 below -87.7, infinity above 88.72.
SHOWO_INLINE VecF exp(VecF x) {
  // The product with log2(e) in two parts, so that large arguments keep their digits.
  const VecF bounded = min(set1(89.0f), max(set1(-89.0f), x));
  const VecF n = (bounded * 1.44269504f + 0x1.8p23f) - 0x1.8p23f;
  VecF r = bounded - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  VecF p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // n reaches 128, whose power of two is no float: scale in two halves.
  const VecI whole = __builtin_convertvector(n, VecI);
  const VecI half = whole >> 1;
  const VecF y = p * as_float((half + 127) << 23) * as_float((whole - half + 127) << 23);
  const VecF infinity = as_float(set1(int32_t{0x7f800000}));
  const VecF y_high = select(x > 88.7228394f, infinity, y);
  const VecF y_low = select(x < -87.7f, VecF{}, y_high);
  return select(x == x, y_low, x);
}

// Hyperbolic tangent, of tiny arguments too: near 0 the quotient of exponentials would lose their digits.
SHOWO_INLINE VecF tanh(VecF x) {
  const VecF magnitude = as_float(as_int(x) & 0x7fffffff);
  const VecF e = exp2_bounded(min(set1(30.0f), magnitude * 2.8853900817779268f));  // e^(2 |x|), 2^30 where that is more
  const VecF large = as_float(as_int(1.0f - 2.0f / (e + 1.0f)) | (as_int(x) & static_cast<int32_t>(0x80000000)));
  const VecF z = x * x;  // below 0.7^2: minimax for the relative error
  VecF p = z * -5.13865193e-3f + 2.00919583e-2f;
  p = p * z + -5.35588562e-2f;
  p = p * z + 1.3329111e-1f;
  p = p * z + -3.33331913e-1f;
  return select(magnitude < 0.7f, p * (z * x) + x, large);
}

// Natural logarithm. 0 gives -infinity, negative values NaN, infinity and NaN themselves; denormals count as 2^-126.
SHOWO_INLINE VecF log(VecF x) {
  const VecF y = max(x, set1(0x1p-126f));
  // y = m 2^e with m in [sqrt(1/2), sqrt(2))
  const VecI shifted = as_int(y) - 0x3f3504f3;
  const VecF e = __builtin_convertvector(shifted >> 23, VecF);
  const VecF m = as_float((shifted & 0x007fffff) + 0x3f3504f3) - 1.0f;
  const VecF z = m * m;
  VecF p = m * 7.0376836292e-2f + -1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m + -1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m + -1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m + -2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  VecF r = p * m * z;
  r = r + e * -2.12194440e-4f;
  r = r - z * 0.5f;
  r = (m + r) + e * 0.693359375f;
  const VecF infinity = as_float(set1(int32_t{0x7f800000}));
  r = select(x == 0.0f, -infinity, r);
  r = select(x == infinity, x, r);
  return select(x >= 0.0f, r, as_float(set1(int32_t{0x7fc00000})));
}

}  // namespace SHOWO_ISA
}  // namespace showo
