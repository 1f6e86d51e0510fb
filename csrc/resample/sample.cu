// sample_tokens and resample on the GPU: a block of 8 warps per row of logits.
//
// sample_kernel, without top-k and top-p: the row is streamed once. Warps take chunks of 512 tokens in turn, guide them
// and run the race of race.cuh, each on its own; the block meets once, at the end of the row.
//
// filtered_kernel: a first pass guides the row and leaves it in shared memory as order-preserving keys (4 bytes a
// token, rows of up to 40960). search.cuh finds the key at which top-k, then top-p end, and the last index kept of
// tokens that equal it; then the race runs on what is kept. The weights of top-p are computed in the very operations of
// the CPU backend, so that both keep the same tokens. Longer rows do the same and read the logits again in every pass.
//
// Either is compiled twice (rows.cuh): for guidance, and for conditions with weights, which takes more registers.
//
// Global traffic of either: every logit of an unknown place once (of longer filtered rows some 30 times, mostly from
// the second-level cache), 12 bytes written per row; logits of known places are not read. Accesses are 4 tokens wide
// where the address of the row allows, else coalesced singles.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cfloat>

#include "common/cuda_check.h"
#include "common/launch.h"
#include "resample/checks.h"
#include "resample/params.h"
#include "resample/race.cuh"
#include "resample/rows.cuh"
#include "resample/search.cuh"

namespace showo {
namespace resample {
namespace {

constexpr int64_t kMaxStaged = 40960;            // keys that fit into 160 KB
constexpr uint32_t kForbiddenKey = 0x007fffffu;  // of -inf, the least that a token can have

// Where a block's row is, and what it writes.
struct Place {
  int64_t place, b, n;

  __device__ explicit Place(const SampleParams& p)
      : place(blockIdx.x), b(blockIdx.x / p.length), n(blockIdx.x % p.length) {}

  // Known places keep their id; true if this is one.
  __device__ bool settle_known(const SampleParams& p) const {
    if (!p.known.at(place)) return false;
    if (threadIdx.x == 0) {
      p.ids[place] = p.canvas[place];
      p.logprob[place] = 0.0f;
    }
    return true;
  }

  __device__ RowNoise noise(const SampleParams& p) const {
    return RowNoise{p.noise.uniforms ? p.noise.uniforms + place * p.vocab : nullptr,
                    p.noise.row(PhiloxStream::kSample, b, n)};
  }

