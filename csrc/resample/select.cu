// remask and corrupt_tokens on the GPU: a block per row chooses the k least of its places, ties by index.
//
// Every place gets an integer key, the greatest for the place that is to be chosen first. remask takes the 64 bits of
// the confidence, computed in fp64 with the very operations of the CPU backend and put into falling order;
// corrupt_tokens takes the 32 bits of the uniform in falling order. The keys of a row of up to 4096 places are computed
// once and stay in shared memory; those of a longer row are computed again in every pass. search.cuh finds the k-th
// greatest key, word by word, and among equal keys the last index that is chosen.
//
// Global traffic is the compulsory one, coalesced: per place, remask reads id, logprob and known (1 or 8 bytes) and
// writes id and flag: 30 or 37 bytes; corrupt_tokens reads the id and writes two ids and the flag: 25 bytes.
#include <cuda_runtime.h>

#include "common/cuda_check.h"
#include "common/launch.h"
#include "resample/checks.h"
#include "resample/params.h"
#include "resample/search.cuh"

namespace showo {
namespace resample {
namespace {

constexpr int64_t kMaxStaged = 4096;
constexpr int64_t kIgnoredLabel = -100;

__device__ __forceinline__ float uniform_of(const NoiseSource& noise, const PhiloxRow& philox, int64_t first,
                                            uint32_t place) {
  if (noise.uniforms) return noise.uniforms[first + place];
  const PhiloxWords words = philox_block(philox, place / 4);
  const uint32_t low = place & 1 ? words.word[1] : words.word[0], high = place & 1 ? words.word[3] : words.word[2];
  return uniform_from_word(place & 2 ? high : low);
}

// Which places are chosen: those with greater keys, and of those with this key the ones up to last_place.
struct Threshold {
  uint32_t high = 0, low = 0, last_place = ~0u;

