// The race of one warp over the tokens of a row: the warp finds the token with the largest x / T + Gumbel(u), and sums
// exp((x - m) / T). The largest of these is the least of the ratios E / w:
//
//   choice = argmin_v E_v / w_v    E_v = -log u_v,  w_v = exp((x_v - m) / T),  m the warp's running maximum
//
// An exact ratio takes two logarithms in fp64, and almost every token loses by far. So each token first gets a lower
// bound of its log2(E / w) that takes one fast logarithm. The bound is t = log2(1 - u) - log2 w, since E >= 1 - u. A
// token can win only if its t is below the ratio of a token that is known already. Two ratios are known: the ratio of
// the best token so far, and an upper bound of the ratio of the token that has the least t in the chunk at hand. One
// or two tokens in 512 can still win; they are scored in fp64 with the very operations of the CPU backend, and of equal
// scores the lower index wins.
//
// Every E lies between 2^-24 and 17, so the w of the winner is at least 2^-29 of the largest w. For such a w the t in
// fp32 is right to 1.4e-5: lg2 of 2^24 (1 - u) errs by 24 * 2^-22, log2 w by 29 * 3 * 2^-24, two subtractions round.
// The known ratios are raised by kSlack, which is more, so that the choice is the exact argmax.
#pragma once

#include <cuda_runtime.h>

#include "common/philox.h"
#include "resample/params.h"
#include "resample/search.cuh"

namespace showo::resample {

constexpr float kInf = __builtin_huge_valf();
constexpr float kTwo24 = 16777216.0f;
constexpr float kSlack = 1e-4f;
constexpr double kLog2E = 1.4426950408889634;

// A warp works on chunks of 512 elements: 4 units of 128, of which a lane has 4 elements each.
constexpr int kUnits = 4;
constexpr uint32_t kUnitElements = 128;
constexpr uint32_t kChunk = kUnits * kUnitElements;
constexpr uint32_t kBlockStride = kWarps * kChunk;

// Which elements of a unit a lane has: four neighbours, which are one wide access, or every 32nd element, where the
// address of the row allows no wide access; the lanes' single accesses are coalesced then.
struct Layout {
  bool packed;

  __device__ __forceinline__ uint32_t element(uint32_t chunk, int unit, int k) const {
    const uint32_t lane = threadIdx.x % 32;
    return chunk + unit * kUnitElements + (packed ? 4 * lane + k : 32 * k + lane);
  }
};

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// An upper bound of log2(E / (1 - u)), which is what t lacks of log2(E / w); `complement` is 1 - u. The value itself
// for u up to 7/8. For larger u the fast logarithm of u is inexact, and the bound is log2(1 / u), since E <= (1 - u) /
// u.
__device__ __forceinline__ float log2_of_excess(float complement) {
  const float log2_u = log2_fast(1.0f - complement);
  if (complement < 0.125f) return -log2_u;
  return log2_fast(log2_u * -0.6931472f) - log2_fast(complement);
}

// The noise of a row.
struct RowNoise {
  const float* uniforms;  // [vocab], or null: Philox
  PhiloxRow philox;

  __device__ __forceinline__ float at(uint32_t element) const {
    if (uniforms) return uniforms[element];
    const PhiloxWords words = philox_block(philox, element / 4);
    const uint32_t low = element & 1 ? words.word[1] : words.word[0];
    const uint32_t high = element & 1 ? words.word[3] : words.word[2];
    return uniform_from_word(element & 2 ? high : low);
  }

  // 2^24 (1 - u) of the lane's elements of a unit; false if a uniform that the caller gave lies outside (0, 1).
  __device__ __forceinline__ bool complements(float (&out)[4], uint32_t chunk, int unit, uint32_t vocab,
                                              Layout layout) const {
    if (uniforms) {
      bool valid = true;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint32_t i = layout.element(chunk, unit, k);
        const float u = i < vocab ? uniforms[i] : 0.5f;
        valid = valid && u > 0.0f && u < 1.0f;
        out[k] = (1.0f - u) * kTwo24;
      }
      return valid;
    }
    const uint32_t lane = threadIdx.x % 32;
    PhiloxWords words = philox_block(philox, (chunk + unit * kUnitElements) / 4 + lane);
    if (!layout.packed) {  // the words of four neighbours are in one lane, but four lanes have these elements
      PhiloxWords mine;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        uint32_t word[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) word[w] = __shfl_sync(kAllLanes, words.word[w], 8 * k + lane / 4);
        const uint32_t low = lane & 1 ? word[1] : word[0], high = lane & 1 ? word[3] : word[2];
        mine.word[k] = lane & 2 ? high : low;
      }
      words = mine;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {  // 2^24 - (2 (word >> 9) + 1) = 2 (~word >> 9) + 1, exact
      const float half = __uint_as_float(0x4b000000u | (~words.word[k] >> 9)) - 8388608.0f;
      out[k] = fmaf(half, 2.0f, 1.0f);
    }
    return true;
  }
};