  __device__ void write(const SampleParams& p, bool fault, const Runner& winner, double logprob) const {
    fault = fault || winner.index == Runner::kNobody;
    p.ids[place] = (fault ? 0 : static_cast<int64_t>(winner.index)) + p.offset;
    p.logprob[place] = fault ? __int_as_float(0x7fc00000) : static_cast<float>(logprob);
  }
};

// The races of the warps become one, and its winner is written.
struct Finish {
  double sum[kWarps], score[kWarps];
  uint32_t index[kWarps], fault[kWarps];
  float x[kWarps], largest[kWarps];
};

__device__ __forceinline__ void finish(Finish& shared, const Race& race, const SampleParams& p, const Place& place) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Runner best = race.best.first_of_lanes<32>();
  const double sum = sum_lanes<32>(race.sum);
  const bool fault = __any_sync(kAllLanes, race.fault);
  if (lane == 0) {
    shared.sum[warp] = sum;
    shared.score[warp] = best.score;
    shared.index[warp] = best.index;
    shared.x[warp] = best.x;
    shared.largest[warp] = race.largest;
    shared.fault[warp] = fault;
  }
  __syncthreads();
  if (warp != 0) return;
  const int other = lane % kWarps;
  Runner winner;
  winner.score = shared.score[other];
  winner.index = shared.index[other];
  winner.x = shared.x[other];
  winner = winner.first_of_lanes<kWarps>();
  const float mine = shared.largest[other];
  const float largest = number_of(__reduce_max_sync(kAllLanes, order_key(mine)));
  const double rescaled =
      mine == -kInf ? 0.0 : shared.sum[other] * exp((static_cast<double>(mine) - largest) / race.temperature);
  const double total = sum_lanes<kWarps>(rescaled);
  const bool any_fault = __any_sync(kAllLanes, shared.fault[other] != 0);
  const double exponent = (static_cast<double>(winner.x) - largest) / race.temperature;
  if (lane == 0) place.write(p, any_fault, winner, exponent - log(total));
}

template <class T, bool kComposed>
__global__ void __launch_bounds__(kThreads, 2) sample_kernel(SampleParams p) {
  __shared__ Finish shared;
  if (p.is_filtered()) return;
  const Place place(p);
  if (place.settle_known(p)) return;
  const Row<T, kComposed> row(p, place.b, place.n);
  Race race(place.noise(p), p.vocab, p.temperature.get());
#pragma unroll 1
  for (uint32_t chunk = threadIdx.x / 32 * kChunk; chunk < row.vocab; chunk += kBlockStride) {
    float x[kUnits][4];
    race.fault |= row.guide(x, chunk);
    race.run(x, chunk, row.layout);
  }
  finish(shared, race, p, place);
}

// ------------------------------------------------------------------------------------------------- top-k and top-p

// exp(z) for z <= 0 as vec8.h computes it, bit for bit.
__device__ __forceinline__ float exp_negative(float z) {
  const float shifter = 12582912.0f;  // 1.5 * 2^23
  const float shifted = fmaf(z, 1.44269504088896341f, shifter);
  const float n = __fsub_rn(shifted, shifter);
  float r = fmaf(n, -0.693359375f, z);
  r = fmaf(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = fmaf(p, r, 1.3981999507e-3f);
  p = fmaf(p, r, 8.3334519073e-3f);
  p = fmaf(p, r, 4.1665795894e-2f);
  p = fmaf(p, r, 1.6666665459e-1f);
  p = fmaf(p, r, 5.0000001201e-1f);
  p = __fadd_rn(fmaf(p, __fmul_rn(r, r), r), 1.0f);
  const float scaled = __uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
  return z > -87.3f ? scaled : 0.0f;
}

// Tokens with a greater key are kept, and those with this key up to an index.
struct Kept {
  uint32_t key = 0;
  uint32_t last_index = ~0u;

  __device__ __forceinline__ bool has(uint32_t key_of_token, uint32_t index) const {
    return key_of_token > key || (key_of_token == key && index <= last_index);
  }
};

extern __shared__ uint4 staged_keys[];  // [ceil(vocab / 512) * 128], of four tokens each

// The keys of a row, from shared memory or from its logits.
template <class T, bool kComposed, bool kStaged>
struct Keys {
  Row<T, kComposed> row;

  __device__ Layout layout() const { return Layout{kStaged || row.layout.packed}; }

  // Computes the keys of this thread's tokens, and leaves them in shared memory if they are staged. The result has the
  // greatest of them, and as its weight 1 if this thread found a fault.
  __device__ Pass<uint32_t> stage() const {
    Pass<uint32_t> seen;
#pragma unroll 1
    for (uint32_t chunk = threadIdx.x / 32 * kChunk; chunk < row.vocab; chunk += kBlockStride) {
      float x[kUnits][4];
      if (row.guide(x, chunk)) seen.weight = 1;
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        uint32_t key[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          key[k] = order_key(x[unit][k]);
          seen.greatest = max(seen.greatest, key[k]);
        }
        if (!kStaged) continue;
        const uint32_t first = row.layout.element(chunk, unit, 0);
        if (row.layout.packed) {
          staged_keys[first / 4] = make_uint4(key[0], key[1], key[2], key[3]);
        } else {
#pragma unroll
          for (int k = 0; k < 4; ++k) reinterpret_cast<uint32_t*>(staged_keys)[first + 32 * k] = key[k];
        }
      }
    }
    return seen;
  }

  __device__ __forceinline__ void load(uint32_t (&key)[kUnits][4], uint32_t chunk) const {
    if constexpr (kStaged) {
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        const uint4 four = staged_keys[layout().element(chunk, unit, 0) / 4];
        key[unit][0] = four.x;
        key[unit][1] = four.y;
        key[unit][2] = four.z;
        key[unit][3] = four.w;
      }
    } else {
      float x[kUnits][4];
      row.guide(x, chunk);
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
#pragma unroll
        for (int k = 0; k < 4; ++k) key[unit][k] = order_key(x[unit][k]);
      }
    }
  }

