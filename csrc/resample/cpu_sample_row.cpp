// One row of logits -> one token and its log-probability, in one pass over memory.
//
//   x_v     = (1 + g) cond_v - g uncond_v            products and difference rounded to fp32, as torch does; with
//             weights sum_i w_i cond_iv - (sum_i w_i - 1) uncond_v, in this order
//   choice  = argmax_v  x_v / T - log E_v            E_v = -log u_v, so -log E_v is Gumbel noise
//   logprob = (x_choice - m) / T - log sum_v w_v     w_v = exp((x_v - m) / T), m the running maximum
//
// The row goes by in blocks that fit the first-level cache; each is guided, reduced to its maximum (the online softmax
// rescales when it grows), then summed and raced.
//
// The race needs two logarithms per token if done as written, and almost all of them are wasted. In the equal form of
// an exponential race the choice is argmin E_v / w_v, and E_v = -log u_v >= 1 - u_v. So with `best` the smallest ratio
// so far, a token can only win if (1 - u_v) < best * w_v: one multiplication and one comparison, eight tokens at once,
// which all but a handful fail. Those few (about ln V a row) are scored exactly, in fp64. Since 1 - u >= 2^-24 for
// every fp32 uniform, a group whose best * w_v are all smaller needs no noise at all, and Philox is skipped for it.
// `best` is widened by 1e-4 against the rounding of w, so the result is the exact argmax whatever is skipped; equal
// scores go to the lower index.
#include <cmath>

#include "resample/filter.h"
#include "resample/sample_row.h"
#include "resample/vec8.h"

namespace showo::resample::SHOWO_ISA {
namespace {

constexpr int64_t kBlock = 1024;  // 4 KB of fp32, a multiple of kGroup
constexpr double kWidening = 1.0001;
constexpr float kTwo24 = 16777216.0f;

// ---------------------------------------------------------------------------------------------------------------
// guidance

struct Guided {
  float largest;
  bool suspect;  // a value that is not finite and not an ordinary -inf
};

template <typename T>
SHOWO_VEC8_FN F8 load_lanes(const T* source, int64_t count) {
  return count >= 8 ? load8(source) : load_tail(source, count);
}

// A block of the logits that a row combines.
template <typename T>
struct Terms {
  const RowInput& row;
  int64_t start;

  const T* cond(int k) const { return static_cast<const T*>(row.cond[k]) + start; }
  const T* uncond() const { return row.uncond ? static_cast<const T*>(row.uncond) + start : nullptr; }
};

// x[0, n) from the logits, x[n, padded) = -inf. kComposed: of several conditions, or of one with any scale.
template <bool kComposed, typename T>
Guided guide(float* x, const Terms<T>& terms, int64_t n) {
  const T *cond = terms.cond(0), *uncond = terms.uncond();
  const float cond_scale = terms.row.cond_scale[0], uncond_scale = terms.row.uncond_scale;
  F8 largest = splat(-kInf);
  I8 suspect{};
  const I8 lane{0, 1, 2, 3, 4, 5, 6, 7};
  for (int64_t i = 0; i < n; i += 8) {
    const int64_t count = n - i;
    F8 value = load_lanes(cond + i, count);
    if (kComposed) {  // a negative scale turns +inf into -inf, so every term is looked at
      suspect |= ~(value < kInf);
      value = value * cond_scale;
      for (int k = 1; k < terms.row.conditions; ++k) {
        const F8 term = load_lanes(terms.cond(k) + i, count);
        suspect |= ~(term < kInf);
        value = value + term * terms.row.cond_scale[k];
      }
      if (uncond) {
        const F8 free = load_lanes(uncond + i, count);
        suspect |= ~(free < kInf);
        value = value - free * uncond_scale;
      }
    } else if (uncond) {
      const F8 free = load_lanes(uncond + i, count);
      value = value * cond_scale - free * uncond_scale;
      suspect |= ~(free < kInf);
    }
    suspect |= ~(value < kInf);
    if (count < 8) value = lane < static_cast<int32_t>(count) ? value : splat(-kInf);
    largest = max8(largest, value);
    store(x + i, value);
  }
  for (int64_t i = (n + 7) / 8 * 8; i < padded_row(n); i += 8) store(x + i, splat(-kInf));
  return Guided{max_lane(largest), any(suspect)};
}

float largest_of(const float* x, int64_t n) {
  F8 largest = splat(-kInf);
  for (int64_t i = 0; i < padded_row(n); i += 8) largest = max8(largest, load8(x + i));
  return max_lane(largest);
}

// Lane by lane: NaN and +inf are faults, a token that is -inf in either input stays forbidden.
template <typename T>
__attribute__((noinline, cold)) RowFault settle(float* x, const Terms<T>& terms, int64_t n, float* largest,
                                                int64_t* where) {
  *largest = -kInf;
  const T* uncond = terms.uncond();
  for (int64_t i = 0; i < n; ++i) {
    *where = i;
    float least = uncond ? to_float(uncond[i]) : 0.0f, most = least;
    bool number = least == least;
    for (int k = 0; k < terms.row.conditions; ++k) {
      const float c = to_float(terms.cond(k)[i]);
      number = number && c == c;
      least = c < least ? c : least;
      most = c > most ? c : most;
    }
    if (!number) return RowFault::kNan;
    if (most == kInf) return RowFault::kPositiveInfinity;
    if (least == -kInf) x[i] = -kInf;
    if (!(x[i] < kInf)) return RowFault::kOverflow;
    if (x[i] > *largest) *largest = x[i];
  }
  return RowFault::kNone;
}

template <typename T>
RowFault guide_typed(const SampleParams& p, const RowInput& row, int64_t start, int64_t n, float* x, float* largest,
                     int64_t* where) {
  const Terms<T> terms{row, start};
  const Guided guided = p.weights ? guide<true>(x, terms, n) : guide<false>(x, terms, n);
  *largest = guided.largest;
  return guided.suspect ? settle(x, terms, n, largest, where) : RowFault::kNone;
}

RowFault guide_block(const SampleParams& p, const RowInput& row, int64_t start, int64_t n, float* x, float* largest,
                     int64_t* where) {
  switch (p.dtype) {
    case DType::kF16:
      return guide_typed<Half>(p, row, start, n, x, largest, where);
    case DType::kBF16:
      return guide_typed<BFloat16>(p, row, start, n, x, largest, where);
    default:
      return guide_typed<float>(p, row, start, n, x, largest, where);
  }
}

// ---------------------------------------------------------------------------------------------------------------
// the race

struct Race {
  double temperature;
  float inverse_temperature;
  bool greedy;

