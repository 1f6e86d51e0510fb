// The sm_80 instructions that CUDA C++ has no spelling for: ldmatrix, mma, cp.async, ex2, as functions.
//
// Fragments follow the PTX ISA (section "Warp-level matrix instructions"). With lane = 4 g + t:
//   A of m16n8k16:  a0 = (g, 2t..2t+1)  a1 = (g + 8, 2t..)  a2 = (g, 2t + 8..)  a3 = (g + 8, 2t + 8..)    [row, k]
//   B:              b0 = (2t..2t+1, g)  b1 = (2t + 8.., g)                                                [k, column]
//   C, D:           c0, c1 = (g, 2t..2t+1)   c2, c3 = (g + 8, 2t..2t+1)                                   [row, column]
// So two neighbouring C tiles, rounded to 16 bits, are one A tile.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace showo {

constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The OR of all lanes' words.
__device__ __forceinline__ uint64_t or_of_warp(uint64_t bits) {
  const uint64_t high = __reduce_or_sync(kAllLanes, static_cast<uint32_t>(bits >> 32));
  return high << 32 | __reduce_or_sync(kAllLanes, static_cast<uint32_t>(bits));
}

// ---- matrices from shared memory: lane i gives the address of row i % 8 of matrix i / 8; rows are 16 bytes

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row));
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row));
}

// ---- d += a b, fp32 accumulation; T is __half or __nv_bfloat16

template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void mma_m16n8k16<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                            uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats as one register of 16-bit numbers, `low` in the low half, rounded to nearest even.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<__half>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
template <>
__device__ __forceinline__ uint32_t pack<__nv_bfloat16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// The byte kOffset bytes behind `from` in global memory, which nothing writes during the launch.
template <int kOffset>
__device__ __forceinline__ int load_byte_at(const uint8_t* from) {
  int byte;
  asm("ld.global.nc.u8 %0, [%1+%2];" : "=r"(byte) : "l"(from), "n"(kOffset));
  return byte;
}

// ---- asynchronous copies, global to shared, past the L1 cache

// 16 bytes, of which the last 16 - valid are zeros and are not read.
__device__ __forceinline__ void cp_async16(uint32_t to, const void* from, int valid = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of the groups committed last are still under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// 2^x, two units in the last place from the rounded result at most; 0 gives 1, -inf gives 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- the same with an offset that the address field of the instruction holds

template <int kOffset>
__device__ __forceinline__ void ldmatrix_x4_at(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4+%5];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row), "n"(kOffset));
}
template <int kOffset>
__device__ __forceinline__ void ldmatrix_x4_trans_at(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4+%5];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row), "n"(kOffset));
}

template <int kOffset, int kFromOffset = 0>
__device__ __forceinline__ void cp_async16_at(uint32_t to, const void* from, int valid) {
  asm volatile("cp.async.cg.shared.global [%0+%3], [%1+%4], 16, %2;" ::"r"(to), "l"(from), "r"(valid), "n"(kOffset),
               "n"(kFromOffset)
               : "memory");
}

// d = a b + c.
template <class T>
__device__ __forceinline__ void mma_m16n8k16_from(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                                  const float4& c);

template <>
__device__ __forceinline__ void mma_m16n8k16_from<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                          uint32_t b1, const float4& c) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c.x), "f"(c.y), "f"(c.z), "f"(c.w));
}

template <>
__device__ __forceinline__ void mma_m16n8k16_from<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                                 uint32_t b1, const float4& c) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c.x), "f"(c.y), "f"(c.z), "f"(c.w));
}

// d = a b: no accumulator to clear.
template <class T>
__device__ __forceinline__ void mma_m16n8k16_first(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  mma_m16n8k16_from<T>(d, a, b0, b1, float4{0.0f, 0.0f, 0.0f, 0.0f});
}

// x of lane ^ kLaneMask.
template <int kLaneMask>
__device__ __forceinline__ float shuffle_xor(float x) {
  float y;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" : "=f"(y) : "f"(x), "n"(kLaneMask));
  return y;
}

// f(std::integral_constant<int, i>) for i < kCount: loops whose index is a constant, for the templates above.
template <int kCount, int kFirst = 0, class F>
__device__ __forceinline__ void unrolled(F&& f) {
  if constexpr (kFirst < kCount) {
    f(std::integral_constant<int, kFirst>{});
    unrolled<kCount, kFirst + 1>(f);
  }
}

// log2 x. It errs by 2^-22 of the result, and by 2^-22 where x lies between 1/2 and 2; 0 gives -inf.
__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// to[kOffset bytes on] += x, without waiting for the old value. Sums depend on the order in which warps get there.
template <int kOffset>
__device__ __forceinline__ void red_add_at(float* to, float x) {
  asm volatile("red.global.add.f32 [%0+%2], %1;" ::"l"(to), "f"(x), "n"(kOffset) : "memory");
}

// 16 bytes in one instruction: the compiler splits such a store when it has put the values together itself.
__device__ __forceinline__ void store_global16(void* to, uint4 x) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}

}  // namespace showo
