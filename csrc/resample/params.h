// Masked-token sampling: parameters and launchers. One struct per operator, filled by the bindings; all strides in
// elements. Rows of the batch are B, places in a row N, codes V.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/philox.h"
#include "common/status.h"

namespace showo {

// An argument that the caller gives as a number, or as a tensor of one number for all rows or of one number a row.
// Where `data` is set, the tensor counts and not the number.
template <class T>
struct ScalarOrRows {
  const T* data = nullptr;  // [1] if stride is 0, else [B]
  T value = 0;
  int64_t stride = 0;

  SHOWO_PHILOX_FN T at(int64_t row) const { return data ? data[row * stride] : value; }
};

// The same without rows: a number that changes in every step of a loop stays on the device as a tensor [1].
template <class T>
struct Scalar {
  const T* data = nullptr;
  T value = 0;

  SHOWO_PHILOX_FN T get() const { return data ? *data : value; }
};

// Where the noise comes from: uniforms given by the caller, else Philox (common/philox.h).
struct NoiseSource {
  const float* uniforms = nullptr;  // contiguous, one per element: [B, N, V] or [B, N]
  ScalarOrRows<int64_t> seed;       // stride 0: one for the batch, 1: every row has its own
  Scalar<int64_t> step;

  SHOWO_PHILOX_FN PhiloxRow row(PhiloxStream stream, int64_t batch_row, int64_t position) const {
    const bool seed_per_row = seed.data && seed.stride != 0;
    return philox_row(seed.at(batch_row), stream, seed_per_row ? 0 : batch_row, position, step.get());
  }
};

// Places whose token is settled. With flags they are the flagged places; with ids they are the places whose id is not
// the mask id; with neither no place is settled.
struct KnownPlaces {
  const bool* flags = nullptr;   // [B, N] contiguous, or null
  const int64_t* ids = nullptr;  // [B, N] contiguous, or null
  int64_t mask_id = 0;

  SHOWO_PHILOX_FN bool at(int64_t place) const { return flags ? flags[place] : ids && ids[place] != mask_id; }
};

constexpr int kMaxConditions = 8;

// Chooses argmax_v of log p(v) + Gumbel(u_v) and gives log p of it, where p = softmax(x / temperature) over the kept
// tokens, and every operation of x is rounded to fp32:
//
//   without weights   x = (1 + guidance) * cond - guidance * uncond
//   with weights w    x = sum_i w_i * cond_i - (sum_i w_i - 1) * uncond, of K conditions and in their order
//
// Logits whose factor is 0 in fp32 are not read. So one condition of weight 1 + guidance is guidance, bit for bit.
struct SampleParams {
  int64_t* ids = nullptr;    // [B, N] out, contiguous
  float* logprob = nullptr;  // [B, N] out, contiguous

  const void* cond = nullptr;       // [B, N, V], last dimension contiguous; with weights [K, B, N, V]
  const void* uncond = nullptr;     // [B, N, V] or null
  const int64_t* canvas = nullptr;  // [B, N] contiguous, or null: the ids of known places
  KnownPlaces known;                // not sampled: they keep their id and get logprob 0
  NoiseSource noise;

  int64_t batch = 0, length = 0, vocab = 0;
  int64_t cond_stride_b = 0, cond_stride_n = 0;
  int64_t uncond_stride_b = 0, uncond_stride_n = 0;
  DType dtype = DType::kF32;

  int64_t offset = 0;               // added to every chosen index
  Scalar<double> guidance;          // 0: uncond is not read
  const double* weights = nullptr;  // [K], of all rows, or contiguous [B, K]; or null: guidance counts
  int64_t conditions = 0;           // K, 1 to kMaxConditions
  int64_t cond_stride_k = 0, weights_stride_b = 0;
  Scalar<double> temperature;  // 0: the most probable token, its log-probability at temperature 1
  Scalar<int64_t> top_k;       // 0: no limit
  Scalar<double> top_p;        // 1: no limit

  SHOWO_PHILOX_FN bool is_filtered() const {
    const int64_t most = top_k.get();
    return (most > 0 && most < vocab) || top_p.get() < 1.0;
  }
};

// The range of temperatures to sample at.
SHOWO_PHILOX_FN bool is_sampling_temperature(double t) { return t == 0.0 || (t >= 1e-30 && t <= 1e30); }

// Masks the min(mask_len, unknown) least confident unknown places: confidence = logprob + temperature * Gumbel(u).
struct RemaskParams {
  int64_t* ids_out = nullptr;  // [B, N] out; all contiguous
  bool* masked = nullptr;      // [B, N] out

  const int64_t* ids = nullptr;    // [B, N]
  const float* logprob = nullptr;  // [B, N]
  KnownPlaces known;
  ScalarOrRows<int64_t> mask_len;
  NoiseSource noise;

  int64_t batch = 0, length = 0;
  Scalar<double> temperature;  // 0: no noise
  int64_t mask_id = 0;
};

// Masks max(1, round_half_even(length * ratio)) random places of every row.
struct CorruptParams {
  int64_t* inputs = nullptr;  // [B, N], all contiguous
  int64_t* labels = nullptr;  // [B, N]: the id where masked, -100 elsewhere
  bool* masked = nullptr;     // [B, N]

  const int64_t* ids = nullptr;   // [B, N]
  const float* ratios = nullptr;  // [B], or null: ratio holds for every row
  Scalar<double> ratio;
  NoiseSource noise;

  int64_t batch = 0, length = 0;
  int64_t mask_id = 0;
};

Status sample_tokens_cpu(const SampleParams& params, int num_threads);
Status remask_cpu(const RemaskParams& params, int num_threads);
Status corrupt_tokens_cpu(const CorruptParams& params, int num_threads);

// One MaskGIT step: `remask.ids` and `remask.logprob` are the outputs of `sample`.
Status resample_cpu(const SampleParams& sample, const RemaskParams& remask, int num_threads);

// Nothing is reported about values on the GPU, which would stall the stream. A row with a fault (see
// cpu_sample_row.cpp: NaN, +inf, guidance that overflows, nothing allowed, noise outside (0, 1)) gets index 0 and
// logprob NaN; a place whose confidence is NaN is masked first; a negative mask_len counts as 0; a mask ratio is
// clamped to [0, 1], NaN to 0; of a step the low 32 bits count. Of numbers that come as tensors: a sampling temperature
// out of range is a fault of every row, a negative top_k and a top_p above 1 or NaN are no limit, a top_p of 0 or less
// keeps the most probable token, a negative guidance is used as it is, and a remask temperature below 0 or NaN is 0.
Status sample_tokens_cuda(const SampleParams& params, void* stream);
Status remask_cuda(const RemaskParams& params, void* stream);
Status corrupt_tokens_cuda(const CorruptParams& params, void* stream);
Status resample_cuda(const SampleParams& sample, const RemaskParams& remask, void* stream);

// Elements 4 * first_block .. of one row's noise, for tests.
Status philox_uniforms_cpu(const PhiloxRow& row, uint32_t first_block, int64_t count, float* out);

}  // namespace showo
