// Rows of q, k and v in shared memory: 2 D bytes, in 16-byte chunks which are permuted so that eight rows of one chunk
// column hit eight bank groups, for ldmatrix, cp.async and the output's staging alike; and how a thread block copies
// them.
#pragma once

#include <cuda_runtime.h>

#include "common/ptx.cuh"
#include "omni_attention/params.h"

namespace showo {

constexpr int kForwardThreads = 128;

template <int D>
__device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
  return row * (2 * D) + ((chunk ^ (D % 64 == 0 ? row & 7 : (row >> 1) & 3)) << 4);
}

// Addresses of chunks 2 k16 further than a given chunk 0 or 1 of a row: of those within reach of the permutation, from
// which `offset` leads to the others.
template <int D>
struct ChunkPairs {
  static constexpr int kCount = D % 64 == 0 ? 4 : 2;
  uint32_t address[kCount];

  __device__ __forceinline__ explicit ChunkPairs(uint32_t first) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) address[i] = first ^ i << 5;
  }
  __device__ __forceinline__ uint32_t operator[](int k16) const { return address[k16 % kCount]; }
  static constexpr int offset(int k16) { return k16 / kCount * kCount * 32; }
};

// From the address of chunk 0 of a row to that of another chunk.
template <int D>
__device__ __forceinline__ uint32_t chunk_at(uint32_t address, int chunk) {
  constexpr int kPermuted = D % 64 == 0 ? 7 : 3;
  return (address ^ ((chunk & kPermuted) << 4)) + (chunk & ~kPermuted) * 16;
}

// A thread's share of copying rows: chunk `thread % kChunks` (and every kChunks-th further) of each kRowsPerPass-th
// row.
template <int D>
struct RowCopy {
  static constexpr int kChunks = D % 64 == 0 ? 8 : 4;
  static constexpr int kRowsPerPass = kForwardThreads / kChunks;

  // The thread's first chunk of row 0 of a head.
  __device__ __forceinline__ static const char* source(const void* base, const OmniStrides& strides, int64_t batch,
                                                       int64_t head) {
    return static_cast<const char*>(base) +
           2 * (batch * strides.batch + head * strides.head + threadIdx.x / kChunks * strides.row) +
           threadIdx.x % kChunks * 16;
  }

  // Rows first.. of `kHeads` heads to rows 0.. of `shared` and the memory behind; rows from `end` on become zeros.
  template <int kRows, int kHeads>
  __device__ __forceinline__ static void copy(uint32_t shared, const char* const (&sources)[kHeads],
                                              const int (&row_strides)[kHeads], int first, int end) {
    const int row = threadIdx.x / kChunks;
    const uint32_t to = shared + swizzled<D>(row, threadIdx.x % kChunks);
    const int left = end - first - row;
    int valid[kRows / kRowsPerPass];
#pragma unroll
    for (int pass = 0; pass < kRows / kRowsPerPass; ++pass) valid[pass] = pass * kRowsPerPass < left ? 16 : 0;
    unrolled<kHeads>([&](auto i) {
      const int row_stride = row_strides[i] * 2;  // 32 bits: one IMAD.WIDE an address
      const char* from = sources[i] + static_cast<int64_t>(first) * row_stride;
      unrolled<kRows / kRowsPerPass>([&](auto pass) {
        unrolled<D / 8 / kChunks>([&](auto j) {
          cp_async16_at<(i * kRows + pass * kRowsPerPass) * (2 * D) + j * kChunks * 16>(
              to, from + static_cast<int64_t>(row_stride) * (pass * kRowsPerPass) + j * kChunks * 16, valid[pass]);
        });
      });
    });
  }
};

}  // namespace showo
