// sample_tokens and resample on the CPU: checks, threads over the rows, faults turned into a status.
#include <algorithm>
#include <cinttypes>
#include <memory>
#include <mutex>

#include "common/dispatch.h"
#include "common/parallel.h"
#include "resample/checks.h"
#include "resample/params.h"
#include "resample/sample_row.h"

namespace showo {
namespace resample {

SHOWO_DISPATCH_ISA(RowOutput, sample_row, (const SampleParams& params, const RowInput& row), (params, row))
SHOWO_DISPATCH_ISA(void, philox_uniforms, (const PhiloxRow& row, uint32_t first_block, int64_t count, float* out),
                   (row, first_block, count, out))

namespace {

constexpr int64_t kTaskElements = 32768;  // logits of one task: some tens of microseconds

const char* fault_text(RowFault fault, bool weighted) {
  switch (fault) {
    case RowFault::kNan:
      return "logits has NaN, expected none";
    case RowFault::kPositiveInfinity:
      return "logits has +inf, expected none";
    case RowFault::kOverflow:
      if (weighted) return "weights are too large, expected the combined logits to be finite in fp32";
      return "guidance is too high, expected (1 + guidance) * logits - guidance * uncond to be finite in fp32";
    case RowFault::kNothingAllowed:
      return "logits has only -inf in a row, expected something to choose";
    case RowFault::kNoiseRange:
      return "noise has a value outside, expected numbers strictly between 0 and 1";
    case RowFault::kNone:
      break;
  }
  return "no fault";
}

// Keeps the fault of the lowest place, so that the message does not depend on the threads.
struct FirstFault {
  std::mutex mutex;
  int64_t place = -1, index = 0;
  RowFault fault = RowFault::kNone;

  void report(int64_t at, const RowOutput& row) {
    std::lock_guard<std::mutex> lock(mutex);
    if (place >= 0 && place < at) return;
    place = at;
    index = row.index;
    fault = row.fault;
  }
};

template <typename T>
const void* element(const void* base, int64_t offset) {
  return base ? static_cast<const T*>(base) + offset : nullptr;
}

const void* row_of(const void* base, DType dtype, int64_t offset) {
  return dtype == DType::kF32 ? element<float>(base, offset) : element<uint16_t>(base, offset);
}

// Which logits a row combines, and by what factors. Logits whose factor is 0 are left out.
void choose_terms(const SampleParams& p, int64_t b, int64_t n, RowInput* row) {
  const int64_t cond = b * p.cond_stride_b + n * p.cond_stride_n;
  row->uncond = row_of(p.uncond, p.dtype, b * p.uncond_stride_b + n * p.uncond_stride_n);
  if (!p.weights) {
    row->conditions = 1;
    row->cond[0] = row_of(p.cond, p.dtype, cond);
    row->cond_scale[0] = static_cast<float>(1.0 + p.guidance.get());
    row->uncond_scale = static_cast<float>(p.guidance.get());
    if (p.guidance.get() == 0.0) row->uncond = nullptr;
    return;
  }
  const double* weights = p.weights + b * p.weights_stride_b;
  double sum = 0.0;
  row->conditions = 0;
  for (int64_t k = 0; k < p.conditions; ++k) {
    sum += weights[k];
    const float scale = static_cast<float>(weights[k]);
    if (scale == 0.0f) continue;
    row->cond[row->conditions] = row_of(p.cond, p.dtype, cond + k * p.cond_stride_k);
    row->cond_scale[row->conditions++] = scale;
  }
  row->uncond_scale = static_cast<float>(sum - 1.0);
  if (row->conditions == 0) {
    row->cond[row->conditions++] = row->uncond;
    row->cond_scale[0] = 1.0f;
    row->uncond_scale = 0.0f;
  }
  if (row->uncond_scale == 0.0f) row->uncond = nullptr;
}

void sample_place(const SampleParams& p, int64_t place, float* scratch, FirstFault* first) {
  if (p.known.at(place)) {
    p.ids[place] = p.canvas[place];
    p.logprob[place] = 0.0f;
    return;
  }
  const int64_t b = place / p.length, n = place % p.length;
  RowInput row;
  choose_terms(p, b, n, &row);
  row.uniforms = p.noise.uniforms ? p.noise.uniforms + place * p.vocab : nullptr;
  row.philox = p.noise.row(PhiloxStream::kSample, b, n);
  row.scratch = scratch;
  const RowOutput out = sample_row(p, row);
  if (out.fault != RowFault::kNone) return first->report(place, out);
  p.ids[place] = out.index + p.offset;
  p.logprob[place] = out.logprob;
}

}  // namespace
}  // namespace resample

Status sample_tokens_cpu(const SampleParams& params, int num_threads) {
  using namespace resample;
  SHOWO_RETURN_IF_ERROR(check_sample(params, true));
  const int64_t places = params.batch * params.length;
  const int64_t per_task = std::max<int64_t>(1, kTaskElements / std::max<int64_t>(1, params.vocab));
  const int64_t scratch_size = params.is_filtered() ? 2 * padded_row(params.vocab) : 0;
  FirstFault first;
  parallel_for((places + per_task - 1) / per_task, num_threads, [&](int64_t task) {
    std::unique_ptr<float[]> scratch(scratch_size ? new float[static_cast<size_t>(scratch_size)] : nullptr);
    const int64_t end = std::min(places, (task + 1) * per_task);
    for (int64_t place = task * per_task; place < end; ++place) sample_place(params, place, scratch.get(), &first);
  });
  if (first.fault == RowFault::kNone) return ok_status();
  return invalid_argument("%s: row %" PRId64 ", position %" PRId64 ", index %" PRId64,
                          fault_text(first.fault, params.weights), first.place / params.length,
                          first.place % params.length, first.index);
}

Status philox_uniforms_cpu(const PhiloxRow& row, uint32_t first_block, int64_t count, float* out) {
  resample::philox_uniforms(row, first_block, count, out);
  return ok_status();
}

Status resample_cpu(const SampleParams& sample, const RemaskParams& remask, int num_threads) {
  SHOWO_RETURN_IF_ERROR(sample_tokens_cpu(sample, num_threads));
  return remask_cpu(remask, num_threads);
}

}  // namespace showo
