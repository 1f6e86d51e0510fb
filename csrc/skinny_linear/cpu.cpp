// skinny_linear on the CPU. The time is that of reading the weights from memory, so every task reads one run of weight
// rows from its beginning to its end, in whole vectors of 32-bit words. A word holds one float, two 16-bit floats or
// four bytes; part j of a vector, the numbers j of all its words, becomes floats by a shift or two. So that they meet
// their own numbers of x, x is brought to float and to the same order once, before the tasks.
//
// A tile is up to kOutputs weight rows times up to kRows rows of x: its products are summed in registers. Where x has
// more rows than a tile, the weights of a tile are visited again while the cache still holds them. The order of a sum
// depends on the instruction set and the dtype, not on the number of threads or of rows.
#include "common/dispatch.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "skinny_linear/params.h"

namespace showo {
namespace SHOWO_ISA {
namespace {

// Of a tile. AVX-512 has registers for 16 sums, the others for 8.
constexpr int kOutputs = kLanes == 16 ? 4 : 2;
constexpr int kRows = 2;
constexpr int kSums = 2;          // of every result: an addition need not wait for the one before it
constexpr int64_t kShort = 4096;  // a row of x so long lies, in float, beside weights in the first-level cache
constexpr int64_t kTaskBytes = int64_t{1} << 18;  // of weights: tens of microseconds

using showo::to_float;
SHOWO_INLINE float to_float(int8_t value) { return static_cast<float>(value); }

typedef uint32_t VecUAny __attribute__((vector_size(kLanes * 4), aligned(1), may_alias));

// Part j of a vector of words that hold numbers of type W.
SHOWO_INLINE VecF part(VecU words, int, const float*) { return reinterpret_cast<VecF>(words); }
SHOWO_INLINE VecF part(VecU words, int j, const BFloat16*) {
  return reinterpret_cast<VecF>(j == 0 ? words << 16 : words & 0xffff0000u);
}
SHOWO_INLINE VecF part(VecU words, int j, const Half*) { return of_half(j == 0 ? words & 0xffffu : words >> 16); }
SHOWO_INLINE VecF part(VecU words, int j, const int8_t*) {
  return __builtin_convertvector(reinterpret_cast<VecI>(words << (24 - 8 * j)) >> 24, VecF);
}

template <class W>
constexpr int kParts = 4 / sizeof(W);
template <class W>
constexpr int64_t kBlock = kParts<W> * kLanes;  // numbers in a vector of words

// One row of x in float, and whole blocks of it in the order of their parts.
template <class W, class T>
void pack_row(float* to, const T* from, int64_t length) {
  int64_t i = 0;
  for (; i + kBlock<W> <= length; i += kBlock<W>)
    for (int j = 0; j < kParts<W>; ++j)
      for (int lane = 0; lane < kLanes; ++lane) to[i + j * kLanes + lane] = to_float(from[i + lane * kParts<W> + j]);
  for (; i < length; ++i) to[i] = to_float(from[i]);
}

// dots[o][r] = the sum over i of weight[o, i] * x[r, i] of a tile.
template <class W, int kTileOutputs, int kTileRows>
void dot_tile(const SkinnyLinearParams& p, const W* weight, const float* x, float (*dots)[kRows]) {
  constexpr int kWords = kParts<W> < kSums ? kSums / kParts<W> : 1;  // vectors of words in a step
  VecF sums[kTileOutputs][kTileRows][kSums] = {};
  int64_t i = 0;
  for (; i + kWords * kBlock<W> <= p.in_features; i += kWords * kBlock<W>) {
    for (int word = 0; word < kWords; ++word) {
      const int64_t at = i + word * kBlock<W>;
      VecU words[kTileOutputs];
      for (int o = 0; o < kTileOutputs; ++o)
        words[o] = *reinterpret_cast<const VecUAny*>(weight + o * p.weight_stride + at);
      for (int j = 0; j < kParts<W>; ++j) {
        VecF inputs[kTileRows];
        for (int r = 0; r < kTileRows; ++r) inputs[r] = load(x + r * p.in_features + at + j * kLanes);
        for (int o = 0; o < kTileOutputs; ++o) {
          const VecF w = part(words[o], j, weight);
          for (int r = 0; r < kTileRows; ++r) sums[o][r][(word + j) % kSums] += w * inputs[r];
        }
      }
    }
  }
  for (int o = 0; o < kTileOutputs; ++o) {
    for (int r = 0; r < kTileRows; ++r) {
      float total = sum(sums[o][r][0] + sums[o][r][1]);
      for (int64_t k = i; k < p.in_features; ++k)
        total += to_float(weight[o * p.weight_stride + k]) * x[r * p.in_features + k];
      dots[o][r] = total;
    }
  }
}

// Results [all rows, output .. output + kTileOutputs).
template <class W, class T, int kTileOutputs>
void multiply(const SkinnyLinearParams& p, const W* weights, int64_t output) {
  const W* weight = weights + output * p.weight_stride;
  const T* bias = static_cast<const T*>(p.bias);
  for (int64_t row = 0; row < p.rows; row += kRows) {
    const int64_t rows = p.rows - row < kRows ? p.rows - row : kRows;
    float dots[kTileOutputs][kRows];
    const float* x = p.workspace + row * p.in_features;
    if (rows == kRows)
      dot_tile<W, kTileOutputs, kRows>(p, weight, x, dots);
    else
      dot_tile<W, kTileOutputs, 1>(p, weight, x, dots);
    for (int o = 0; o < kTileOutputs; ++o) {
      const float scale = p.scale != nullptr ? p.scale[output + o] : 1.0f;
      const float shift = bias != nullptr ? to_float(bias[output + o]) : 0.0f;
      for (int64_t r = 0; r < rows; ++r)
        store_float(static_cast<T*>(p.y) + (row + r) * p.out_features + output + o, dots[o][r] * scale + shift);
    }
  }
}

template <class W, class T>
Status run(const SkinnyLinearParams& p, const W* weights, int num_threads) {
  for (int64_t row = 0; row < p.rows; ++row)
    pack_row<W>(p.workspace + row * p.in_features, static_cast<const T*>(p.x) + row * p.x_stride, p.in_features);
  const int64_t row_bytes = p.in_features * static_cast<int64_t>(sizeof(W)) + 1;
  const int64_t outputs_per_task = (kTaskBytes / row_bytes / kOutputs + 1) * kOutputs;
  parallel_for((p.out_features + outputs_per_task - 1) / outputs_per_task, num_threads, [&](int64_t task) {
    const int64_t begin = task * outputs_per_task;
    const int64_t end = begin + outputs_per_task < p.out_features ? begin + outputs_per_task : p.out_features;
    int64_t output = begin;
    // One short row of x is multiplied while one row of weights is read: nothing is faster than one stream. Longer rows
    // of x are not kept by the first-level cache, and more of them cost more products: a tile reads them less often.
    if (p.rows > 1 || p.in_features > kShort)
      for (; output + kOutputs <= end; output += kOutputs) multiply<W, T, kOutputs>(p, weights, output);
    for (; output < end; ++output) multiply<W, T, 1>(p, weights, output);
  });
  return ok_status();
}

template <class T>
Status run(const SkinnyLinearParams& p, int num_threads) {
  if (p.weight_int8 != nullptr) return run<int8_t, T>(p, p.weight_int8, num_threads);
  return run<T, T>(p, static_cast<const T*>(p.weight), num_threads);
}

}  // namespace

Status skinny_linear_cpu(const SkinnyLinearParams& p, int num_threads) {
  switch (p.dtype) {
    case DType::kF32:
      return run<float>(p, num_threads);
    case DType::kF16:
      return run<Half>(p, num_threads);
    case DType::kBF16:
      return run<BFloat16>(p, num_threads);
    default:
      return invalid_argument("skinny_linear: no kernel for dtype %s", dtype_name(p.dtype));
  }
}

}  // namespace SHOWO_ISA

SHOWO_CPU_LAUNCHER(skinny_linear_cpu, SkinnyLinearParams)

}  // namespace showo
