// Rows of logits as the sampling kernels read them: combined, a chunk of a warp at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "resample/params.h"
#include "resample/race.cuh"

namespace showo::resample {

__device__ __forceinline__ float as_float(float x) { return x; }
__device__ __forceinline__ float as_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
struct alignas(4 * sizeof(T)) Pack {
  T value[4];
};

// What the rows below have in common: how the tokens of a lane are read.
template <class T>
struct RowLayout {
  uint32_t vocab;
  Layout layout;

  __device__ __forceinline__ void load(float (&out)[4], const T* source, uint32_t chunk, int unit) const {
    const uint32_t first = layout.element(chunk, unit, 0);
    if (layout.packed && first + 4 <= vocab) {
      const auto pack = *reinterpret_cast<const Pack<T>*>(source + first);
#pragma unroll
      for (int k = 0; k < 4; ++k) out[k] = as_float(pack.value[k]);
      return;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint32_t i = layout.element(chunk, unit, k);
      out[k] = i < vocab ? as_float(source[i]) : -kInf;
    }
  }
};

// kComposed: of several conditions with weights.
template <class T, bool kComposed>
struct Row;

// One row of logits; x = cond_scale * cond - uncond_scale * uncond, every operation rounded to fp32.
template <class T>
struct Row<T, false> : RowLayout<T> {
  const T* cond;
  const T* uncond;  // or null
  float cond_scale, uncond_scale;

  __device__ Row(const SampleParams& p, int64_t b, int64_t n)
      : cond(static_cast<const T*>(p.cond) + b * p.cond_stride_b + n * p.cond_stride_n), uncond(nullptr) {
    this->vocab = static_cast<uint32_t>(p.vocab);
    const double guidance = p.guidance.get();
    cond_scale = static_cast<float>(1.0 + guidance);
    uncond_scale = static_cast<float>(guidance);
    if (guidance != 0.0 && p.uncond) {
      uncond = static_cast<const T*>(p.uncond) + b * p.uncond_stride_b + n * p.uncond_stride_n;
    }
    const uintptr_t addresses = reinterpret_cast<uintptr_t>(cond) | reinterpret_cast<uintptr_t>(uncond);
    this->layout.packed = addresses % sizeof(Pack<T>) == 0;
  }

  // The lane's guided logits of a chunk, -inf past the end; true if one of them is NaN, +inf or overflows.
  __device__ __forceinline__ bool guide(float (&x)[kUnits][4], uint32_t chunk) const {
    bool sound = true;
    float free[kUnits][4];
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) this->load(x[unit], cond, chunk, unit);
    if (uncond) {
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) this->load(free[unit], uncond, chunk, unit);
    }
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float c = x[unit][k];
        sound = sound && c < kInf;
        if (!uncond) continue;
        const float u = free[unit][k];
        const bool forbidden = c == -kInf || u == -kInf;
        const float value = __fsub_rn(__fmul_rn(c, cond_scale), __fmul_rn(u, uncond_scale));
        x[unit][k] = forbidden ? -kInf : value;
        sound = sound && u < kInf && x[unit][k] < kInf;
      }
    }
    return !sound;
  }
};

// One row of logits of K conditions; x = sum_k scale_k * cond_k - uncond_scale * uncond, every operation rounded to
// fp32. The scale of condition k lies in lane k. Logits whose scale is 0 are not read.
template <class T>
struct Row<T, true> : RowLayout<T> {
  const T* cond;
  const T* uncond;
  int64_t stride;
  int conditions;
  float scale, uncond_scale;

  __device__ Row(const SampleParams& p, int64_t b, int64_t n)
      : cond(static_cast<const T*>(p.cond) + b * p.cond_stride_b + n * p.cond_stride_n),
        uncond(static_cast<const T*>(p.uncond) + b * p.uncond_stride_b + n * p.uncond_stride_n),
        stride(p.cond_stride_k),
        conditions(static_cast<int>(p.conditions)),
        scale(0.0f) {
    const double* weights = p.weights + b * p.weights_stride_b;
    double sum = 0.0;
    for (int k = 0; k < conditions; ++k) {
      sum += weights[k];
      if (threadIdx.x % 32 == k) scale = static_cast<float>(weights[k]);
    }
    uncond_scale = static_cast<float>(sum - 1.0);
    this->vocab = static_cast<uint32_t>(p.vocab);
    const uintptr_t addresses = reinterpret_cast<uintptr_t>(cond) | reinterpret_cast<uintptr_t>(uncond) |
                                static_cast<uintptr_t>(stride) * sizeof(T);
    this->layout.packed = addresses % sizeof(Pack<T>) == 0;
  }

  // As above.
  __device__ __forceinline__ bool guide(float (&x)[kUnits][4], uint32_t chunk) const {
    bool sound = true;
    uint32_t forbidden = 0;  // a bit for each of x
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
#pragma unroll
      for (int k = 0; k < 4; ++k) x[unit][k] = -0.0f;  // to which any first term adds without a change
    }
#pragma unroll 1
    for (int term = 0; term <= conditions; ++term) {
      const bool last = term == conditions;
      const float factor = last ? -uncond_scale : __shfl_sync(kAllLanes, scale, term);
      if (factor == 0.0f) continue;
      const T* source = last ? uncond : cond + term * stride;
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        float value[4];
        this->load(value, source, chunk, unit);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          sound = sound && value[k] < kInf;
          if (value[k] == -kInf) forbidden |= 1u << (4 * unit + k);
          x[unit][k] = __fadd_rn(x[unit][k], __fmul_rn(value[k], factor));
        }
      }
    }
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (forbidden & 1u << (4 * unit + k)) x[unit][k] = -kInf;
        sound = sound && x[unit][k] < kInf;
      }
    }
    return !sound;
  }
};

}  // namespace showo::resample