  // take(key, index) for every token of this thread.
  template <class Take>
  __device__ __forceinline__ void visit(Take take) const {
#pragma unroll 1
    for (uint32_t chunk = threadIdx.x / 32 * kChunk; chunk < row.vocab; chunk += kBlockStride) {
      uint32_t key[kUnits][4];
      load(key, chunk);
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
#pragma unroll
        for (int k = 0; k < 4; ++k) take(key[unit][k], layout().element(chunk, unit, k));
      }
    }
  }

  // The shortest prefix of `kept`, in descending order and by index among equals, whose weight reaches the target.
  // weigh(key) gives a token's.
  template <class Weight, class Weigh>
  __device__ __forceinline__ Kept prefix(BlockReduce& reduce, const Kept& kept, uint32_t greatest, Weight target,
                                         Weigh weigh) const {
    // Tokens with the least key may have been dropped by index, but find_cut never asks for the weight of that key.
    const auto by_key = [&](auto take) {
      visit([&](uint32_t key, uint32_t) { take(key, [&] { return weigh(key); }); });
    };
    const uint32_t least = max(kept.key, kForbiddenKey);
    const Cut<Weight> cut = find_cut<Weight>(reduce, least, greatest, target, Weight{0}, by_key);
    if (cut.key == kForbiddenKey) return kept;  // nothing is dropped but what is forbidden
    const Weight each = weigh(cut.key);
    const auto by_index = [&](auto take) {
      visit([&](uint32_t key, uint32_t index) {
        if (key == cut.key && kept.has(key, index)) take(~index, [&] { return each; });
      });
    };
    const uint32_t last_index = ~find_cut<Weight>(reduce, 0u, ~0u, target, cut.above, by_index).key;
    return Kept{cut.key, cut.key == kept.key ? min(last_index, kept.last_index) : last_index};
  }
};

template <class T, bool kComposed, bool kStaged>
__global__ void __launch_bounds__(kThreads, 2) filtered_kernel(SampleParams p) {
  __shared__ Finish shared;
  __shared__ BlockReduce::Storage storage;
  if (!p.is_filtered()) return;
  const Place place(p);
  if (place.settle_known(p)) return;
  const Keys<T, kComposed, kStaged> keys{Row<T, kComposed>(p, place.b, place.n)};
  Race race(place.noise(p), p.vocab, p.temperature.get());
  BlockReduce reduce(&storage);
  const Pass<uint32_t> seen = reduce(keys.stage());  // its barrier makes the keys visible
  const float largest = number_of(seen.greatest);
  if (seen.weight > 0 || largest == -kInf) {
    if (threadIdx.x == 0) place.write(p, true, Runner(), 0.0);
    return;
  }

  Kept kept;
  const int64_t top_k = p.top_k.get();
  if (top_k > 0 && top_k < p.vocab) {
    kept = keys.prefix(reduce, kept, seen.greatest, static_cast<uint32_t>(top_k), [](uint32_t) { return 1u; });
  }
  if (p.top_p.get() < 1.0) {
    const double top_p = fmax(p.top_p.get(), DBL_MIN);  // lest 0 keep nothing
    const float inverse_temperature = static_cast<float>(1.0 / race.temperature);
    const auto weigh = [&](uint32_t key) -> double {
      return exp_negative(__fmul_rn(__fsub_rn(number_of(key), largest), inverse_temperature));
    };
    Pass<double> mass;
    keys.visit([&](uint32_t key, uint32_t index) {
      if (kept.has(key, index)) mass.weight += weigh(key);
    });
    kept = keys.prefix(reduce, kept, seen.greatest, top_p * reduce(mass).weight, weigh);
  }

#pragma unroll 1
  for (uint32_t chunk = threadIdx.x / 32 * kChunk; chunk < p.vocab; chunk += kBlockStride) {
    uint32_t key[kUnits][4];
    float x[kUnits][4];
    keys.load(key, chunk);
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const bool in = kept.has(key[unit][k], keys.layout().element(chunk, unit, k));
        x[unit][k] = in ? number_of(key[unit][k]) : -kInf;
      }
    }
    race.run(x, chunk, keys.layout());
  }
  finish(shared, race, p, place);
}

