// What the forward and backward kernels share: how a thread block is laid out over rows and heads, what it keeps in
// shared memory, and the normalisation and rotation of a head that lies in the registers of a group of lanes.
//
// A block owns a chunk of rows (positions) and 32 heads. A head belongs to a group of 2^n lanes, each holding kChunks
// vectors of V consecutive elements: 16 bytes where the addresses allow, else single elements. A group keeps its head
// while it walks down the rows, so that bias, weights and sums stay in registers. Cosines and sines of 32 rows at a
// time and the four norm vectors are in shared memory. Means and variances (two passes over registers, fp32) and the
// partners of the rotation come by shuffles within the group.
#pragma once

#include <cuda_runtime.h>

#include "rope_qkv/params.h"
#include "rope_qkv/vectors.cuh"

namespace showo {
namespace {

constexpr int kThreads = 256;
constexpr int kTileRows = 32;  // rows whose tables are in shared memory at a time: 32 KiB if 128 dims turn
constexpr int kHeads = static_cast<int>(kRopeHeadsPerSplit);

constexpr int power_of_two_in(int n) { return n % 2 == 0 && n < 64 ? 2 * power_of_two_in(n / 2) : 1; }

template <int D, int V>
struct Shape {
  static constexpr int kVectors = D / V;
  static constexpr int kPower = kVectors >= 64 ? 32 : power_of_two_in(kVectors);
  static constexpr int kGroup = kPower < 32 ? kPower : 32;  // lanes of a head
  static constexpr int kChunks = kVectors / kGroup;         // vectors of a lane: lane, lane + kGroup, ...
  static constexpr int kGroups = kThreads / kGroup;
  static constexpr int kPasses = (kHeads + kGroups - 1) / kGroups;
};

// A lane's part of a head, or of a vector as long as a head.
template <int D, int V>
using Floats = float[Shape<D, V>::kChunks][V];

template <int kGroup>
__device__ inline float group_sum(float x) {
#pragma unroll
  for (int step = kGroup / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// ------------------------------------------------------------------------------------------------- rows and heads

// The first row of a block, and how many it has.
struct Chunk {
  int64_t first_row;
  int count;
  int64_t batch;      // of the first row
  uint32_t position;  // of the first row, in its sample

  __device__ inline Chunk(const RopeQkvParams& p, int chunk_rows) {
    const int64_t num_rows = p.batch * p.length;
    first_row = static_cast<int64_t>(blockIdx.x) * chunk_rows;
    count = static_cast<int>(num_rows - first_row < chunk_rows ? num_rows - first_row : chunk_rows);
    batch = first_row / p.length;
    position = static_cast<uint32_t>(first_row - batch * p.length);
  }
};

// Walks down the rows of a strided tensor, from one sample into the next.
struct RowWalk {
  int64_t offset;
  int64_t row_stride;
  int64_t batch_stride;
  int64_t batch;
  uint32_t position;

  __device__ inline RowWalk(const Chunk& chunk, int64_t batch_stride, int64_t row_stride)
      : offset(chunk.batch * batch_stride + chunk.position * row_stride),
        row_stride(row_stride),
        batch_stride(batch_stride),
        batch(chunk.batch),
        position(chunk.position) {}

  __device__ inline void next(uint32_t length) {
    offset += row_stride;
    if (++position == length) {
      position = 0;
      offset = ++batch * batch_stride;
    }
  }
};

// The head that a group works on in one pass.
struct Head {
  int64_t column;  // in the order q, k, v
  int64_t local;   // within its own tensor
  int kind;        // 0 q, 1 k, 2 v
  bool active;

  __device__ inline Head(const RopeQkvParams& p, int64_t index, bool exists) {
    column = index;
    active = exists && index < p.heads + 2 * p.kv_heads;
    kind = index < p.heads ? 0 : index < p.heads + p.kv_heads ? 1 : 2;
    local = index - (kind == 0 ? 0 : kind == 1 ? p.heads : p.heads + p.kv_heads);
  }
  // Whether it is normalised and rotated.
  __device__ inline bool turned() const { return active && kind < 2; }
  __device__ inline RopeRows source(const RopeQkvParams& p) const {
    return kind == 0 ? p.in[0] : kind == 1 ? p.in[1] : p.in[2];
  }
  __device__ inline RopeHeads target(const RopeQkvParams& p) const {
    return kind == 0 ? p.out[0] : kind == 1 ? p.out[1] : p.out[2];
  }
};

// A lane's vectors of one head in one row, as they are in memory.
template <class T, int D, int V>
struct Values {
  using S = Shape<D, V>;
  Raw<T, V> raw[S::kChunks];

  // Zeros, without a memory access, where not `active`.
  __device__ inline void load(const T* head, int lane, bool active) {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      raw[c] = load_if(reinterpret_cast<const Raw<T, V>*>(head + (c * S::kGroup + lane) * V), active);
    }
  }
  __device__ inline void get(Floats<D, V>& x) const {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) unpack<T>(raw[c], x[c]);
  }
  static __device__ inline void store(T* head, int lane, const Floats<D, V>& x, bool active) {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      Raw<T, V> raw;
      pack<T>(&raw, x[c]);
      store_if(reinterpret_cast<Raw<T, V>*>(head + (c * S::kGroup + lane) * V), raw, active);
    }
  }
};

// The bias of the group's head; zeros where not `wanted`.
template <class T, int D, int V>
__device__ inline void read_bias(Floats<D, V>& bias, const RopeQkvParams& p, const Head& head, int lane, bool wanted) {
  using S = Shape<D, V>;
  wanted = wanted && p.bias != nullptr;
  if (p.bias_dtype == DType::kF32) {
    const float* from = static_cast<const float*>(p.bias) + head.column * D;
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) load_floats_if<V>(bias[c], from + c * S::kGroup * V, lane, wanted);
  } else {
    Values<T, D, V> values;
    values.load(static_cast<const T*>(p.bias) + head.column * D, lane, wanted);
    values.get(bias);
  }
}

