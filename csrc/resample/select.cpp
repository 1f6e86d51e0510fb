// remask and corrupt_tokens on the CPU: exact selection of the k smallest of a row, ties by index.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "common/parallel.h"
#include "resample/checks.h"
#include "resample/params.h"

namespace showo {
namespace resample {
namespace {

constexpr int64_t kIgnoredLabel = -100;

struct Scored {
  double score;
  int64_t place;
};

bool ahead(const Scored& a, const Scored& b) { return a.score < b.score || (a.score == b.score && a.place < b.place); }

// The uniform of every place of row b: element = place, position = 0.
class RowNoise {
 public:
  RowNoise(const NoiseSource& noise, PhiloxStream stream, int64_t b, int64_t length)
      : uniforms_(noise.uniforms ? noise.uniforms + b * length : nullptr), philox_(noise.row(stream, b, 0)) {}

  float at(int64_t place) {
    if (uniforms_) return uniforms_[place];
    const int64_t block = place / 4;
    if (block != block_) {
      words_ = philox_block(philox_, static_cast<uint32_t>(block));
      block_ = block;
    }
    return uniform_from_word(words_.word[place % 4]);
  }

 private:
  const float* uniforms_;
  PhiloxRow philox_;
  PhiloxWords words_{};
  int64_t block_ = -1;
};

enum Fault : int { kNone = 0, kNanLogprob, kNoiseRange, kMaskLen, kRatio };

Status fault_status(int fault) {
  switch (fault) {
    case kNanLogprob:
      return invalid_argument("logprob has NaN at an unknown place, expected none");
    case kNoiseRange:
      return invalid_argument("noise has a value outside, expected numbers strictly between 0 and 1");
    case kMaskLen:
      return invalid_argument("mask_len has a negative entry, expected none below 0");
    case kRatio:
      return invalid_argument("mask_ratio has a value outside, expected numbers from 0 to 1");
    default:
      return ok_status();
  }
}

bool valid_uniform(float u) { return u > 0.0f && u < 1.0f; }

int remask_row(const RemaskParams& p, int64_t b) {
  const int64_t first = b * p.length;
  const int64_t mask_len = p.mask_len.at(b);
  const double temperature = p.temperature.get();
  if (mask_len < 0) return kMaskLen;
  RowNoise noise(p.noise, PhiloxStream::kRemask, b, p.length);
  std::vector<Scored> unknown;
  unknown.reserve(static_cast<size_t>(p.length));
  for (int64_t n = 0; n < p.length; ++n) {
    p.ids_out[first + n] = p.ids[first + n];
    p.masked[first + n] = false;
    const float u = noise.at(n);
    if (!valid_uniform(u)) return kNoiseRange;
    if (p.known.at(first + n)) continue;
    const float logprob = p.logprob[first + n];
    if (logprob != logprob) return kNanLogprob;
    const double gumbel = temperature > 0 ? -std::log(-std::log(static_cast<double>(u))) : 0.0;
    unknown.push_back(Scored{logprob + temperature * gumbel, n});
  }
  const int64_t count = std::min(mask_len, static_cast<int64_t>(unknown.size()));
  if (count > 0 && count < static_cast<int64_t>(unknown.size())) {
    std::nth_element(unknown.begin(), unknown.begin() + count, unknown.end(), ahead);
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t place = first + unknown[static_cast<size_t>(i)].place;
    p.ids_out[place] = p.mask_id;
    p.masked[place] = true;
  }
  return kNone;
}

// The product has the precision of the ratio, as torch's would; both round half to even.
int64_t corrupted_count(const CorruptParams& p, int64_t b) {
  const double rounded = p.ratios ? std::nearbyint(p.ratios[b] * static_cast<float>(p.length))
                                  : std::nearbyint(p.ratio.get() * static_cast<double>(p.length));
  return std::max<int64_t>(1, static_cast<int64_t>(rounded));
}

int corrupt_row(const CorruptParams& p, int64_t b) {
  const int64_t first = b * p.length;
  const double ratio = p.ratios ? p.ratios[b] : p.ratio.get();
  if (!(ratio >= 0.0 && ratio <= 1.0)) return kRatio;
  RowNoise noise(p.noise, PhiloxStream::kCorrupt, b, p.length);
  std::vector<Scored> places;
  places.reserve(static_cast<size_t>(p.length));
  for (int64_t n = 0; n < p.length; ++n) {
    p.inputs[first + n] = p.ids[first + n];
    p.labels[first + n] = kIgnoredLabel;
    p.masked[first + n] = false;
    const float u = noise.at(n);
    if (!valid_uniform(u)) return kNoiseRange;
    places.push_back(Scored{u, n});
  }
  const int64_t count = std::min(corrupted_count(p, b), p.length);
  if (count < p.length) std::nth_element(places.begin(), places.begin() + count, places.end(), ahead);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t place = first + places[static_cast<size_t>(i)].place;
    p.labels[place] = p.ids[place];
    p.inputs[place] = p.mask_id;
    p.masked[place] = true;
  }
  return kNone;
}

template <typename Row>
Status for_each_row(int64_t batch, int num_threads, Row&& row) {
  std::atomic<int> fault{kNone};
  parallel_for(batch, num_threads, [&](int64_t b) {
    const int found = row(b);
    if (found != kNone) fault.store(found, std::memory_order_relaxed);
  });
  return fault_status(fault.load());
}

}  // namespace
}  // namespace resample

Status remask_cpu(const RemaskParams& params, int num_threads) {
  using namespace resample;
  SHOWO_RETURN_IF_ERROR(check_remask(params, true));
  if (params.length == 0) return ok_status();
  return for_each_row(params.batch, num_threads, [&](int64_t b) { return remask_row(params, b); });
}

Status corrupt_tokens_cpu(const CorruptParams& params, int num_threads) {
  using namespace resample;
  SHOWO_RETURN_IF_ERROR(check_noise(params.noise, params.batch, true));
  if (params.length == 0) return ok_status();
  return for_each_row(params.batch, num_threads, [&](int64_t b) { return corrupt_row(params, b); });
}

}  // namespace showo
