// Bias, QK-norm, partial rotary and head split of a fused projection, and the gradient, each in one pass on the GPU.
//
// A block owns up to 64 rows (positions) and 32 heads. It puts the rows' cosines and sines and the four norm vectors
// into shared memory once. A head belongs to a group of 2^n lanes, each holding kChunks vectors of V consecutive
// elements: 16 bytes where the addresses allow, else single elements. A group keeps its head while it walks down the
// rows, so that bias and weights stay in registers, and loads the next row before it works on this one. Means and
// variances (two passes over registers, fp32) and the partners of the rotation come by shuffles within the group.
//
// Global traffic per element: forward one read and one write; backward reads qkv and the incoming gradient and writes
// one gradient. Besides, per block: its tables (none where all its heads are v), its slice of the bias and the norm
// vectors, and in backward one partial sum of each.
// Those are the bytes; the emulator counts 2.5 times as many sectors in forward, which is still to be explained.
//
// Deterministic: partial sums are per block, added over rows in rising order, then over groups in rising order; the
// caller adds the blocks.
#include <cuda_runtime.h>

#include "common/cuda_check.h"
#include "common/launch.h"
#include "rope_qkv/params.h"
#include "rope_qkv/vectors.cuh"

namespace showo {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = static_cast<int>(kRopeMaxRows);
constexpr int kHeads = static_cast<int>(kRopeHeadsPerSplit);
constexpr unsigned kAllLanes = 0xffffffffu;

// ---------------------------------------------------------------------------------------------- a head and its lanes

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

// Vector w of n in shared memory: the fours of all vectors lie together, so that neighbouring lanes read neighbouring
// 16 bytes. Address of element e of vector w: this + e / 4 * four_stride<V>(n) + e % 4.
template <int V>
__device__ inline int vector_at(int w) {
  return V == 1 ? w : 4 * w;
}
template <int V>
__device__ inline int four_stride(int n) {
  return 4 * n;
}
template <int V>
__device__ inline int element_at(int d, int n) {
  return V == 1 ? d : d % V / 4 * 4 * n + d / V * 4 + d % 4;
}

template <int kGroup>
__device__ inline float group_sum(float x) {
#pragma unroll
  for (int step = kGroup / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// What a block keeps in shared memory: the tables of its rows, [row][cos, sin][half], and the norm vectors, [4][D].
struct Shared {
  float* tables;
  float* norm;
  float* scratch;  // backward: [groups][D]
  int64_t* source_row;
  int64_t* sample;
  int64_t* slot;
};

template <int D, int V>
__device__ inline void stage(const RopeQkvParams& p, const Shared& shared, int half, int64_t first_row, int count,
                             bool turned) {
  for (int r = threadIdx.x; r < count; r += kThreads) {
    const int64_t b = (first_row + r) / p.length;
    const int64_t s = (first_row + r) % p.length;
    shared.sample[r] = b;
    shared.source_row[r] = s;
    int64_t slot = s;
    if (p.slots != nullptr) {
      slot = p.slots[b * p.slots_batch_stride + s];
      if (slot < 0 || slot >= p.num_slots) slot = -1;  // writes nothing
    }
    shared.slot[r] = slot;
  }
  if (turned) {
    if (p.norm != nullptr) {
      for (int i = threadIdx.x; i < 4 * D; i += kThreads)
        shared.norm[i / D * D + element_at<V>(i % D, D / V)] = p.norm[i];
    }
    for (int i = threadIdx.x; i < count * half; i += kThreads) {
      const int r = i / half;
      const int at = 2 * r * half + element_at<V>(i % half, half / V);
      const int64_t b = (first_row + r) / p.length;
      const int64_t from = b * p.table_batch_stride + (first_row + r) % p.length * half + i % half;
      shared.tables[at] = p.cos[from];
      shared.tables[at + half] = p.sin[from];
    }
  }
  __syncthreads();
}

// Where a lane's vectors find their partners and angles.
template <int D, int V>
struct Rotation {
  using S = Shape<D, V>;
  int partner[S::kChunks];  // vector; its own where nothing turns
  int angle[S::kChunks];    // vector of the tables
  float sign[S::kChunks];   // of the sine, forward; 0 where nothing turns

  __device__ inline Rotation(int lane, int half) {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      const int w = c * S::kGroup + lane;
      const int half_vectors = half / V;
      const bool first = w < half_vectors;
      const bool second = !first && w < 2 * half_vectors;
      partner[c] = first ? w + half_vectors : second ? w - half_vectors : w;
      angle[c] = second ? w - half_vectors : first ? w : 0;
      sign[c] = first ? -1.0f : second ? 1.0f : 0.0f;
    }
  }

  // Turns y, or turns it back with direction = -1.
  __device__ inline void apply(float (&y)[S::kChunks][V], const float* table, int half, float direction) const {
    const int base = static_cast<int>(threadIdx.x % 32) / S::kGroup * S::kGroup;
    float turned[S::kChunks][V];
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      float cosine[V];
      float sine[V];
      read_floats<V>(cosine, table + vector_at<V>(angle[c]), four_stride<V>(half / V));
      read_floats<V>(sine, table + half + vector_at<V>(angle[c]), four_stride<V>(half / V));
#pragma unroll
      for (int e = 0; e < V; ++e) {
        float other = 0.0f;
#pragma unroll
        for (int from = 0; from < S::kChunks; ++from) {
          const float value = __shfl_sync(kAllLanes, y[from][e], base + partner[c] % S::kGroup);
          if (partner[c] / S::kGroup == from) other = value;
        }
        const float rotated = fmaf(y[c][e], cosine[e], other * (sine[e] * (direction * sign[c])));
        turned[c][e] = sign[c] != 0.0f ? rotated : y[c][e];
      }
    }
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
      for (int e = 0; e < V; ++e) y[c][e] = turned[c][e];
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
  __device__ inline bool turned() const { return kind < 2; }
};

template <class T, int D, int V>
__device__ inline void read_bias(float (&bias)[Shape<D, V>::kChunks][V], const RopeQkvParams& p, const Head& head,
                                 int lane) {
  using S = Shape<D, V>;
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
    const int64_t at = head.column * D + (c * S::kGroup + lane) * V;
#pragma unroll
    for (int e = 0; e < V; ++e) bias[c][e] = 0.0f;
    if (p.bias == nullptr || !head.active) continue;
    if (p.bias_dtype == DType::kF32) {
      read_floats<V>(bias[c], static_cast<const float*>(p.bias) + at, 4);
    } else {
      unpack<T>(*reinterpret_cast<const Raw<T, V>*>(static_cast<const T*>(p.bias) + at), bias[c]);
    }
  }
}

// A lane's vectors of one head in one row, as they are in memory.
template <class T, int D, int V>
struct Values {
  using S = Shape<D, V>;
  Raw<T, V> raw[S::kChunks];