// -------------------------------------------------------------------------------------------------------- launchers

template <class T, bool kComposed>
Status launch_filtered(const SampleParams& p, cudaStream_t stream) {
  const unsigned grid = static_cast<unsigned>(p.batch * p.length);
  if (p.vocab > kMaxStaged) {
    filtered_kernel<T, kComposed, false><<<grid, kThreads, 0, stream>>>(p);
    return check_launch("filtered_kernel");
  }
  const size_t bytes = static_cast<size_t>(ceil_div(p.vocab, kChunk)) * kChunk * sizeof(uint32_t);
  if (bytes > 32 * 1024) {  // beyond 48 KB with what is static it must be asked for
    SHOWO_RETURN_IF_ERROR(check_cuda(
        cudaFuncSetAttribute(filtered_kernel<T, kComposed, true>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(kMaxStaged * sizeof(uint32_t))),
        "filtered_kernel: shared memory"));
  }
  filtered_kernel<T, kComposed, true><<<grid, kThreads, bytes, stream>>>(p);
  return check_launch("filtered_kernel");
}

// Where a limit lies on the device, the host cannot tell which kernel it asks for: both are launched, and one of them
// does nothing.
template <class T, bool kComposed>
Status launch_sample(const SampleParams& p, cudaStream_t stream) {
  const bool unknown = p.top_k.data || p.top_p.data;
  if (unknown || !p.is_filtered()) {
    sample_kernel<T, kComposed><<<static_cast<unsigned>(p.batch * p.length), kThreads, 0, stream>>>(p);
    SHOWO_RETURN_IF_ERROR(check_launch("sample_kernel"));
  }
  return unknown || p.is_filtered() ? launch_filtered<T, kComposed>(p, stream) : ok_status();
}

template <class T>
Status launch_rows(const SampleParams& p, cudaStream_t stream) {
  return p.weights ? launch_sample<T, true>(p, stream) : launch_sample<T, false>(p, stream);
}

}  // namespace
}  // namespace resample

Status sample_tokens_cuda(const SampleParams& p, void* stream) {
  using namespace resample;
  SHOWO_RETURN_IF_ERROR(check_sample(p, false));
  if (p.batch == 0 || p.length == 0) return ok_status();
  SHOWO_CHECK_ARGUMENT(p.batch <= kMaxGridX / p.length, "sample_tokens: %lld rows of logits are too many for a launch",
                       static_cast<long long>(p.batch * p.length));
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case DType::kF16:
      return launch_rows<__half>(p, s);
    case DType::kBF16:
      return launch_rows<__nv_bfloat16>(p, s);
    default:
      return launch_rows<float>(p, s);
  }
}

Status resample_cuda(const SampleParams& sample, const RemaskParams& remask, void* stream) {
  SHOWO_RETURN_IF_ERROR(resample::check_remask(remask, false));  // before anything is launched
  SHOWO_RETURN_IF_ERROR(sample_tokens_cuda(sample, stream));
  return remask_cuda(remask, stream);
}

}  // namespace showo
