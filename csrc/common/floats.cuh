// The element types on the device, as floats. For .cu files.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/ptx.cuh"

namespace showo {

__device__ inline float as_float(float x) { return x; }
__device__ inline float as_float(__half x) { return __half2float(x); }
__device__ inline float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void store(float* out, float x) { *out = x; }
__device__ inline void store(__half* out, float x) { *out = __float2half_rn(x); }
__device__ inline void store(__nv_bfloat16* out, float x) { *out = __float2bfloat16_rn(x); }

// 16 bytes of a row.
template <class T>
struct alignas(16) Chunk {
  static constexpr int kCount = 16 / sizeof(T);
  T element[kCount];
};

template <class T>
__device__ inline Chunk<T> load_chunk(const T* row, int64_t chunk) {
  const uint4 words = reinterpret_cast<const uint4*>(row)[chunk];
  return reinterpret_cast<const Chunk<T>&>(words);
}

}  // namespace showo