  __device__ inline void load(const T* head, int lane, bool active) {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      raw[c] = active ? *reinterpret_cast<const Raw<T, V>*>(head + (c * S::kGroup + lane) * V) : Raw<T, V>{};
    }
  }
  __device__ inline void get(float (&x)[S::kChunks][V]) const {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) unpack<T>(raw[c], x[c]);
  }
  static __device__ inline void store(T* head, int lane, const float (&x)[S::kChunks][V]) {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      pack<T>(reinterpret_cast<Raw<T, V>*>(head + (c * S::kGroup + lane) * V), x[c]);
    }
  }
};

// x becomes (x - mean) * rstd; returns rstd.
template <int D, int V>
__device__ inline float normalise(float (&x)[Shape<D, V>::kChunks][V], float eps) {
  using S = Shape<D, V>;
  float sum = 0.0f;
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
    for (int e = 0; e < V; ++e) sum += x[c][e];
  }
  const float mean = group_sum<S::kGroup>(sum) * (1.0f / D);
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
  const float rstd = fmaf(guess * 0.5f, fmaf(-variance * guess, guess, 1.0f), guess);
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
    for (int e = 0; e < V; ++e) x[c][e] *= rstd;
  }
  return rstd;
}

template <int D, int V>
__device__ inline void read_norm(float (&x)[Shape<D, V>::kChunks][V], const float* vector, int lane) {
  using S = Shape<D, V>;
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
    read_floats<V>(x[c], vector + vector_at<V>(c * S::kGroup + lane), four_stride<V>(D / V));
  }
}