  float largest = -kInf;  // m
  double sum = 0.0;       // of w
  int64_t index = -1;     // the winner so far
  float value = -kInf;    // its x
  double score = 0.0;     // its x / T + Gumbel
  float reach = kInf;     // 2^24 * widened best: a token may win only if 2^24 (1 - u) < reach * w

  void set_reach() {
    const double log_best = static_cast<double>(largest) / temperature - score;
    reach = index < 0 ? kInf : static_cast<float>(kWidening * kTwo24 * std::exp(log_best));
  }

  void raise_maximum(float block_largest) {
    if (!(block_largest > largest)) return;
    if (sum > 0) sum *= std::exp((static_cast<double>(largest) - block_largest) / temperature);
    largest = block_largest;
    set_reach();
  }

  void consider(int64_t candidate, float x, float uniform) {
    const double exponential = -std::log(static_cast<double>(uniform));
    const double candidate_score = static_cast<double>(x) / temperature - std::log(exponential);
    if (index >= 0 && !(candidate_score > score)) return;
    index = candidate;
    value = x;
    score = candidate_score;
    set_reach();
  }
};

// 2^24 (1 - u) of 32 elements; false if a uniform given by the caller is outside (0, 1).
SHOWO_VEC8_FN bool group_noise(const RowInput& row, int64_t element, int64_t vocab, F8 complement[4]) {
  if (!row.uniforms) {
    U8 words[4];
    philox32(row.philox, static_cast<uint32_t>(element / 4), words);
    for (int j = 0; j < 4; ++j) {
      const U8 odd = ~words[j] >> 9 << 1 | 1u;  // 2^24 - (2 (word >> 9) + 1)
      complement[j] = __builtin_convertvector(reinterpret_cast<I8>(odd), F8);
    }
    return true;
  }
  I8 outside{};
  for (int j = 0; j < 4; ++j) {
    const int64_t count = vocab - element - 8 * j;
    if (count <= 0) {
      complement[j] = splat(kTwo24);
      continue;
    }
    const F8 u = load_lanes(row.uniforms + element + 8 * j, count);
    const I8 lane{0, 1, 2, 3, 4, 5, 6, 7};
    outside |= ~((u > 0.0f) & (u < 1.0f)) & (lane < static_cast<int32_t>(count < 8 ? count : 8));
    complement[j] = (1.0f - u) * kTwo24;
  }
  return !any(outside);
}

// The few tokens of a group that may win, in order; the reach shrinks with each that does.
__attribute__((noinline)) void consider_group(Race* race, const RowInput& row, int64_t element, const float* x,
                                              const F8 weight[4], const F8 complement[4]) {
  float w[kGroup], c[kGroup];
  for (int j = 0; j < 4; ++j) {
    store(w + 8 * j, weight[j]);
    store(c + 8 * j, complement[j]);
  }
  for (int i = 0; i < kGroup; ++i) {
    if (!(c[i] < race->reach * w[i])) continue;
    const float uniform = row.uniforms ? row.uniforms[element + i] : (kTwo24 - c[i]) * kUniformUlp;
    race->consider(element + i, x[i], uniform);
  }
}

void run_greedy(Race* race, const float* x, int64_t start, float block_largest) {
  if (!(block_largest > race->value)) return;
  int64_t i = 0;
  while (x[i] != block_largest) ++i;
  race->index = start + i;
  race->value = block_largest;
}

// Adds x[0, padded n), elements start .. of the row, whose largest value is given, to the sum and the race.
RowFault run_block(Race* race, const RowInput& row, const float* x, int64_t start, int64_t n, int64_t vocab,
                   float block_largest) {
  if (race->greedy) run_greedy(race, x, start, block_largest);
  race->raise_maximum(block_largest);
  if (race->largest == -kInf && !row.uniforms) return RowFault::kNone;  // nothing allowed so far
  const float origin = race->largest == -kInf ? 0.0f : race->largest;
  F8 sum[4] = {};
  for (int64_t i = 0; i < padded_row(n); i += kGroup) {
    F8 weight[4], reached[4], complement[4];
    for (int j = 0; j < 4; ++j) {
      weight[j] = exp_negative((load8(x + i + 8 * j) - origin) * race->inverse_temperature);
      sum[j] += weight[j];
      reached[j] = weight[j] * race->reach;
    }
    if (race->greedy) continue;
    const I8 reachable = (reached[0] > 1.0f) | (reached[1] > 1.0f) | (reached[2] > 1.0f) | (reached[3] > 1.0f);
    if (!row.uniforms && !any(reachable)) continue;
    if (!group_noise(row, start + i, vocab, complement)) return RowFault::kNoiseRange;
    const I8 candidates = (complement[0] < reached[0]) | (complement[1] < reached[1]) | (complement[2] < reached[2]) |
                          (complement[3] < reached[3]);
    if (any(candidates)) consider_group(race, row, start + i, x + i, weight, complement);
  }
  race->sum += sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
  return RowFault::kNone;
}

// ---------------------------------------------------------------------------------------------------------------
// the two orders of work

RowFault run_streaming(const SampleParams& p, const RowInput& row, Race* race, int64_t* where) {
  alignas(64) float x[kBlock];
  for (int64_t start = 0; start < p.vocab; start += kBlock) {
    const int64_t n = p.vocab - start < kBlock ? p.vocab - start : kBlock;
    float largest;
    RowFault fault = guide_block(p, row, start, n, x, &largest, where);
    *where += start;
    if (fault == RowFault::kNone) fault = run_block(race, row, x, start, n, p.vocab, largest);
    if (fault != RowFault::kNone) return fault;
  }
  return RowFault::kNone;
}

// top-k and top-p must see the whole row before the race, so it is kept in the scratch space.
RowFault run_filtered(const SampleParams& p, const RowInput& row, Race* race, int64_t* where) {
  float* x = row.scratch;
  float largest;
  const RowFault fault = guide_block(p, row, 0, p.vocab, x, &largest, where);
  if (fault != RowFault::kNone || largest == -kInf) return fault;
  const int64_t padded = padded_row(p.vocab);
  const int64_t top_k = p.top_k.get();
  const double top_p = p.top_p.get();
  if (top_k > 0 && top_k < p.vocab) keep_top_k(x, padded, top_k);
  if (top_p < 1.0) keep_top_p(x, x + padded, padded, largest, race->inverse_temperature, top_p);
  race->raise_maximum(largest);  // a filter never drops the largest
  for (int64_t start = 0; start < p.vocab; start += kBlock) {
    const int64_t n = p.vocab - start < kBlock ? p.vocab - start : kBlock;
    const RowFault late = run_block(race, row, x + start, start, n, p.vocab, largest_of(x + start, n));
    if (late != RowFault::kNone) return late;
  }
  return RowFault::kNone;
}

}  // namespace

RowOutput sample_row(const SampleParams& params, const RowInput& row) {
  Race race;
  const double temperature = params.temperature.get();
  race.greedy = temperature == 0.0;
  race.temperature = race.greedy ? 1.0 : temperature;
  race.inverse_temperature = static_cast<float>(1.0 / race.temperature);
  int64_t where = 0;
  RowFault fault =
      params.is_filtered() ? run_filtered(params, row, &race, &where) : run_streaming(params, row, &race, &where);
  if (fault == RowFault::kNone && race.index < 0) fault = RowFault::kNothingAllowed;
  if (fault != RowFault::kNone) return RowOutput{where, 0.0f, fault};
  const double exponent = (static_cast<double>(race.value) - race.largest) / race.temperature;
  return RowOutput{race.index, static_cast<float>(exponent - std::log(race.sum)), RowFault::kNone};
}

void philox_uniforms(const PhiloxRow& row, uint32_t first_block, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kGroup) {
    U8 words[4];
    philox32(row, first_block + static_cast<uint32_t>(i / 4), words);
    for (int64_t j = 0; j < kGroup && i + j < count; ++j) out[i + j] = uniform_from_word(words[j / 8][j % 8]);
  }
}

}  // namespace showo::resample::SHOWO_ISA
