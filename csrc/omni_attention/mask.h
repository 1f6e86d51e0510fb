// The one mask predicate: which columns of which block a query row may look at.
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

// May a row with these intervals ([K, 2]) look at `column`?
SHOWO_HOST_DEVICE static inline bool row_sees(const int32_t* intervals, int64_t num_intervals, int64_t column) {
  for (int64_t i = 0; i < num_intervals; ++i)
    if (intervals[2 * i] <= column && column < intervals[2 * i + 1]) return true;
  return false;
}

// Bits 0..count-1 set, 0 <= count <= 64.
SHOWO_HOST_DEVICE static inline uint64_t low_bits(int64_t count) {
  return count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

// Bit j says whether the row sees column first_column + j.
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