// ------------------------------------------------------------------------------------------------------------ kernels

#define SHOWO_ROPE_SHARED(shared)                         \
  extern __shared__ float4 dynamic_memory[];              \
  __shared__ int64_t row_facts[3][kRows];                 \
  Shared shared;                                          \
  shared.norm = reinterpret_cast<float*>(dynamic_memory); \
  shared.tables = shared.norm + 4 * D;                    \
  shared.scratch = shared.tables + kRows * 2 * half;      \
  shared.source_row = row_facts[0];                       \
  shared.sample = row_facts[1];                           \
  shared.slot = row_facts[2]

template <class T, int D, int V>
__global__ void __launch_bounds__(kThreads, 2) rope_qkv_forward_kernel(RopeQkvParams p, int chunk_rows, int half) {
  using S = Shape<D, V>;
  SHOWO_ROPE_SHARED(shared);
  const int64_t num_rows = p.batch * p.length;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * chunk_rows;
  const int count = static_cast<int>(num_rows - first_row < chunk_rows ? num_rows - first_row : chunk_rows);
  const int64_t first_head = static_cast<int64_t>(blockIdx.y) * kHeads;
  stage<D, V>(p, shared, half, first_row, count, first_head < p.heads + p.kv_heads);

  const int lane = threadIdx.x % S::kGroup;
  const Rotation<D, V> rotation(lane, half);
#pragma unroll 1
  for (int pass = 0; pass < S::kPasses; ++pass) {
    const int offset = pass * S::kGroups + threadIdx.x / S::kGroup;
    const Head head(p, first_head + offset, offset < kHeads);
    const bool any_turned = __any_sync(kAllLanes, head.active && head.turned());
    float bias[S::kChunks][V];
    float weight[S::kChunks][V];
    float norm_bias[S::kChunks][V];
    read_bias<T, D, V>(bias, p, head, lane);
    if (any_turned && p.norm != nullptr) {
      const float* vectors = shared.norm + (head.kind == 1 ? 2 * D : 0);
      read_norm<D, V>(weight, vectors, lane);
      read_norm<D, V>(norm_bias, vectors + D, lane);
    }
    const T* from = static_cast<const T*>(p.qkv) + head.column * D;
    const RopeHeads out = head.kind == 0 ? p.out[0] : head.kind == 1 ? p.out[1] : p.out[2];
    T* to = static_cast<T*>(out.data) + head.local * out.head_stride;

    Values<T, D, V> next;
    next.load(from + shared.sample[0] * p.qkv_batch_stride + shared.source_row[0] * p.qkv_row_stride, lane,
              head.active);
#pragma unroll 1
    for (int r = 0; r < count; ++r) {
      float x[S::kChunks][V];
      next.get(x);
      if (r + 1 < count) {
        next.load(from + shared.sample[r + 1] * p.qkv_batch_stride + shared.source_row[r + 1] * p.qkv_row_stride, lane,
                  head.active);
      }
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
        for (int e = 0; e < V; ++e) x[c][e] += bias[c][e];
      }
      if (any_turned) {  // the same for the whole warp; its v heads drop the result
        float y[S::kChunks][V];
#pragma unroll
        for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
          for (int e = 0; e < V; ++e) y[c][e] = x[c][e];
        }
        if (p.norm != nullptr) {
          normalise<D, V>(y, p.eps);
#pragma unroll
          for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
            for (int e = 0; e < V; ++e) y[c][e] = fmaf(y[c][e], weight[c][e], norm_bias[c][e]);
          }
        }
        if (half > 0) rotation.apply(y, shared.tables + 2 * r * half, half, 1.0f);
#pragma unroll
        for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
          for (int e = 0; e < V; ++e) x[c][e] = head.turned() ? y[c][e] : x[c][e];
        }
      }
      const int64_t row = head.kind == 0 ? shared.source_row[r] : shared.slot[r];
      if (head.active && row >= 0) {
        Values<T, D, V>::store(to + shared.sample[r] * out.batch_stride + row * out.row_stride, lane, x);
      }
    }
  }
}

