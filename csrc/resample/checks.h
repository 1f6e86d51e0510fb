// What the CPU launchers of this folder check alike.
#pragma once

#include <cinttypes>

#include "common/status.h"
#include "resample/params.h"

namespace showo::resample {

inline Status check_noise(const NoiseSource& noise, int64_t batch) {
  const int64_t step = noise.step.at(0);
  SHOWO_CHECK_ARGUMENT(step >= 0 && step <= UINT32_MAX, "step must lie in [0, 2^32), got %" PRId64, step);
  SHOWO_CHECK_ARGUMENT(batch <= kPhiloxMaxRows, "the batch must have at most 2^24 rows, got %" PRId64, batch);
  return ok_status();
}

}  // namespace showo::resample
