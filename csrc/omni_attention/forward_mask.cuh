// What the forward kernel asks the mask: which columns come next (from the block table), and, in blocks that are not
// full, which 16 x 16 sub-tiles of a warp are empty, partial or full (from the rows' intervals).
#pragma once

#include <cuda_runtime.h>

#include "omni_attention/mask.h"
#include "omni_attention/params.h"

namespace showo {

constexpr uint32_t kAllLanes = 0xffffffffu;

// ---- which columns come next

// In one register: the first column, a multiple of 32, and in bit 0 whether every row of the tile sees every column.
struct Stage {
  int code;

  __device__ __forceinline__ int column() const { return code & ~1; }
  __device__ __forceinline__ bool full() const { return (code & 1) != 0; }
  __device__ __forceinline__ bool exists() const { return code >= 0; }
};
constexpr Stage kNoStage{-2};

// Walks the visited blocks of a tile's row (or two rows) of the block table, 32 states at a time.
template <int M, int kColumns>
struct Walk {
  const uint8_t* states;
  int blocks, kv_length, second;  // second: distance of the other row of states, 0 if there is none
  bool never_full;
  int base = -32;
  uint32_t visited = 0, full = 0;

  __device__ __forceinline__ void advance(Stage& stage) {
    if (kColumns == 32 && (stage.code & 32) == 0 && stage.exists() && stage.column() + 32 < kv_length) {
      stage.code += 32;
      return;
    }
    while (visited == 0) {
      base += 32;
      if (base >= blocks) {
        stage = kNoStage;
        return;
      }
      const int block = base + (threadIdx.x & 31);
      int first = kEmpty, other = kEmpty;
      if (block < blocks) {
        first = states[block];
        other = M == 2 ? states[block + second] : first;
      }
      visited = __ballot_sync(kAllLanes, (first | other) != kEmpty);
      full = __ballot_sync(kAllLanes, first == kFull && other == kFull && !never_full);
    }
    const int bit = __ffs(visited) - 1;
    visited &= visited - 1;
    stage.code = (base + bit) * static_cast<int>(kKvBlock) + static_cast<int>((full >> bit) & 1);
  }
};

// The intervals of a tile's rows, cut to the columns that exist, to [num_intervals][kRows]; none for rows that do not.
template <int kRows>
__device__ __forceinline__ void load_intervals(int2* to, const OmniInputs& in, int64_t batch, int first_row) {
  const int64_t row = first_row + threadIdx.x;
  if (threadIdx.x >= kRows) return;
  const int32_t* source =
      in.intervals + batch * in.intervals_batch_stride + min(row, in.q_length - 1) * in.intervals_row_stride;
  for (int i = 0; i < in.num_intervals; ++i) {
    const int start = max(source[2 * i], 0), stop = min(source[2 * i + 1], static_cast<int>(in.kv_length));
    to[i * kRows + threadIdx.x] = row < in.q_length ? make_int2(start, stop) : make_int2(0, 0);
  }
}

// Bits of the columns start..stop that lie in a window of 32 (both relative to it).
__device__ __forceinline__ uint32_t window_bits(int start, int stop) {
  start = max(start, 0);
  stop = min(stop, 32);
  return start < stop ? (kAllLanes >> (32 - (stop - start))) << start : 0;
}

// What a warp sees of a stage. `bits` is the lane's own row (lane = row of the warp's tile); the others are uniform.
template <int M, int kWords>
struct WarpMask {
  uint32_t bits[kWords], any[M][kWords], all[M][kWords];

  // intervals: of the lane's row, kRows apart. A row that does not exist sees nothing, and does not count for `all`.
  __device__ __forceinline__ WarpMask(const int2* intervals, int rows_apart, int num_intervals, int column,
                                      bool exists) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) bits[w] = 0;
    for (int i = 0; i < num_intervals; ++i) {
      const int2 range = intervals[i * rows_apart];
#pragma unroll
      for (int w = 0; w < kWords; ++w) bits[w] |= window_bits(range.x - column - 32 * w, range.y - column - 32 * w);
    }
    const bool upper = (threadIdx.x & 16) != 0;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const bool mine = M == 1 || upper == (m == 1);
        any[m][w] = __reduce_or_sync(kAllLanes, mine ? bits[w] : 0);
        all[m][w] = __reduce_and_sync(kAllLanes, mine && exists ? bits[w] : kAllLanes);
      }
  }

  __device__ __forceinline__ bool nothing() const {
    uint32_t seen = 0;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int w = 0; w < kWords; ++w) seen |= any[m][w];
    return seen == 0;
  }
  __device__ __forceinline__ bool everything() const {
    uint32_t seen = kAllLanes;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int w = 0; w < kWords; ++w) seen &= all[m][w] & any[m][w];
    return seen == kAllLanes;
  }
  // Of the 16 columns n16 and the 16 rows m: is there a pair, are there all pairs?
  __device__ __forceinline__ bool visited(int m, int n16) const {
    return (any[m][n16 / 2] & (0xffffu << n16 % 2 * 16)) != 0;
  }
  __device__ __forceinline__ bool full(int m, int n16) const {
    return (~all[m][n16 / 2] & (0xffffu << n16 % 2 * 16)) == 0;
  }
};

}  // namespace showo
