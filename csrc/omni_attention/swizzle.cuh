// Rows of 2 D bytes in shared memory, in chunks of 16 bytes which are permuted by XOR within each row. Eight rows of
// one chunk column then lie in eight different groups of four banks, so that ldmatrix, cp.async and the staging of
// results have no bank conflicts.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace showo {

// The permutation stays within groups of so many chunks.
template <int D>
constexpr int kSwizzledChunks = D % 64 == 0 ? 8 : 4;

// Offset of a chunk of a row, from row 0 on.
template <int D>
__device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
  return row * (2 * D) + ((chunk ^ (kSwizzledChunks<D> == 8 ? row & 7 : (row >> 1) & 3)) << 4);
}

// A lane's addresses for ldmatrix in the steps k16 = 0, 1, ... of 16 dims, that is of two chunks. `first` is the
// address of the lane's chunk in step 0, chunk 0 or 1 of a row; the lane's chunk in step k16 is 2 k16 further. Within
// the first group of permuted chunks every step has an address of its own. Further groups are permuted in the same way:
// step k16 is at `(*this)[k16] + offset(k16)`, with a constant offset.
template <int D>
struct ChunkPairs {
  static constexpr int kCount = kSwizzledChunks<D> / 2;
  uint32_t address[kCount];

  __device__ __forceinline__ explicit ChunkPairs(uint32_t first) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) address[i] = first ^ i << 5;
  }
  __device__ __forceinline__ uint32_t operator[](int k16) const { return address[k16 % kCount]; }
  static constexpr int offset(int k16) { return k16 / kCount * kCount * 32; }
};

// The address of a chunk of the row whose chunk 0 is at `address`.
template <int D>
__device__ __forceinline__ uint32_t chunk_at(uint32_t address, int chunk) {
  constexpr int kPermuted = kSwizzledChunks<D> - 1;
  return (address ^ ((chunk & kPermuted) << 4)) + (chunk & ~kPermuted) * 16;
}

}  // namespace showo
