// Forward on the CPU for a few query rows, as in decoding text: row by row, for which a block of many rows would be
// filled with zeros. Keys and values are read once for every row that sees them, as they lie.
#pragma once

#include "omni_attention/cpu_tile.h"

namespace showo {
namespace SHOWO_ISA {
namespace {

constexpr int64_t kFewRows = 4;

SHOWO_INLINE int take_first_bit(uint64_t* bits) {
  const int first = __builtin_ctzll(*bits);
  *bits &= *bits - 1;
  return first;
}

// Products of the columns in `seen` become capped scores; the others stay -inf.
SHOWO_INLINE void cap_scores(float* scores, const Scores& of_products, uint64_t seen) {
  alignas(64) int32_t lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  for (int64_t j = 0; j < kKvBlock; j += kLanes) {
    const VecI sees = set1(static_cast<int32_t>(seen >> j)) << (31 - load(lane));
    store(scores + j, select(sees < 0, of_products.score(load(scores + j)), set1(-__builtin_inff())));
  }
}

// One row of one head. headroom: see cpu_forward.cpp. out [D] is divided by the sum of probabilities; returns lse in
// units of log2.
template <int D, class T>
float forward_row(const OmniForwardParams& p, const Scores& of_products, int64_t batch, int64_t head, int64_t row,
                  int headroom, float* out) {
  constexpr int kVectors = D / kLanes;
  const float minus_infinity = -__builtin_inff();
  const OmniInputs& in = p.in;
  const int64_t kv_head = head / (in.heads / in.kv_heads);
  const int32_t* intervals = in.intervals + batch * in.intervals_batch_stride + row * in.intervals_row_stride;
  const auto* from = static_cast<const T*>(row_at(in.q, in.q_strides, in.dtype, batch, head, row));
  VecF q[kVectors], sums[kVectors] = {};
  for (int v = 0; v < kVectors; ++v) q[v] = load(from + v * kLanes) * of_products.factor;
  alignas(64) float scores[kKvBlock];
  float m = minus_infinity, l = 0.0f;
  for (int64_t first = 0; first < in.kv_length; first += kKvBlock) {
    const uint64_t seen = row_bits(intervals, in.num_intervals, first) & low_bits(in.kv_length - first);
    if (seen == 0) continue;
    for (float& score : scores) score = minus_infinity;
    for (uint64_t bits = seen; bits != 0;) {
      const int j = take_first_bit(&bits);
      const auto* key = static_cast<const T*>(row_at(in.k, in.k_strides, in.dtype, batch, kv_head, first + j));
      VecF dot{};
      for (int v = 0; v < kVectors; ++v) dot += q[v] * load(key + v * kLanes);
      scores[j] = sum(dot);
    }
    if (of_products.capped()) cap_scores(scores, of_products, seen);
    VecF best = set1(m);
    for (int64_t j = 0; j < kKvBlock; j += kLanes) best = max(load(scores + j), best);
    const float next = max(best), base = next == minus_infinity ? 0.0f : next;  // not (-inf) - (-inf)
    VecF total{};
    for (int64_t j = 0; j < kKvBlock; j += kLanes) {
      const VecF x = exp2_bounded(load(scores + j) - base, headroom);
      store(scores + j, x);
      total += x;
    }
    const float rescale = exp2_bounded(set1(m - base))[0];
    l = l * rescale + sum(total);
    m = next;
    for (int v = 0; v < kVectors; ++v) sums[v] *= rescale;
    for (uint64_t bits = seen; bits != 0;) {
      const int j = take_first_bit(&bits);
      const auto* value = static_cast<const T*>(row_at(in.v, in.v_strides, in.dtype, batch, kv_head, first + j));
      for (int v = 0; v < kVectors; ++v) sums[v] += scores[j] * load(value + v * kLanes);
    }
  }
  const float inverse = l == 0.0f ? 0.0f : 1.0f / l;
  for (int v = 0; v < kVectors; ++v) store(out + v * kLanes, sums[v] * inverse);
  return l == 0.0f ? minus_infinity : m + __builtin_log2f(__builtin_ldexpf(l, headroom));
}

}  // namespace
}  // namespace SHOWO_ISA
}  // namespace showo