// With g the gradient of y and h = (x - mean) rstd:  dnorm_bias += g,  dweight += g h,
// dx = rstd (w g - mean(w g) - h mean(w g h)).
template <class T, int D, int V>
__global__ void __launch_bounds__(kThreads, Shape<D, V>::kChunks* V > 8 ? 1 : 2)  // 96: more registers than 128
    rope_qkv_backward_kernel(RopeQkvParams p, int chunk_rows, int half) {
  using S = Shape<D, V>;
  SHOWO_ROPE_SHARED(shared);
  const int64_t num_rows = p.batch * p.length;
  const int64_t width = (p.heads + 2 * p.kv_heads) * D;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * chunk_rows;
  const int count = static_cast<int>(num_rows - first_row < chunk_rows ? num_rows - first_row : chunk_rows);
  const int64_t first_head = static_cast<int64_t>(blockIdx.y) * kHeads;
  stage<D, V>(p, shared, half, first_row, count, first_head < p.heads + p.kv_heads);

  const int lane = threadIdx.x % S::kGroup;
  const int group = threadIdx.x / S::kGroup;
  const Rotation<D, V> rotation(lane, half);
  float dnorm_sum[2] = {0.0f, 0.0f};  // thread (kind, d): over all groups and passes, dweight and dnorm_bias
#pragma unroll 1
  for (int pass = 0; pass < S::kPasses; ++pass) {
    const int offset = pass * S::kGroups + group;
    const Head head(p, first_head + offset, offset < kHeads);
    const bool any_turned = __any_sync(kAllLanes, head.active && head.turned());
    const bool normed = any_turned && p.norm != nullptr;
    float bias[S::kChunks][V];
    float weight[S::kChunks][V];
    float dbias[S::kChunks][V] = {};
    float dweight[S::kChunks][V] = {};
    float dnorm_bias[S::kChunks][V] = {};
    read_bias<T, D, V>(bias, p, head, lane);
    if (normed) read_norm<D, V>(weight, shared.norm + (head.kind == 1 ? 2 * D : 0), lane);
    const RopeHeads out = head.kind == 0 ? p.out[0] : head.kind == 1 ? p.out[1] : p.out[2];
    const T* from = static_cast<const T*>(p.qkv) + head.column * D;
    const T* grad_from = static_cast<const T*>(out.data) + head.local * out.head_stride;
    const bool needs_x = normed && head.active && head.turned();

#pragma unroll 1
    for (int r = 0; r < count; ++r) {
      const int64_t b = shared.sample[r];
      const int64_t s = shared.source_row[r];
      Values<T, D, V> raw_grad;
      Values<T, D, V> raw_x;
      raw_grad.load(grad_from + b * out.batch_stride + s * out.row_stride, lane, head.active);
      raw_x.load(from + b * p.qkv_batch_stride + s * p.qkv_row_stride, lane, needs_x);
      float g[S::kChunks][V];
      raw_grad.get(g);
      if (any_turned) {
        float dx[S::kChunks][V];
#pragma unroll
        for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
          for (int e = 0; e < V; ++e) dx[c][e] = g[c][e];
        }
        if (half > 0) rotation.apply(dx, shared.tables + 2 * r * half, half, -1.0f);
        if (normed) {
          float h[S::kChunks][V];
          raw_x.get(h);
#pragma unroll
          for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
            for (int e = 0; e < V; ++e) h[c][e] += bias[c][e];
          }
          const float rstd = normalise<D, V>(h, p.eps);
          float sum = 0.0f;
          float product = 0.0f;
#pragma unroll
          for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
            for (int e = 0; e < V; ++e) {
              dnorm_bias[c][e] += dx[c][e];
              dweight[c][e] = fmaf(dx[c][e], h[c][e], dweight[c][e]);
              dx[c][e] *= weight[c][e];
              sum += dx[c][e];
              product = fmaf(dx[c][e], h[c][e], product);
            }
          }
          sum = group_sum<S::kGroup>(sum) * (1.0f / D);
          product = group_sum<S::kGroup>(product) * (1.0f / D);
#pragma unroll
          for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
            for (int e = 0; e < V; ++e) dx[c][e] = rstd * (dx[c][e] - fmaf(h[c][e], product, sum));
          }
        }
