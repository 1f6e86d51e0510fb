// Vectors of floats in global and shared memory: one wide access, and 16-bit floats two to a word.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace showo {
namespace {

template <int kBytes>
struct RawOf;
template <>
struct RawOf<16> {
  using Type = uint4;
};
template <>
struct RawOf<8> {
  using Type = uint2;
};
template <>
struct RawOf<4> {
  using Type = uint32_t;
};
template <>
struct RawOf<2> {
  using Type = uint16_t;
};
template <class T, int V>
using Raw = typename RawOf<V * sizeof(T)>::Type;

// One 32-bit word is one float, or two 16-bit floats, the lower half first.
__device__ inline void unpack_word(uint32_t word, float* x, float) { x[0] = __uint_as_float(word); }
__device__ inline void unpack_word(uint32_t word, float* x, __nv_bfloat16) {
  x[0] = __uint_as_float(word << 16);
  x[1] = __uint_as_float(word & 0xffff0000u);
}
__device__ inline void unpack_word(uint32_t word, float* x, __half) {
  x[0] = __half2float(__ushort_as_half(static_cast<unsigned short>(word)));
  x[1] = __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
}
__device__ inline uint32_t pack_word(const float* x, float) { return __float_as_uint(x[0]); }
__device__ inline uint32_t pack_word(const float* x, __nv_bfloat16) {
  const uint32_t low = __bfloat16_as_ushort(__float2bfloat16_rn(x[0]));
  return low | static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(x[1]))) << 16;
}
__device__ inline uint32_t pack_word(const float* x, __half) {
  const uint32_t low = __half_as_ushort(__float2half_rn(x[0]));
  return low | static_cast<uint32_t>(__half_as_ushort(__float2half_rn(x[1]))) << 16;
}

template <class T>
__device__ inline void unpack(const uint4& raw, float* x) {
  constexpr int kPerWord = 4 / sizeof(T);
  unpack_word(raw.x, x, T());
  unpack_word(raw.y, x + kPerWord, T());
  unpack_word(raw.z, x + 2 * kPerWord, T());
  unpack_word(raw.w, x + 3 * kPerWord, T());
}
template <class T>
__device__ inline void unpack(const uint2& raw, float* x) {
  unpack_word(raw.x, x, T());
  unpack_word(raw.y, x + 4 / sizeof(T), T());
}
template <class T>
__device__ inline void unpack(const uint32_t& raw, float* x) {
  unpack_word(raw, x, T());
}
template <class T>
__device__ inline void unpack(const uint16_t& raw, float* x) {
  float both[2];
  unpack_word(raw, both, T());
  x[0] = both[0];
}

template <class T>
__device__ inline void pack(uint4* raw, const float* x) {
  constexpr int kPerWord = 4 / sizeof(T);
  *raw = make_uint4(pack_word(x, T()), pack_word(x + kPerWord, T()), pack_word(x + 2 * kPerWord, T()),
                    pack_word(x + 3 * kPerWord, T()));
}
template <class T>
__device__ inline void pack(uint2* raw, const float* x) {
  *raw = make_uint2(pack_word(x, T()), pack_word(x + 4 / sizeof(T), T()));
}
template <class T>
__device__ inline void pack(uint32_t* raw, const float* x) {
  *raw = pack_word(x, T());
}
template <class T>
__device__ inline void pack(uint16_t* raw, const float* x) {
  const float both[2] = {x[0], 0.0f};
  *raw = static_cast<uint16_t>(pack_word(both, T()));
}

// V floats, 16 bytes at a time; `stride` is the distance of the fours.
template <int V>
__device__ inline void read_floats(float (&x)[V], const float* from, int stride) {
  if constexpr (V == 1) {
    x[0] = *from;
  } else {
#pragma unroll
    for (int e = 0; e < V; e += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + e / 4 * stride);
      x[e] = four.x;
      x[e + 1] = four.y;
      x[e + 2] = four.z;
      x[e + 3] = four.w;
    }
  }
}
template <int V>
__device__ inline void write_floats(float* to, const float (&x)[V], int stride) {
  if constexpr (V == 1) {
    *to = x[0];
  } else {
#pragma unroll
    for (int e = 0; e < V; e += 4) {
      *reinterpret_cast<float4*>(to + e / 4 * stride) = make_float4(x[e], x[e + 1], x[e + 2], x[e + 3]);
    }
  }
}

}  // namespace
}  // namespace showo