// --------------------------------------------------------------------------------------------------- shared memory

// Tables, norm vectors and sums lie in shared memory in the order of in_shared (vectors.cuh).
struct Shared {
  float* norm;     // [4][D]: weight of q, of k, bias of q, of k
  float* cos;      // [kTileRows][rotary_dim], as it multiplies the element itself
  float* sin;      // the same, as it multiplies the partner: negative in the first half
  float* sums;     // backward: [groups][D]
  int64_t* slots;  // [kTileRows], -1: the row is not written

  __device__ inline Shared(float* dynamic, int64_t* slots, int head_dim, int rotary_dim)
      : norm(dynamic),
        cos(dynamic + 4 * head_dim),
        sin(cos + kTileRows * rotary_dim),
        sums(sin + kTileRows * rotary_dim),
        slots(slots) {}

  static size_t bytes(int64_t head_dim, int64_t rotary_dim, int64_t sums) {
    return (4 * head_dim + 2 * kTileRows * rotary_dim + sums) * sizeof(float);
  }
};

template <int D, int V>
__device__ inline void stage_norm(const RopeQkvParams& p, const Shared& shared) {
  for (int i = threadIdx.x; i < 4 * D; i += kThreads) {
    const int row = i / D;
    shared.norm[in_shared<V>((row % 2 * 2 + row / 2) * D + i % D)] = p.norm[i];
  }
  __syncthreads();
}

// Puts the tables and slots of rows [first, first + rows) of the chunk into shared memory; direction -1 turns back.
template <int V>
__device__ inline void stage_rows(const RopeQkvParams& p, const Shared& shared, const Chunk& chunk, int first, int rows,
                                  bool tables, bool slots, float direction) {
  const uint32_t length = static_cast<uint32_t>(p.length);
  const uint32_t from_start = chunk.position + static_cast<uint32_t>(first);  // of the first row's sample
  __syncthreads();                                                            // the rows before have been read
  if (tables) {
    constexpr int kStep = V == 1 ? 1 : 4;
    const int turning = static_cast<int>(p.rotary_dim);
    const int steps = turning / kStep;
    const int half_steps = steps / 2;
    for (int i = threadIdx.x; i < rows * steps; i += kThreads) {
      const int r = i / steps;
      const int step = i - r * steps;
      const bool second = step >= half_steps;
      const uint32_t row = from_start + r;
      const int64_t from = (chunk.batch + row / length) * p.table_batch_stride +
                           static_cast<int64_t>(row % length) * (turning / 2) +
                           (second ? step - half_steps : step) * kStep;
      const int to = r * turning + in_shared<V>(step * kStep);
      float cosine[kStep];
      float sine[kStep];
      read_floats<kStep>(cosine, p.cos + from, 0);
      read_floats<kStep>(sine, p.sin + from, 0);
#pragma unroll
      for (int e = 0; e < kStep; ++e) sine[e] *= second ? direction : -direction;
      write_floats<kStep>(shared.cos + to, 0, cosine);
      write_floats<kStep>(shared.sin + to, 0, sine);
    }
  }
  if (slots) {
    for (int r = threadIdx.x; r < rows; r += kThreads) {
      const uint32_t row = from_start + r;
      const int64_t slot = p.slots[(chunk.batch + row / length) * p.slots_batch_stride + row % length];
      shared.slots[r] = slot >= 0 && slot < p.num_slots ? slot : -1;
    }
  }
  __syncthreads();
}

