// Selection inside a block without sorting: the greatest key whose upper set (all keys at least as great) reaches a
// target weight.
//
// The search is a bisection over 32-bit keys. Every pass visits the keys of the block, ends with one reduction and one
// barrier, and moves the bounds to keys that exist; so the number of passes is about the logarithm of the number of
// distinct keys between the bounds. Longer keys, and ties by index, are searched word by word: the next search is over
// the next word of those keys that equal the result so far, and its target is what the greater keys have left of the
// target. The sums have a fixed order, so results do not vary from run to run.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/ptx.cuh"

namespace showo::resample {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Unsigned integers in the order of the numbers; both zeros get one key.
__device__ __forceinline__ uint32_t order_key(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ uint64_t order_key(double value) {
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(value + 0.0));
  return bits >> 63 ? ~bits : bits | (uint64_t{1} << 63);
}

__device__ __forceinline__ float number_of(uint32_t key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

template <int kLanes>
__device__ __forceinline__ double sum_lanes(double value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// What a pass over the keys finds out: of the upper half of the keys in doubt, weight and least key, and the greatest
// key of the lower half.
template <class Weight>
struct Pass {
  Weight weight = 0;
  uint32_t least = ~0u;
  uint32_t greatest = 0;
};

// Reductions over the block, one barrier each: a buffer is written again only after the barrier of the next reduction,
// when everybody has read it.
class BlockReduce {
 public:
  struct Storage {
    double mass[2][kWarps];
    uint32_t count[2][kWarps], least[2][kWarps], greatest[2][kWarps];
  };

  __device__ explicit BlockReduce(Storage* storage) : storage_(storage) {}

  template <class Weight>
  __device__ Pass<Weight> operator()(Pass<Weight> mine) {
    constexpr bool kMass = sizeof(Weight) == sizeof(double);
    const int warp = threadIdx.x / 32, other = threadIdx.x % kWarps;
    const uint32_t least = __reduce_min_sync(kAllLanes, mine.least);
    const uint32_t greatest = __reduce_max_sync(kAllLanes, mine.greatest);
    Weight weight;
    if constexpr (kMass) {
      weight = sum_lanes<32>(mine.weight);
    } else {
      weight = __reduce_add_sync(kAllLanes, mine.weight);
    }
    if (threadIdx.x % 32 == 0) {
      if constexpr (kMass) {
        storage_->mass[turn_][warp] = weight;
      } else {
        storage_->count[turn_][warp] = weight;
      }
      storage_->least[turn_][warp] = least;
      storage_->greatest[turn_][warp] = greatest;
    }
    __syncthreads();
    Pass<Weight> all;
    all.least = __reduce_min_sync(kAllLanes, storage_->least[turn_][other]);
    all.greatest = __reduce_max_sync(kAllLanes, storage_->greatest[turn_][other]);
    if constexpr (kMass) {
      all.weight = sum_lanes<kWarps>(storage_->mass[turn_][other]);
    } else {
      all.weight = __reduce_add_sync(kAllLanes, threadIdx.x % 32 < kWarps ? storage_->count[turn_][other] : 0u);
    }
    turn_ ^= 1;
    return all;
  }

 private:
  Storage* storage_;
  int turn_ = 0;
};

template <class Weight>
struct Cut {
  uint32_t key;  // the greatest key whose upper set reaches the target; `low` if none does
  Weight above;  // weight of the greater keys
};

// Over the keys in [low, high]; `above` is the weight of what is known to lie above all of them. visit(take) calls
// take(key, weight) for every key of this thread, weight() being called only if it counts. All threads get the result.
template <class Weight, class Visit>
__device__ __forceinline__ Cut<Weight> find_cut(BlockReduce& reduce, uint32_t low, uint32_t high, Weight target,
                                                Weight above, Visit visit) {
  while (low < high) {
    const uint32_t middle = high - (high - low) / 2;
    Pass<Weight> pass;
    visit([&](uint32_t key, auto weight) {
      if (key - low > high - low) return;  // unsigned: outside on either side
      if (key >= middle) {
        pass.weight += weight();
        pass.least = min(pass.least, key);
      } else {
        pass.greatest = max(pass.greatest, key);
      }
    });
    pass = reduce(pass);
    if (above + pass.weight >= target) {
      low = pass.least;
    } else {
      above += pass.weight;
      high = max(pass.greatest, low);
    }
  }
  return Cut<Weight>{low, above};
}

}  // namespace showo::resample
