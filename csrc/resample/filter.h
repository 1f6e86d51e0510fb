// top-k and top-p without sorting: a radix search on order-preserving integer keys finds the value at which the kept
// part ends. Included by cpu_sample_row.cpp alone.
#pragma once

#include "resample/vec8.h"

namespace showo::resample::SHOWO_ISA {

// Unsigned integers in the order of the floats; both zeros get one key.
SHOWO_VEC8_FN uint32_t order_key(float value) {
  value += 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

struct Cut {
  uint32_t key;  // larger keys are kept
  int64_t ties;  // and so many of the elements with this key, lowest index first
};

// The shortest prefix in descending order whose weight reaches `target` (weights null: every element weighs 1).
static Cut find_cut(const float* x, const float* weights, int64_t n, double target) {
  constexpr int kLevels = 3;
  constexpr int kShift[kLevels] = {21, 10, 0};
  constexpr int kBits[kLevels] = {11, 11, 10};
  double above = 0.0;   // weight of the keys greater than all of the current prefix
  uint32_t prefix = 0;  // leading bits settled so far
  int64_t count = 0;    // elements in the last bin chosen
  double weight = 0.0;
  for (int level = 0; level < kLevels; ++level) {
    double mass[1 << 11] = {};
    int32_t members[1 << 11] = {};
    const int bins = 1 << kBits[level];
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t key = order_key(x[i]);
      if (level > 0 && key >> kShift[level - 1] != prefix) continue;
      const uint32_t bin = key >> kShift[level] & static_cast<uint32_t>(bins - 1);
      mass[bin] += weights ? weights[i] : 1.0f;
      ++members[bin];
    }
    int chosen = -1;  // stays the lowest bin in use if rounding keeps the sum just under the target
    for (int bin = bins - 1; bin >= 0; --bin) {
      if (!members[bin]) continue;
      if (chosen >= 0) above += mass[chosen];
      chosen = bin;
      if (above + mass[bin] >= target) break;
    }
    prefix = prefix << kBits[level] | static_cast<uint32_t>(chosen);
    count = members[chosen];
    weight = mass[chosen];
  }
  // All that share the key share the weight: the fewest of them that reach the target.
  int64_t ties = 1;
  const double each = weight / static_cast<double>(count);
  while (ties < count && above + static_cast<double>(ties) * each < target) ++ties;
  return Cut{prefix, ties};
}

// Gives -inf to everything past the cut.
static void apply_cut(float* x, int64_t n, Cut cut) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t key = order_key(x[i]);
    if (key > cut.key) continue;
    if (key == cut.key && cut.ties > 0) {
      --cut.ties;
    } else {
      x[i] = -kInf;
    }
  }
}

static void keep_top_k(float* x, int64_t n, int64_t top_k) {
  apply_cut(x, n, find_cut(x, nullptr, n, static_cast<double>(top_k)));
}

// `weights` is room for the padded row.
static void keep_top_p(float* x, float* weights, int64_t n, float largest, float inverse_temperature, double top_p) {
  double total = 0.0;
  for (int64_t i = 0; i < n; i += 8) {
    const F8 weight = exp_negative((load8(x + i) - largest) * inverse_temperature);
    store(weights + i, weight);
    for (int lane = 0; lane < 8; ++lane) total += weight[lane];
  }
  apply_cut(x, n, find_cut(x, weights, n, top_p * total));
}

}  // namespace showo::resample::SHOWO_ISA