// Weight (row 0) or bias (row 1) of q or k; `otherwise` where the head is not turned.
template <int D, int V>
__device__ inline void read_norm(Floats<D, V>& x, const Shared& shared, int row, const Head& head, int lane,
                                 float otherwise) {
  using S = Shape<D, V>;
  const int first = (2 * row + (head.kind == 1 ? 1 : 0)) * S::kVectors;
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
    read_floats<V>(x[c], shared.norm, first + c * S::kGroup + lane);
#pragma unroll
    for (int e = 0; e < V; ++e) x[c][e] = head.turned() ? x[c][e] : otherwise;
  }
}

// ----------------------------------------------------------------------------------------------------- arithmetic

// x becomes (x - mean) * rstd, and rstd is returned; where not `turned`, x stays and 1 is returned.
template <int D, int V>
__device__ inline float normalise(Floats<D, V>& x, float eps, bool turned) {
  using S = Shape<D, V>;
  float sum = 0.0f;
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
    for (int e = 0; e < V; ++e) sum += x[c][e];
  }
  const float total = group_sum<S::kGroup>(sum);
  const float mean = turned ? total * (1.0f / D) : 0.0f;
  float squares = 0.0f;
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
    for (int e = 0; e < V; ++e) {
      x[c][e] -= mean;
      squares = fmaf(x[c][e], x[c][e], squares);
    }
  }
  const float variance = group_sum<S::kGroup>(squares) * (1.0f / D) + eps;
  const float guess = rsqrtf(variance);
  // One Newton step: the approximation alone is off by up to two units in the last place.
  const float better = fmaf(guess * 0.5f, fmaf(-variance * guess, guess, 1.0f), guess);
  const float rstd = turned ? better : 1.0f;
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
    for (int e = 0; e < V; ++e) x[c][e] *= rstd;
  }
  return rstd;
}

// Where a lane's vectors find their partners.
template <int D, int V>
struct Rotation {
  using S = Shape<D, V>;
  int partner[S::kChunks];  // vector; its own where nothing turns
  bool turns[S::kChunks];

  __device__ inline Rotation(int lane, int rotary_dim, bool turned) {
    const int half = rotary_dim / 2 / V;
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      const int w = c * S::kGroup + lane;
      turns[c] = turned && w < 2 * half;
      partner[c] = w < half ? w + half : w < 2 * half ? w - half : w;
    }
  }

  // cos, sin: of the row, in shared memory.
  __device__ inline void apply(Floats<D, V>& y, const float* cos, const float* sin, int lane) const {
    const int base = static_cast<int>(threadIdx.x % 32) / S::kGroup * S::kGroup;
    Floats<D, V> others;
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        float other = 0.0f;
#pragma unroll
        for (int from = 0; from < S::kChunks; ++from) {
          const float value = __shfl_sync(kAllLanes, y[from][e], base + partner[c] % S::kGroup);
          if (partner[c] / S::kGroup == from) other = value;
        }
        others[c][e] = other;
      }
    }
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      if (turns[c]) {
        float cosine[V];
        float sine[V];
        read_floats<V>(cosine, cos, c * S::kGroup + lane);
        read_floats<V>(sine, sin, c * S::kGroup + lane);
#pragma unroll
        for (int e = 0; e < V; ++e) y[c][e] = fmaf(y[c][e], cosine[e], others[c][e] * sine[e]);
      }
    }
  }
};

}  // namespace
}  // namespace showo
