// What the launchers of this folder check alike, on the CPU and on the GPU.
#pragma once

#include <cinttypes>

#include "common/status.h"
#include "resample/params.h"

namespace showo::resample {

// `step_is_readable`: whether a step given as a tensor lies in memory that the host can read.
inline Status check_noise(const NoiseSource& noise, int64_t batch, bool step_is_readable) {
  const int64_t step = step_is_readable ? noise.step.at(0) : noise.step.data ? 0 : noise.step.value;
  SHOWO_CHECK_ARGUMENT(step >= 0 && step <= UINT32_MAX, "step must lie in [0, 2^32), got %" PRId64, step);
  SHOWO_CHECK_ARGUMENT(batch <= kPhiloxMaxRows, "the batch must have at most 2^24 rows, got %" PRId64, batch);
  return ok_status();
}

inline Status check_sample(const SampleParams& p, bool step_is_readable) {
  SHOWO_CHECK_ARGUMENT(p.dtype == DType::kF32 || p.dtype == DType::kF16 || p.dtype == DType::kBF16,
                       "logits must be float32, float16 or bfloat16, got %s", dtype_name(p.dtype));
  SHOWO_CHECK_ARGUMENT(p.batch >= 0 && p.length >= 0 && p.vocab >= 0, "sizes must not be negative");
  SHOWO_CHECK_ARGUMENT(p.vocab > 0 || p.batch * p.length == 0, "logits must have at least one entry per row");
  SHOWO_CHECK_ARGUMENT(p.vocab <= INT32_MAX && p.length <= INT32_MAX, "logits must have fewer than 2^31 rows, entries");
  SHOWO_CHECK_ARGUMENT(p.temperature == 0.0 || (p.temperature >= 1e-30 && p.temperature <= 1e30),
                       "temperature must be 0 or between 1e-30 and 1e30, got %g", p.temperature);
  SHOWO_CHECK_ARGUMENT(p.top_k >= 0, "top_k must not be negative, got %" PRId64, p.top_k);
  SHOWO_CHECK_ARGUMENT(p.top_p > 0.0 && p.top_p <= 1.0, "top_p must lie in (0, 1], got %g", p.top_p);
  SHOWO_CHECK_ARGUMENT(!(p.known.flags || p.known.ids) || p.canvas, "known places need the ids that they keep");
  return check_noise(p.noise, p.batch, step_is_readable);
}

inline Status check_remask(const RemaskParams& p, bool step_is_readable) {
  SHOWO_CHECK_ARGUMENT(p.temperature >= 0.0 && p.temperature <= 1e30, "temperature must lie in [0, 1e30], got %g",
                       p.temperature);
  return check_noise(p.noise, p.batch, step_is_readable);
}

}  // namespace showo::resample