#pragma unroll
        for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
          for (int e = 0; e < V; ++e) g[c][e] = head.turned() ? dx[c][e] : g[c][e];
        }
      }
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
        for (int e = 0; e < V; ++e) dbias[c][e] += g[c][e];
      }
      if (head.active) {
        Values<T, D, V>::store(static_cast<T*>(p.dqkv) + (first_row + r) * width + head.column * D, lane, g);
      }
    }

    if (p.dbias != nullptr && head.active) {
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
        write_floats<V>(p.dbias + blockIdx.x * width + head.column * D + (c * S::kGroup + lane) * V, dbias[c], 4);
      }
    }
    if (p.dnorm != nullptr && first_head + pass * S::kGroups < p.heads + p.kv_heads) {  // the same for the whole block
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        __syncthreads();  // the scratch has been read
#pragma unroll
        for (int c = 0; c < S::kChunks; ++c) {
          write_floats<V>(shared.scratch + group * D + vector_at<V>(c * S::kGroup + lane),
                          which == 0 ? dweight[c] : dnorm_bias[c], four_stride<V>(D / V));
        }
        __syncthreads();
        if (threadIdx.x < 2 * D) {
          const int kind = threadIdx.x / D;
          const int at = element_at<V>(threadIdx.x % D, D / V);
          for (int i = 0; i < S::kGroups; ++i) {
            const int other_offset = pass * S::kGroups + i;
            const Head other(p, first_head + other_offset, other_offset < kHeads);
            if (other.active && other.kind == kind) dnorm_sum[which] += shared.scratch[i * D + at];
          }
        }
      }
    }
  }
  if (p.dnorm != nullptr && threadIdx.x < 2 * D) {
    float* to = p.dnorm + (static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * 4 * D;
    const int kind = threadIdx.x / D;
    to[2 * kind * D + threadIdx.x % D] = dnorm_sum[0];
    to[(2 * kind + 1) * D + threadIdx.x % D] = dnorm_sum[1];
  }
}

// ---------------------------------------------------------------------------------------------------------- launchers

template <class T, int D, int V, bool kBackward>
Status launch_shape(const RopeQkvParams& p, cudaStream_t stream) {
  const int64_t num_rows = p.batch * p.length;
  const dim3 grid(static_cast<unsigned>(rope_qkv_chunks(num_rows)),
                  static_cast<unsigned>(rope_qkv_splits(p.heads + 2 * p.kv_heads)));
  const int chunk_rows = static_cast<int>(rope_qkv_chunk_rows(num_rows));
  const int half = static_cast<int>(p.rotary_dim / 2);
  size_t bytes = (4 * D + kRows * p.rotary_dim) * sizeof(float);
  if constexpr (kBackward) {
    bytes += p.dnorm == nullptr ? 0 : Shape<D, V>::kGroups * D * sizeof(float);
    rope_qkv_backward_kernel<T, D, V><<<grid, kThreads, bytes, stream>>>(p, chunk_rows, half);
    return check_launch("rope_qkv_backward_kernel");
  } else {
    rope_qkv_forward_kernel<T, D, V><<<grid, kThreads, bytes, stream>>>(p, chunk_rows, half);
    return check_launch("rope_qkv_forward_kernel");
  }
}

