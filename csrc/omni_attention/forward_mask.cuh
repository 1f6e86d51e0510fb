// What the forward kernel asks the mask: which columns come next (from the block table), and, in blocks that are not
// full, which 16 x 16 sub-tiles of a warp are empty, partial or full (from the rows' intervals).
#pragma once

#include <cuda_runtime.h>

#include "common/ptx.cuh"
#include "omni_attention/mask.h"
#include "omni_attention/params.h"

namespace showo {

// ---- which columns come next

// A stage is the columns whose keys and values are in shared memory at a time. `code` is the first column, a multiple
// of 32, plus 1 if every row of the tile sees every column of the stage: one register for both.
struct Stage {
  int code;

  __device__ __forceinline__ int column() const { return code & ~31; }
  __device__ __forceinline__ bool full() const { return (code & 31) != 0; }
  __device__ __forceinline__ bool exists() const { return code >= 0; }
};
constexpr Stage kNoStage{-32};

// Walks over the stages of a tile of 64 M query rows, in rising order: the blocks of 64 columns of which some row of
// the tile sees something, each as one stage of 64 columns or two of 32. A tile has M lines of states in the block
// table; 32 states of a line are read at a time, one a lane.
template <int M, int kColumns>
struct StageWalk {
  const uint8_t* states;  // the tile's first line
  int blocks, kv_length;
  int second;       // from the first line to the second: 0 if there is only one
  bool never_full;  // the tile has rows that do not exist: no stage counts as full, so that their warps do nothing
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

// Stores the intervals of a tile's kRows rows as [num_intervals][kRows], cut to the columns that exist; an interval
// without columns becomes (0, 0). A row that does not exist gets the intervals of the last row that does, so that no
// sub-tile is partial because of it. Where none of the 16 rows of a sub-tile exists, all their intervals are (0, 0).
template <int kRows>
__device__ __forceinline__ void load_intervals(int2* to, const OmniInputs& in, int64_t batch, int first_row) {
  const int64_t row = first_row + threadIdx.x;
  if (threadIdx.x >= kRows) return;
  const int32_t* source =
      in.intervals + batch * in.intervals_batch_stride + min(row, in.q_length - 1) * in.intervals_row_stride;
  for (int i = 0; i < in.num_intervals; ++i) {
    const ColumnRange range = existing_columns(source + 2 * i, static_cast<int>(in.kv_length));
    to[i * kRows + threadIdx.x] =
        (row & ~int64_t{15}) < in.q_length ? make_int2(range.start, range.stop) : make_int2(0, 0);
  }
}

// The word whose bits from number `first` on are set: 0 if `first` is 32 or more. In assembly, because shifts by 32 and
// more are undefined in C++; the hardware's give 0.
__device__ __forceinline__ uint32_t bits_from(uint32_t first) {
  uint32_t bits;
  asm("shl.b32 %0, %1, %2;" : "=r"(bits) : "r"(kAllLanes), "r"(first));
  return bits;
}

// What a warp's 16 M rows see of a stage of kColumns columns, by sub-tiles: sub-tile (m, n16) is the m-th 16 rows by
// the n16-th 16 columns. Bit 8 m + n16 of `state` says whether some row of the sub-tile sees one of its columns (the
// sub-tile is visited), bit 16 + 8 m + n16 whether some row may not see all of them (the sub-tile is partial). All
// lanes have the same `state`.
template <int M, int kColumns>
struct WarpMask {
  static constexpr uint32_t kGroups = (1u << kColumns / 16) - 1;
  static constexpr uint32_t kVisited = M == 2 ? kGroups * 0x101 : kGroups;
  uint32_t state;

  // intervals: the intervals of the lane's row, rows_apart from one to the next. Lanes and the warp's rows have the
  // same numbers; with M = 1 lanes 16 to 31 repeat rows 0 to 15. column: the first of the stage.
  __device__ __forceinline__ WarpMask(const int2* intervals, int rows_apart, int num_intervals, int column) {
    // Bit n16: the row sees some of, and all of, the n16-th 16 columns. `whole` looks at one interval at a time: 16
    // columns that only two intervals together cover count as partial, and their columns are masked one by one.
    uint32_t touched = 0, whole = 0;
    int i = 0;
#pragma unroll 1
    do {
      const int2 range = intervals[i * rows_apart];
      const uint32_t start = max(range.x - column, 0), stop = max(range.y - column, 0);
      const uint32_t first = bits_from(start / 16), last = bits_from((stop + 15) / 16);
      touched |= first ^ last;
      whole |= bits_from((start + 15) / 16) & ~bits_from(stop / 16);
    } while (++i < num_intervals);
    state = (touched & kGroups) | (~whole & kGroups) << 16;
    if constexpr (M == 2) state <<= (threadIdx.x & 16) / 2;
    state = __reduce_or_sync(kAllLanes, state);
  }

  __device__ __forceinline__ bool nothing() const { return (state & kVisited) == 0; }
  __device__ __forceinline__ bool everything() const { return state == kVisited; }
  __device__ __forceinline__ bool visited(int m, int n16) const { return (state & 1u << (8 * m + n16)) != 0; }
  __device__ __forceinline__ bool partial(int m, int n16) const { return (state & 1u << (16 + 8 * m + n16)) != 0; }
};

// Bit j of bits[w] says whether a row with these intervals sees column `column + 32 w + j`.
template <int kWords>
__device__ __forceinline__ void column_bits(uint32_t (&bits)[kWords], const int2* intervals, int rows_apart,
                                            int num_intervals, int column) {
#pragma unroll
  for (int w = 0; w < kWords; ++w) bits[w] = 0;
  int i = 0;
#pragma unroll 1
  do {
    const int2 range = intervals[i * rows_apart];
#pragma unroll
    for (int w = 0; w < kWords; ++w)
      bits[w] |= bits_from(max(range.x - column - 32 * w, 0)) ^ bits_from(max(range.y - column - 32 * w, 0));
  } while (++i < num_intervals);
}

}  // namespace showo
