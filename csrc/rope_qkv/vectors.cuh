// Vectors of floats in global and shared memory: one wide access, and 16-bit floats two to a word.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/ptx.cuh"

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
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x[0], x[1]);
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ inline uint32_t pack_word(const float* x, __half) {
  const __half2 pair = __floats2half2_rn(x[0], x[1]);
  return reinterpret_cast<const uint32_t&>(pair);
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

// ---- accesses that may be left out: a load gives zeros where `wanted` is false
//
// As assembly, because the compiler turns a wide access under a condition into a narrow one for each word.

__device__ inline uint4 load_if(const uint4* from, bool wanted) {
  uint4 x;
  asm volatile(
      "{ .reg .pred p; setp.ne.s32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n\t"
      "@p ld.global.v4.b32 {%0, %1, %2, %3}, [%4]; }"
      : "=&r"(x.x), "=&r"(x.y), "=&r"(x.z), "=&r"(x.w)
      : "l"(from), "r"(static_cast<int>(wanted)));
  return x;
}
__device__ inline uint2 load_if(const uint2* from, bool wanted) {
  uint2 x;
  asm volatile(
      "{ .reg .pred p; setp.ne.s32 p, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0;\n\t"
      "@p ld.global.v2.b32 {%0, %1}, [%2]; }"
      : "=&r"(x.x), "=&r"(x.y)
      : "l"(from), "r"(static_cast<int>(wanted)));
  return x;
}
__device__ inline uint32_t load_if(const uint32_t* from, bool wanted) { return wanted ? *from : 0; }
__device__ inline uint16_t load_if(const uint16_t* from, bool wanted) { return wanted ? *from : 0; }

__device__ inline void store_if(uint4* to, const uint4& x, bool wanted) {
  asm volatile("{ .reg .pred p; setp.ne.s32 p, %5, 0; @p st.global.v4.b32 [%4], {%0, %1, %2, %3}; }" ::"r"(x.x),
               "r"(x.y), "r"(x.z), "r"(x.w), "l"(to), "r"(static_cast<int>(wanted)));
}
__device__ inline void store_if(uint2* to, const uint2& x, bool wanted) {
  asm volatile("{ .reg .pred p; setp.ne.s32 p, %3, 0; @p st.global.v2.b32 [%2], {%0, %1}; }" ::"r"(x.x), "r"(x.y),
               "l"(to), "r"(static_cast<int>(wanted)));
}
template <class T>
__device__ inline void store_if(T* to, const T& x, bool wanted) {
  if (wanted) *to = x;
}

// Two lanes, 2 i and 2 i + 1, trade one of their two arguments: lane 2 i ends with the first of both lanes, lane 2 i +
// 1 with the second of both. A second call undoes the trade.
__device__ inline void swap_with_neighbour(uint4& first, uint4& second, bool odd) {
  const auto trade = [odd](uint32_t& a, uint32_t& b) {
    const uint32_t got = __shfl_xor_sync(kAllLanes, odd ? a : b, 1);
    (odd ? a : b) = got;
  };
  trade(first.x, second.x);
  trade(first.y, second.y);
  trade(first.z, second.z);
  trade(first.w, second.w);
}

// ---- floats in global memory: vector `lane` of V floats. Eight floats take two accesses of four floats. So that each
// access of the warp covers whole sectors, lanes 2 i and 2 i + 1 share the work: of the four pieces that make up both
// their vectors, in the order of memory, the first access takes two and the second access the other two.

template <int V>
__device__ inline void load_floats_if(float (&x)[V], const float* from, int lane, bool wanted) {
  if constexpr (V == 1) {
    x[0] = wanted ? from[lane] : 0.0f;
  } else {
    constexpr int kFours = V / 4;
    uint4 four[kFours];
    const uint4* vectors = reinterpret_cast<const uint4*>(from);
    if constexpr (kFours == 1) {
      four[0] = load_if(vectors + lane, wanted);
    } else {
      const bool odd = lane % 2 != 0;
      const uint4* mine = vectors + lane / 2 * 4 + lane % 2;
      four[0] = load_if(mine, wanted);
      four[1] = load_if(mine + 2, wanted);
      swap_with_neighbour(four[0], four[1], odd);
    }
#pragma unroll
    for (int i = 0; i < kFours; ++i) unpack<float>(four[i], x + 4 * i);
  }
}

template <int V>
__device__ inline void store_floats_if(float* to, int lane, const float (&x)[V], bool wanted) {
  if constexpr (V == 1) {
    if (wanted) to[lane] = x[0];
  } else {
    constexpr int kFours = V / 4;
    uint4 four[kFours];
    uint4* vectors = reinterpret_cast<uint4*>(to);
#pragma unroll
    for (int i = 0; i < kFours; ++i) pack<float>(&four[i], x + 4 * i);
    if constexpr (kFours == 1) {
      store_if(vectors + lane, four[0], wanted);
    } else {
      swap_with_neighbour(four[0], four[1], lane % 2 != 0);
      uint4* mine = vectors + lane / 2 * 4 + lane % 2;
      store_if(mine, four[0], wanted);
      store_if(mine + 2, four[1], wanted);
    }
  }
}

// ---- floats in shared memory
//
// Where lanes hold vectors of eight floats, a warp reads the first four of each, then the other four. In plain order
// lanes i and i + 4 would meet in the same banks; so in every second 32 floats the two fours of a vector trade places.

// Where element d of a vector lies; rows begin at multiples of 8.
template <int V>
__device__ inline int in_shared(int d) {
  return V == 8 ? d ^ (d >> 3 & 4) : d;
}

// x = vector w of those that begin at `from`.
template <int V>
__device__ inline void read_floats(float (&x)[V], const float* from, int w) {
  if constexpr (V == 1) {
    x[0] = from[w];
  } else {
#pragma unroll
    for (int e = 0; e < V; e += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + in_shared<V>(w * V + e));
      x[e] = four.x;
      x[e + 1] = four.y;
      x[e + 2] = four.z;
      x[e + 3] = four.w;
    }
  }
}
template <int V>
__device__ inline void write_floats(float* to, int w, const float (&x)[V]) {
  if constexpr (V == 1) {
    to[w] = x[0];
  } else {
#pragma unroll
    for (int e = 0; e < V; e += 4) {
      *reinterpret_cast<float4*>(to + in_shared<V>(w * V + e)) = make_float4(x[e], x[e + 1], x[e + 2], x[e + 3]);
    }
  }
}

}  // namespace
}  // namespace showo
