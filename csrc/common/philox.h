// The one random source: Philox4x32-10, a counter-based generator (Salmon, Moraes, Dror, Shaw, "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011). A draw is a pure function of what it is for, so CPU and CUDA, one thread or
// many, any batch size give the same bits.
//
//   key      = the seed's 64 bits: key[0] low half, key[1] high half (a negative seed is its two's complement)
//   counter  = { element / 4,  position,  step,  stream << 24 | row }
//   word     = output word number element % 4
//
//                 stream  element           position           step             row
//   sampling      1       vocabulary index  place in the row   generation step  batch row, or 0 with a seed per row
//   remasking     2       place in the row  0                  generation step  the same
//   corruption    3       place in the row  0                  0                the same
//
// A batch with one seed tells its rows apart by `row`; with a seed for every row, `row` is 0, so that a row of any
// batch equals the batch of one made with that row's seed.
//
// A word becomes the fp32 uniform  u = (2 * (word >> 9) + 1) * 2^-24: the midpoints of 2^23 equal cells. All of them
// are exact in fp32, 0 and 1 never occur, 1 - u is exact too and has the same distribution.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SHOWO_PHILOX_FN __host__ __device__ __forceinline__
#else
#define SHOWO_PHILOX_FN inline __attribute__((always_inline))
#endif

namespace showo {

enum class PhiloxStream : uint32_t { kSample = 1, kRemask = 2, kCorrupt = 3 };

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

constexpr int64_t kPhiloxMaxRows = int64_t{1} << 24;
constexpr float kUniformUlp = 5.9604644775390625e-8f;  // 2^-24, the smallest uniform, and 1 - the largest

struct PhiloxWords {
  uint32_t word[4];
};

SHOWO_PHILOX_FN PhiloxWords philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
    const uint64_t p1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return PhiloxWords{{c0, c1, c2, c3}};
}

// Everything of the counter and the key but the element: one per row of elements.
struct PhiloxRow {
  uint32_t key0, key1;
  uint32_t position, step, stream_row;
};

SHOWO_PHILOX_FN PhiloxRow philox_row(int64_t seed, PhiloxStream stream, int64_t row, int64_t position, int64_t step) {
  const uint64_t bits = static_cast<uint64_t>(seed);
  return PhiloxRow{static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32), static_cast<uint32_t>(position),
                   static_cast<uint32_t>(step), static_cast<uint32_t>(stream) << 24 | static_cast<uint32_t>(row)};
}

// The words of elements 4 * block .. 4 * block + 3.
SHOWO_PHILOX_FN PhiloxWords philox_block(const PhiloxRow& row, uint32_t block) {
  return philox4x32(block, row.position, row.step, row.stream_row, row.key0, row.key1);
}

SHOWO_PHILOX_FN float uniform_from_word(uint32_t word) {
  return static_cast<float>((word >> 9) * 2u + 1u) * kUniformUlp;
}

}  // namespace showo