  __device__ __forceinline__ bool takes(uint32_t key_high, uint32_t key_low, uint32_t place) const {
    if (key_high != high) return key_high > high;
    return key_low != low ? key_low > low : place <= last_place;
  }
};

// --------------------------------------------------------------------------------------------------------- remasking

// The key of a place: 0 if the place is known; else greater, the greater the less its confidence; the greatest for NaN.
__device__ __forceinline__ uint64_t remask_key(const RemaskParams& p, const PhiloxRow& philox, int64_t first,
                                               uint32_t place) {
  if (p.known.at(first + place)) return 0;
  double confidence = p.logprob[first + place];
  const double temperature = p.temperature.get();
  if (temperature > 0) {
    const double u = uniform_of(p.noise, philox, first, place);
    confidence = __dadd_rn(confidence, __dmul_rn(temperature, -log(-log(u))));
  }
  return confidence == confidence ? ~order_key(confidence) : ~uint64_t{0};
}

extern __shared__ uint32_t staged_words[];  // [2 * length] high, then low words

template <bool kStaged>
__global__ void __launch_bounds__(kThreads) remask_kernel(RemaskParams p) {
  __shared__ BlockReduce::Storage storage;
  BlockReduce reduce(&storage);
  const int64_t b = blockIdx.x, first = b * p.length;
  const uint32_t length = static_cast<uint32_t>(p.length);
  const PhiloxRow philox = p.noise.row(PhiloxStream::kRemask, b, 0);
  const auto key_of = [&](uint32_t place) -> uint64_t {
    if constexpr (kStaged) {
      return static_cast<uint64_t>(staged_words[place]) << 32 | staged_words[length + place];
    } else {
      return remask_key(p, philox, first, place);
    }
  };

  Pass<uint32_t> unknown;
  for (uint32_t place = threadIdx.x; place < length; place += kThreads) {
    if constexpr (kStaged) {
      const uint64_t key = remask_key(p, philox, first, place);
      staged_words[place] = static_cast<uint32_t>(key >> 32);
      staged_words[length + place] = static_cast<uint32_t>(key);
      unknown.weight += key != 0;
    } else {
      unknown.weight += !p.known.at(first + place);
    }
  }
  const int64_t available = reduce(unknown).weight;  // its barrier makes the keys visible
  const int64_t wanted = p.mask_len.at(b);
  const uint32_t count = static_cast<uint32_t>(wanted < 0 ? 0 : wanted < available ? wanted : available);

  Threshold threshold;  // takes every place
  if (count > 0 && count < available) {
    const auto one = [] { return 1u; };
    const auto visit = [&](auto take) {
#pragma unroll 1
      for (uint32_t place = threadIdx.x; place < length; place += kThreads) take(key_of(place), place);
    };
    const Cut<uint32_t> high = find_cut<uint32_t>(reduce, 1u, ~0u, count, 0u, [&](auto take) {
      visit([&](uint64_t key, uint32_t) { take(static_cast<uint32_t>(key >> 32), one); });
    });
    const Cut<uint32_t> low = find_cut<uint32_t>(reduce, 0u, ~0u, count, high.above, [&](auto take) {
      visit([&](uint64_t key, uint32_t) {
        if (static_cast<uint32_t>(key >> 32) == high.key) take(static_cast<uint32_t>(key), one);
      });
    });
    const uint64_t equal = static_cast<uint64_t>(high.key) << 32 | low.key;
    const Cut<uint32_t> turned = find_cut<uint32_t>(reduce, 0u, ~0u, count, low.above, [&](auto take) {
      visit([&](uint64_t key, uint32_t place) {
        if (key == equal) take(~place, one);
      });
    });
    threshold = Threshold{high.key, low.key, ~turned.key};
  }

  for (uint32_t place = threadIdx.x; place < length; place += kThreads) {
    const uint64_t key = key_of(place);
    const bool masked =
        count > 0 && key != 0 && threshold.takes(static_cast<uint32_t>(key >> 32), static_cast<uint32_t>(key), place);
    p.masked[first + place] = masked;
    p.ids_out[first + place] = masked ? p.mask_id : p.ids[first + place];
  }
}

// -------------------------------------------------------------------------------------------------------- corruption

__device__ __forceinline__ uint32_t corrupted_count(const CorruptParams& p, int64_t b) {
  const double length = static_cast<double>(p.length);
  const double rounded =
      p.ratios ? rintf(__fmul_rn(p.ratios[b], static_cast<float>(p.length))) : rint(__dmul_rn(p.ratio.get(), length));
  return rounded >= 1.0 ? static_cast<uint32_t>(rounded < length ? rounded : length) : 1u;  // 1 for NaN too
}

template <bool kStaged>
__global__ void __launch_bounds__(kThreads) corrupt_kernel(CorruptParams p) {
  __shared__ BlockReduce::Storage storage;
  BlockReduce reduce(&storage);
  const int64_t b = blockIdx.x, first = b * p.length;
  const uint32_t length = static_cast<uint32_t>(p.length);
  const PhiloxRow philox = p.noise.row(PhiloxStream::kCorrupt, b, 0);
  const auto turned_uniform = [&](uint32_t place) {
    return ~__float_as_uint(uniform_of(p.noise, philox, first, place));
  };
  const auto key_of = [&](uint32_t place) -> uint32_t {
    if constexpr (kStaged) {
      return staged_words[place];
    } else {
      return turned_uniform(place);
    }
  };
  const uint32_t count = corrupted_count(p, b);

  Threshold threshold;
  if (count < length) {
    if constexpr (kStaged) {
      for (uint32_t place = threadIdx.x; place < length; place += kThreads) staged_words[place] = turned_uniform(place);
    }
    const auto one = [] { return 1u; };
    const Cut<uint32_t> cut = find_cut<uint32_t>(reduce, 0u, ~0u, count, 0u, [&](auto take) {
#pragma unroll 1
      for (uint32_t place = threadIdx.x; place < length; place += kThreads) take(key_of(place), one);
    });
    const Cut<uint32_t> turned = find_cut<uint32_t>(reduce, 0u, ~0u, count, cut.above, [&](auto take) {
#pragma unroll 1
      for (uint32_t place = threadIdx.x; place < length; place += kThreads) {
        if (key_of(place) == cut.key) take(~place, one);
      }
    });
    threshold = Threshold{cut.key, 0u, ~turned.key};
  }

  for (uint32_t place = threadIdx.x; place < length; place += kThreads) {
    const bool masked = count == length || threshold.takes(key_of(place), 0u, place);
    const int64_t id = p.ids[first + place];
    p.inputs[first + place] = masked ? p.mask_id : id;
    p.labels[first + place] = masked ? id : kIgnoredLabel;
    p.masked[first + place] = masked;
  }
}

// -------------------------------------------------------------------------------------------------------- launchers

Status check_sizes(const char* op, int64_t batch, int64_t length) {
  SHOWO_CHECK_ARGUMENT(batch >= 0 && length >= 0, "%s: a size is negative, expected none below 0", op);
  SHOWO_CHECK_ARGUMENT(length <= INT32_MAX, "%s: length is %" PRId64 ", expected fewer than 2^31 places", op, length);
  return ok_status();
}

}  // namespace
}  // namespace resample

Status remask_cuda(const RemaskParams& p, void* stream) {
  using namespace resample;
  SHOWO_RETURN_IF_ERROR(check_remask(p, false));
  SHOWO_RETURN_IF_ERROR(check_sizes("remask", p.batch, p.length));
  if (p.batch == 0 || p.length == 0) return ok_status();
  const unsigned grid = static_cast<unsigned>(p.batch);
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  if (p.length <= kMaxStaged) {
    remask_kernel<true><<<grid, kThreads, static_cast<size_t>(p.length) * 2 * sizeof(uint32_t), s>>>(p);
  } else {
    remask_kernel<false><<<grid, kThreads, 0, s>>>(p);
  }
  return check_launch("remask_kernel");
}

Status corrupt_tokens_cuda(const CorruptParams& p, void* stream) {
  using namespace resample;
  SHOWO_RETURN_IF_ERROR(check_noise(p.noise, p.batch, false));
  SHOWO_RETURN_IF_ERROR(check_sizes("corrupt_tokens", p.batch, p.length));
  if (p.batch == 0 || p.length == 0) return ok_status();
  const unsigned grid = static_cast<unsigned>(p.batch);
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  if (p.length <= kMaxStaged) {
    corrupt_kernel<true><<<grid, kThreads, static_cast<size_t>(p.length) * sizeof(uint32_t), s>>>(p);
  } else {
    corrupt_kernel<false><<<grid, kThreads, 0, s>>>(p);
  }
  return check_launch("corrupt_kernel");
}

}  // namespace showo
