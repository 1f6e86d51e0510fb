// The softcap of scores in the CUDA kernels: what was `scale s` for a product s = q k^T becomes
// softcap tanh(scale s / softcap), before the mask.
//
// All threads ask by one branch whether there is a softcap, so that calls without one take the instructions that they
// would take without this file, and no kernel is instantiated twice. What tanh costs a score:
//   coarse_tanh  off by 2^-21 at most                     5 instructions, two of them special functions
//   exact_tanh   off by 2^-21 of its value, near 0 too   16 instructions, two of them special functions
// Near 0 the former has few digits, and the softcap multiplies its error: fp32 takes the latter. In 16 bits a softcap
// up to kCoarseSoftcap takes the former: scores are then off by 2^-14 at most, a quarter of what rounding a probability
// to fp16 may change. Nothing crosses the bus for a softcap.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>

#include "common/ptx.cuh"
#include "omni_attention/params.h"

namespace showo {

constexpr float kCoarseSoftcap = 128.0f;

// 1 / x, a unit in the last place off at most; infinity gives 0.
__device__ __forceinline__ float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// tanh x from y = 2 log2(e) x, that is from 2^y = e^(2 x). Infinity gives 1, NaN gives NaN.
__device__ __forceinline__ float coarse_tanh(float y) {
  return fmaf(-2.0f, reciprocal_approx(1.0f + exp2_approx(y)), 1.0f);
}

// tanh x, with the digits of small x too. Below 0.7 the odd polynomial of common/simd.h. Both are computed: lanes that
// branch would wait for each other.
__device__ __forceinline__ float exact_tanh(float x) {
  const float large = copysignf(coarse_tanh(fabsf(x) * 2.8853900817779268f), x);
  const float z = x * x;
  float p = fmaf(z, -5.13865193e-3f, 2.00919583e-2f);
  p = fmaf(p, z, -5.35588562e-2f);
  p = fmaf(p, z, 1.3329111e-1f);
  p = fmaf(p, z, -3.33331913e-1f);
  return fabsf(x) < 0.7f ? fmaf(p * z, x, x) : large;
}

// A kernel parameter: its numbers are operands in constant memory and take no registers.
struct Softcap {
  float share;     // scale / softcap: times a product, the argument of tanh. Finite, so that a product of 0 stays 0.
  float exponent;  // the same in units of coarse_tanh
  float log2;      // the softcap times log2(e); 0: there is none
  bool coarse;     // a kernel for 16 bits takes coarse_tanh

  __host__ explicit Softcap(const OmniInputs& in) : share(0), exponent(0), log2(0), coarse(false) {
    if (in.softcap == 0) return;
    share = fminf(fmaxf(in.scale / in.softcap, -FLT_MAX), FLT_MAX);
    exponent = fminf(fmaxf(share * 2.8853900817779268f, -FLT_MAX), FLT_MAX);
    log2 = fmaxf(in.softcap * 1.4426950408889634f, 1e-30f);  // as the scale of WarpRows: far below any other score
    coarse = in.softcap <= kCoarseSoftcap;
  }

  __device__ __forceinline__ bool exists() const { return log2 != 0; }

  // What makes scores in units of log2 of what `apply` leaves; without a softcap `scale`, what makes them of products.
  __device__ __forceinline__ float factor(float scale) const { return exists() ? log2 : scale; }

  // Products become tanh(score / softcap): those of kCount tiles, from tile kFirst on. kExact: fp32.
  template <bool kExact, int kFirst, int kCount, int kTiles, int kSize>
  __device__ __forceinline__ void apply(float (&s)[kTiles][kSize]) const {
    if (!kExact && coarse) {
#pragma unroll
      for (int n = kFirst; n < kFirst + kCount; ++n)
#pragma unroll
        for (int i = 0; i < kSize; ++i) s[n][i] = coarse_tanh(s[n][i] * exponent);
    } else {
#pragma unroll
      for (int n = kFirst; n < kFirst + kCount; ++n)
#pragma unroll
        for (int i = 0; i < kSize; ++i) s[n][i] = exact_tanh(s[n][i] * share);
    }
  }

  // The same for all tiles in 16 bits; slopes[n][i] is multiplied by the slope of tanh, 1 - tanh^2, there.
  template <int kTiles>
  __device__ __forceinline__ void apply_with_slopes(float (&s)[kTiles][4], float (&slopes)[kTiles][4]) const {
    apply<false, 0, kTiles>(s);
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) slopes[n][i] *= fmaf(-s[n][i], s[n][i], 1.0f);
  }
};

}  // namespace showo
