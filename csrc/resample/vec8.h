// Eight fp32 lanes by GCC vector extensions, for cpu_sample_row.cpp alone: the compiler splits them where the
// instruction set has shorter registers. Everything is static and inlined, so each instruction set keeps its own copy.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/dtype.h"
#include "common/philox.h"

#define SHOWO_VEC8_FN static inline __attribute__((always_inline))

namespace showo::resample::SHOWO_ISA {

typedef float F8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));
typedef uint32_t U8 __attribute__((vector_size(32)));
typedef uint64_t U64x4 __attribute__((vector_size(32)));
typedef uint16_t H8 __attribute__((vector_size(16)));

constexpr float kInf = __builtin_inff();

SHOWO_VEC8_FN F8 splat(float value) { return F8{} + value; }

template <typename Vec, typename Element>
SHOWO_VEC8_FN Vec load_as(const Element* source) {
  Vec out;
  std::memcpy(&out, source, sizeof(out));
  return out;
}

SHOWO_VEC8_FN void store(float* target, F8 value) { std::memcpy(target, &value, sizeof(value)); }

SHOWO_VEC8_FN F8 max8(F8 a, F8 b) { return a > b ? a : b; }

SHOWO_VEC8_FN bool any(I8 lanes) {
#if defined(__AVX2__)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(lanes)) != 0;
#else
  const U64x4 words = reinterpret_cast<U64x4>(lanes);
  return (words[0] | words[1] | words[2] | words[3]) != 0;
#endif
}

SHOWO_VEC8_FN float max_lane(F8 v) {
  float best = v[0];
  for (int i = 1; i < 8; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

SHOWO_VEC8_FN float sum_lanes(F8 v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

SHOWO_VEC8_FN F8 multiply_add(F8 a, F8 b, F8 c) {
#if defined(__FMA__)
  return reinterpret_cast<F8>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
  return a * b + c;
#endif
}

// ---------------------------------------------------------------------------------------------------------------
// fp32, bf16 and fp16 in

SHOWO_VEC8_FN F8 load8(const float* source) { return load_as<F8>(source); }

SHOWO_VEC8_FN F8 load8(const BFloat16* source) {
  return reinterpret_cast<F8>(__builtin_convertvector(load_as<H8>(source), U8) << 16);
}

SHOWO_VEC8_FN F8 load8(const Half* source) {
#if defined(__F16C__)
  return reinterpret_cast<F8>(_mm256_cvtph_ps(load_as<__m128i>(source)));
#else
  const U8 half = __builtin_convertvector(load_as<H8>(source), U8);
  const U8 magnitude = (half & 0x7FFFu) << 13;
  U8 bits = reinterpret_cast<U8>(reinterpret_cast<F8>(magnitude) * 0x1p112f);  // rebias; subnormals come out right
  bits |= reinterpret_cast<U8>(magnitude >= 0x0F800000u) & 0x7F800000u;        // infinity and NaN
  return reinterpret_cast<F8>(bits | (half & 0x8000u) << 16);
#endif
}

// The first `count` < 8 lanes; the others hold zero.
template <typename T>
SHOWO_VEC8_FN F8 load_tail(const T* source, int64_t count) {
  T padded[8] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = source[i];
  return load8(padded);
}

// ---------------------------------------------------------------------------------------------------------------
// exp(z) for z <= 0, 0 below -87.3 (and for -inf). Cephes' expf: z = n ln 2 + r, |r| <= ln 2 / 2, polynomial of degree
// 7 in r; within 2 ulp.

SHOWO_VEC8_FN F8 exp_negative(F8 z) {
  const F8 shifter = splat(0x1.8p23f);  // adding it leaves the nearest integer in the low bits
  const F8 shifted = multiply_add(z, splat(1.44269504088896341f), shifter);
  const F8 n = shifted - shifter;
  F8 r = multiply_add(n, splat(-0.693359375f), z);
  r = multiply_add(n, splat(2.12194440e-4f), r);
  F8 p = splat(1.9875691500e-4f);
  p = multiply_add(p, r, splat(1.3981999507e-3f));
  p = multiply_add(p, r, splat(8.3334519073e-3f));
  p = multiply_add(p, r, splat(4.1665795894e-2f));
  p = multiply_add(p, r, splat(1.6666665459e-1f));
  p = multiply_add(p, r, splat(5.0000001201e-1f));
  p = multiply_add(p, r * r, r) + 1.0f;
  const F8 scaled = reinterpret_cast<F8>(reinterpret_cast<U8>(p) + (reinterpret_cast<U8>(shifted) << 23));
  return z > -87.3f ? scaled : F8{};
}

// ---------------------------------------------------------------------------------------------------------------
// Philox, eight counters at once

// Low 32 bits of every 64-bit lane times `factor`; what the upper halves hold does not matter.
SHOWO_VEC8_FN U64x4 multiply_low_halves(U64x4 lanes, uint32_t factor) {
#if defined(__AVX2__)
  return reinterpret_cast<U64x4>(_mm256_mul_epu32(reinterpret_cast<__m256i>(lanes), _mm256_set1_epi64x(factor)));
#else
  return (lanes & 0xFFFFFFFFu) * uint64_t{factor};
#endif
}

// Four counters, each in the low half of a 64-bit lane through all rounds, so that no round needs a shuffle.
struct PhiloxLanes {
  U64x4 c0, c1, c2, c3;
};

SHOWO_VEC8_FN void philox_round(PhiloxLanes& c, uint32_t k0, uint32_t k1) {
  const U64x4 p0 = multiply_low_halves(c.c0, kPhiloxMultiplier0);
  const U64x4 p1 = multiply_low_halves(c.c2, kPhiloxMultiplier1);
  c.c0 = (p1 >> 32) ^ c.c1 ^ uint64_t{k0};
  c.c2 = (p0 >> 32) ^ c.c3 ^ uint64_t{k1};
  c.c1 = p1;
  c.c3 = p0;
}

// Words of 16 elements in order, from counters that sit in the lanes as 0, 2, 1, 3.
SHOWO_VEC8_FN void philox_unpack(const PhiloxLanes& c, U8* words) {
  const U64x4 w01 = (c.c0 & 0xFFFFFFFFu) | (c.c1 << 32);
  const U64x4 w23 = (c.c2 & 0xFFFFFFFFu) | (c.c3 << 32);
  words[0] = reinterpret_cast<U8>(__builtin_shuffle(w01, w23, U64x4{0, 4, 2, 6}));
  words[1] = reinterpret_cast<U8>(__builtin_shuffle(w01, w23, U64x4{1, 5, 3, 7}));
}

// Words of elements 4 * block .. 4 * block + 31.
SHOWO_VEC8_FN void philox32(const PhiloxRow& row, uint32_t block, U8 words[4]) {
  const U64x4 first = U64x4{0, 2, 1, 3} + uint64_t{block};
  const U64x4 zero{};
  PhiloxLanes a{first, zero + row.position, zero + row.step, zero + row.stream_row};
  PhiloxLanes b{first + 4, a.c1, a.c2, a.c3};
  uint32_t k0 = row.key0, k1 = row.key1;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    philox_round(a, k0, k1);
    philox_round(b, k0, k1);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  philox_unpack(a, words);
  philox_unpack(b, words + 2);
}

}  // namespace showo::resample::SHOWO_ISA
