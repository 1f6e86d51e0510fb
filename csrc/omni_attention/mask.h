// The rule of every mask, and the rule applied to 64 columns at once.
//
// A row sees a column if one of the row's half-open intervals [start, stop) holds the column. Intervals are cut to the
// columns that exist, 0 to kv_length; they may overlap and come in any order, and an interval with stop <= start holds
// no column.
//
// The CPU kernels, both block tables and the CUDA backward take the rule from row_bits(). The CUDA forward and decode
// keep a tile's intervals in shared memory, cut once (load_intervals in forward_mask.cuh, fill_intervals in
// decode_tile.cuh; existing_columns() is the cut), and apply the rule to as many columns as a warp needs at a time:
// WarpMask and column_bits in forward_mask.cuh, DecodeWalk and UnitMask in decode_tile.cuh.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SHOWO_HOST_DEVICE __host__ __device__
#else
#define SHOWO_HOST_DEVICE
#endif

namespace showo {

// Columns come in blocks of 64: the columns of a block that a row sees fit into one word.
constexpr int64_t kKvBlock = 64;

// The CUDA kernels' block table (block_table.cu) has one state for each kQBlock rows x kKvBlock columns.
constexpr int64_t kQBlock = 64;
enum BlockState : uint8_t { kEmpty = 0, kPartial = 1, kFull = 2 };

// Bits 0..count-1 set, 0 <= count <= 64.
SHOWO_HOST_DEVICE static inline uint64_t low_bits(int64_t count) {
  return count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

// The columns [start, stop) of an interval ([2]) that exist; none of them is (0, 0).
struct ColumnRange {
  int32_t start, stop;
  SHOWO_HOST_DEVICE bool empty() const { return start >= stop; }
};
SHOWO_HOST_DEVICE static inline ColumnRange existing_columns(const int32_t* interval, int32_t kv_length) {
  const int32_t start = interval[0] < 0 ? 0 : interval[0], stop = interval[1] > kv_length ? kv_length : interval[1];
  return start < stop ? ColumnRange{start, stop} : ColumnRange{0, 0};
}

// Bit j says whether a row with these intervals ([num_intervals, 2]) sees column first_column + j, which is never
// negative. The cut at kv_length is the caller's: `& low_bits(kv_length - first_column)`.
SHOWO_HOST_DEVICE static inline uint64_t row_bits(const int32_t* intervals, int64_t num_intervals,
                                                  int64_t first_column) {
  uint64_t bits = 0;
  for (int64_t i = 0; i < num_intervals; ++i) {
    int64_t start = intervals[2 * i] - first_column, stop = intervals[2 * i + 1] - first_column;
    start = start < 0 ? 0 : start > 64 ? 64 : start;
    stop = stop < start ? start : stop > 64 ? 64 : stop;
    bits |= low_bits(stop) & ~low_bits(start);
  }
  return bits;
}

}  // namespace showo