// A candidate with its exact score.
struct Runner {
  static constexpr uint32_t kNobody = ~0u;

  double score = 0.0;
  uint32_t index = kNobody;
  float x = 0.0f;

  __device__ __forceinline__ bool leads(const Runner& other) const {
    if (index == kNobody) return false;
    return other.index == kNobody || score > other.score || (score == other.score && index < other.index);
  }

  __device__ __forceinline__ Runner from_lane(int step) const {
    Runner other;
    other.score = __shfl_xor_sync(kAllLanes, score, step);
    other.index = __shfl_xor_sync(kAllLanes, index, step);
    other.x = __shfl_xor_sync(kAllLanes, x, step);
    return other;
  }

  template <int kLanes>
  __device__ __forceinline__ Runner first_of_lanes() const {
    Runner best = *this;
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) {
      const Runner other = best.from_lane(step);
      if (other.leads(best)) best = other;
    }
    return best;
  }
};

struct Race {
  RowNoise noise;
  uint32_t vocab;
  double temperature;
  float scale;  // log2(e) / temperature
  bool greedy;

  float largest = -kInf;                     // m, the same in all lanes of the warp
  double sum = 0.0;                          // of w, over the tokens of this lane
  Runner best;                               // among the tokens of this lane
  double lead = -static_cast<double>(kInf);  // the best score in the warp
  float bound = kInf;                        // log2(E / w) of the token with that score, plus kSlack
  bool fault;

  __device__ Race(const RowNoise& row_noise, int64_t row_length, double given_temperature)
      : noise(row_noise),
        vocab(static_cast<uint32_t>(row_length)),
        temperature(given_temperature > 0.0 ? given_temperature : 1.0),
        scale(static_cast<float>(kLog2E / temperature)),
        greedy(given_temperature == 0.0),
        fault(!is_sampling_temperature(given_temperature)) {}

  __device__ __forceinline__ void set_bound() {
    bound = static_cast<float>((largest / temperature - lead) * kLog2E) + kSlack;
  }

  __device__ __forceinline__ void raise_maximum(float chunk_largest) {
    if (!(chunk_largest > largest)) return;
    if (largest > -kInf) sum *= exp((static_cast<double>(largest) - chunk_largest) / temperature);
    largest = chunk_largest;
    set_bound();
  }

  // Scores those tokens of the lane whose t is below the bound, and tells all lanes the best score of the warp.
  __device__ __forceinline__ void score(const float (&x)[kUnits][4], const float (&t)[kUnits][4], uint32_t chunk,
                                        Layout layout) {
    uint32_t candidates = 0;
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (t[unit][k] < bound) candidates |= 1u << (4 * unit + k);
      }
    }
    while (candidates) {
      const int j = __ffs(static_cast<int>(candidates)) - 1;
      candidates &= candidates - 1;
      Runner runner;
#pragma unroll
      for (int i = 0; i < 4 * kUnits; ++i) runner.x = i == j ? x[i / 4][i % 4] : runner.x;
      runner.index = layout.element(chunk, j / 4, j % 4);
      runner.score = static_cast<double>(runner.x) / temperature;
      if (!greedy) runner.score -= log(-log(static_cast<double>(noise.at(runner.index))));
      if (runner.leads(best)) best = runner;
    }
    __syncwarp();
    double score = best.index == Runner::kNobody ? lead : best.score;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) score = fmax(score, __shfl_xor_sync(kAllLanes, score, step));
    lead = score;
    set_bound();
  }

  // Takes in a chunk; elements past the end of the row are -inf. Called by whole warps.
  __device__ __forceinline__ void run(const float (&x)[kUnits][4], uint32_t chunk, Layout layout) {
    float most = -kInf;
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
#pragma unroll
      for (int k = 0; k < 4; ++k) most = fmaxf(most, x[unit][k]);
    }
    raise_maximum(number_of(__reduce_max_sync(kAllLanes, order_key(most))));
    const float origin = largest == -kInf ? 0.0f : largest;
    float t[kUnits][4];
    float part = 0.0f, least = kInf, complement_of_least = 0.0f;
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      float complement[4] = {kTwo24, kTwo24, kTwo24, kTwo24};
      if (!greedy && !noise.complements(complement, chunk, unit, vocab, layout)) fault = true;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float z = (x[unit][k] - origin) * scale;
        part += exp2_fast(z);
        t[unit][k] = (log2_fast(complement[k]) - 24.0f) - z;
        if (t[unit][k] < least) {
          least = t[unit][k];
          complement_of_least = complement[k];
        }
      }
    }
    sum += part;
    if (!__any_sync(kAllLanes, least < bound)) return;
    const float reached = greedy ? least : least + log2_of_excess(complement_of_least / kTwo24);
    bound = fminf(bound, number_of(__reduce_min_sync(kAllLanes, order_key(reached))) + kSlack);
    score(x, t, chunk, layout);
  }
};

}  // namespace showo::resample