// Whether rows, heads and the two halves of a rotation fall into whole vectors of `v` elements.
bool fits_vectors(const RopeQkvParams& p, int v) {
  const uintptr_t bytes = v * element_size(p.dtype);
  bool fits = p.rotary_dim / 2 % v == 0 && is_aligned(p.qkv, bytes) && p.qkv_batch_stride % v == 0 &&
              p.qkv_row_stride % v == 0 && is_aligned(p.dqkv, bytes) && is_aligned(p.bias, 16) &&
              is_aligned(p.dbias, 16);
  for (const RopeHeads& out : p.out) {
    fits = fits && is_aligned(out.data, bytes) && out.batch_stride % v == 0 && out.head_stride % v == 0 &&
           out.row_stride % v == 0;
  }
  return fits;
}

template <class T, bool kBackward, int D>
Status launch_dim(const RopeQkvParams& p, cudaStream_t stream) {
  // 96 is three times a power of two: a lane holds three vectors, so they are smaller.
  constexpr int V = D == 96 ? 4 : 16 / sizeof(T);
  if (fits_vectors(p, V)) return launch_shape<T, D, V, kBackward>(p, stream);
  return launch_shape<T, D, 1, kBackward>(p, stream);
}

template <class T, bool kBackward>
Status launch_dtype(const RopeQkvParams& p, cudaStream_t stream) {
  switch (p.head_dim) {
    case 32:
      return launch_dim<T, kBackward, 32>(p, stream);
    case 64:
      return launch_dim<T, kBackward, 64>(p, stream);
    case 96:
      return launch_dim<T, kBackward, 96>(p, stream);
    case 128:
      return launch_dim<T, kBackward, 128>(p, stream);
    default:
      return invalid_argument("rope_qkv: no kernel for head_dim %lld", static_cast<long long>(p.head_dim));
  }
}

template <bool kBackward>
Status launch(const RopeQkvParams& p, void* stream) {
  const int64_t num_rows = p.batch * p.length;
  const int64_t total_heads = p.heads + 2 * p.kv_heads;
  if (num_rows <= 0 || total_heads <= 0) return ok_status();
  SHOWO_CHECK_ARGUMENT(rope_qkv_chunks(num_rows) <= kMaxGridX && rope_qkv_splits(total_heads) <= kMaxGridY,
                       "rope_qkv: %lld rows of %lld heads are too many for one launch",
                       static_cast<long long>(num_rows), static_cast<long long>(total_heads));
  SHOWO_CHECK_ARGUMENT(p.rotary_dim >= 0 && p.rotary_dim <= p.head_dim && p.rotary_dim % 2 == 0,
                       "rope_qkv: rotary_dim %lld is not an even number up to head_dim %lld",
                       static_cast<long long>(p.rotary_dim), static_cast<long long>(p.head_dim));
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case DType::kF32:
      return launch_dtype<float, kBackward>(p, s);
    case DType::kF16:
      return launch_dtype<__half, kBackward>(p, s);
    case DType::kBF16:
      return launch_dtype<__nv_bfloat16, kBackward>(p, s);
    default:
      return invalid_argument("rope_qkv: no kernel for dtype %s", dtype_name(p.dtype));
  }
}

}  // namespace

Status rope_qkv_forward_cuda(const RopeQkvParams& params, void* stream) { return launch<false>(params, stream); }

Status rope_qkv_backward_cuda(const RopeQkvParams& params, void* stream) { return launch<true>(params, stream); }

}  // namespace showo
