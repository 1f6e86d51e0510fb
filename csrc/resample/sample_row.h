// One row of logits: what the launchers of sample.cpp ask of cpu_sample_row.cpp, which is compiled once per instruction
// set.
#pragma once

#include <cstdint>

#include "common/philox.h"
#include "resample/params.h"

namespace showo::resample {

enum class RowFault { kNone, kNan, kPositiveInfinity, kOverflow, kNothingAllowed, kNoiseRange };

struct RowInput {
  const void* cond[kMaxConditions];  // of each condition [V], of params.dtype
  float cond_scale[kMaxConditions];  // x is the sum of the conditions by their scales,
  int conditions;
  const void* uncond;     // [V] or null
  float uncond_scale;     // less uncond by its scale; or the one condition as it is, where uncond is null
  const float* uniforms;  // [V], or null: Philox
  PhiloxRow philox;
  float* scratch;  // 2 * padded_row(V) floats if the row is filtered (top_k, top_p), else unused
};

struct RowOutput {
  int64_t index;  // the choice; where the fault lies, if there is one
  float logprob;
  RowFault fault;
};

constexpr int64_t kGroup = 32;  // elements of one vector step: eight Philox counters

constexpr int64_t padded_row(int64_t vocab) { return (vocab + kGroup - 1) / kGroup * kGroup; }

RowOutput sample_row(const SampleParams& params, const RowInput& row);

// The noise itself, elements 4 * first_block .. of a row: for tests.
void philox_uniforms(const PhiloxRow& row, uint32_t first_block, int64_t count, float* out);

}  // namespace showo::resample
