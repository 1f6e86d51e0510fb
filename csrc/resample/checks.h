// What the launchers of this folder check alike, on the CPU and on the GPU.
#pragma once

#include <cinttypes>

#include "common/status.h"
#include "resample/params.h"

namespace showo::resample {

// Numbers that come as tensors lie where the kernels run, so the launchers for the GPU must not read them: the default
// of such a number is checked instead, which always passes.
template <class T>
T readable(const Scalar<T>& number, bool on_cpu, T passes) {
  return on_cpu || !number.data ? number.get() : passes;
}

inline Status check_noise(const NoiseSource& noise, int64_t batch, bool on_cpu) {
  const int64_t step = readable(noise.step, on_cpu, int64_t{0});
  SHOWO_CHECK_ARGUMENT(step >= 0 && step <= UINT32_MAX, "step is %" PRId64 ", expected 0 to 2^32 - 1", step);
  SHOWO_CHECK_ARGUMENT(batch <= kPhiloxMaxRows, "batch is %" PRId64 ", expected at most 2^24 rows", batch);
  return ok_status();
}

inline Status check_sample(const SampleParams& p, bool on_cpu) {
  const double guidance = readable(p.guidance, on_cpu, 0.0), temperature = readable(p.temperature, on_cpu, 1.0);
  const double top_p = readable(p.top_p, on_cpu, 1.0);
  const int64_t top_k = readable(p.top_k, on_cpu, int64_t{0});
  SHOWO_CHECK_ARGUMENT(p.dtype == DType::kF32 || p.dtype == DType::kF16 || p.dtype == DType::kBF16,
                       "logits has dtype %s, expected float32, float16 or bfloat16", dtype_name(p.dtype));
  SHOWO_CHECK_ARGUMENT(p.batch >= 0 && p.length >= 0 && p.vocab >= 0, "a size is negative, expected none below 0");
  SHOWO_CHECK_ARGUMENT(p.vocab > 0 || p.batch * p.length == 0, "vocab is 0, expected at least one entry per row");
  SHOWO_CHECK_ARGUMENT(p.vocab <= INT32_MAX && p.length <= INT32_MAX,
                       "logits has 2^31 places or entries, expected fewer");
  SHOWO_CHECK_ARGUMENT(guidance >= 0.0 && guidance <= 1e30, "guidance is %g, expected a number from 0 to 1e30",
                       guidance);
  if (p.weights) {
    SHOWO_CHECK_ARGUMENT(p.conditions >= 1 && p.conditions <= kMaxConditions,
                         "logits has %" PRId64 " conditions, expected 1 to %d", p.conditions, kMaxConditions);
    SHOWO_CHECK_ARGUMENT(p.uncond || p.batch * p.length == 0,
                         "uncond is null, expected the logits without a condition");
    const int64_t rows = p.weights_stride_b != 0 ? p.batch : 1;
    for (int64_t i = 0; on_cpu && i < rows * p.conditions; ++i) {
      SHOWO_CHECK_ARGUMENT(p.weights[i] >= -1e30 && p.weights[i] <= 1e30,
                           "weights has %g, expected numbers from -1e30 to 1e30", p.weights[i]);
    }
  }
  SHOWO_CHECK_ARGUMENT(is_sampling_temperature(temperature),
                       "temperature is %g, expected 0 or a number from 1e-30 to 1e30", temperature);
  SHOWO_CHECK_ARGUMENT(top_k >= 0, "top_k is %" PRId64 ", expected at least 0", top_k);
  SHOWO_CHECK_ARGUMENT(top_p > 0.0 && top_p <= 1.0, "top_p is %g, expected a number above 0 and up to 1", top_p);
  SHOWO_CHECK_ARGUMENT(!(p.known.flags || p.known.ids) || p.canvas, "ids is null, expected the ids of known places");
  return check_noise(p.noise, p.batch, on_cpu);
}

inline Status check_remask(const RemaskParams& p, bool on_cpu) {
  const double temperature = readable(p.temperature, on_cpu, 0.0);
  SHOWO_CHECK_ARGUMENT(temperature >= 0.0 && temperature <= 1e30, "temperature is %g, expected a number from 0 to 1e30",
                       temperature);
  return check_noise(p.noise, p.batch, on_cpu);
}

}  // namespace showo::resample
