// The gradient of rope_qkv, in one pass on the GPU.
//
// With g the gradient of y = h weight + norm_bias, h = (x - mean) rstd, after the rotation has been turned back:
//   dnorm_bias += g    dweight += g h    dx = rstd (w g - mean(w g) - h mean(w g h))    dbias += dx
//
// Tiling: block.cuh; each group of lanes loads the next row before it works on this one, and keeps the sums of its head
// in registers.
//
// Global traffic. Each element of the incoming gradients is read once, each element of q and k is read once if they are
// normalised, and each element of dqkv is written once, in whole sectors. In addition a block reads its slice of the
// bias and the norm vectors once and, at most once for each pass over its heads, the cosines and sines of its rows, and
// writes one partial sum for each parameter. There are at most kRopeBlocks blocks, however many rows there are, so that
// at Show-o's sizes this is 1.5% more for a training batch.
//
// Deterministic: a block adds over its rows in rising order, then over its heads in rising order; the caller adds the
// blocks.
#include "common/cuda_check.h"
#include "rope_qkv/block.cuh"
#include "rope_qkv/instances.cuh"

namespace showo {
namespace {

// Adds the lanes' sums over the heads of each kind: thread kind * D + d gets element d of q or k in `total`. All
// threads of the block must call it; heads [first_head, first_head + kGroups) are in groups 0, 1, ...
template <int D, int V>
__device__ inline void add_heads(float& total, const Floats<D, V>& sum, const RopeQkvParams& p, float* scratch,
                                 int64_t first_head) {
  using S = Shape<D, V>;
  const int lane = threadIdx.x % S::kGroup;
  __syncthreads();  // the scratch has been read
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
    write_floats<V>(scratch, threadIdx.x / S::kGroup * S::kVectors + c * S::kGroup + lane, sum[c]);
  }
  __syncthreads();
  if (threadIdx.x < 2 * D) {
    const bool k = threadIdx.x >= D;
    const int64_t from = (k ? p.heads : 0) - first_head;
    const int64_t end = (k ? p.heads + p.kv_heads : p.heads) - first_head;
    constexpr int kHeadsHere = S::kGroups < kHeads ? S::kGroups : kHeads;
    const int first = from < 0 ? 0 : from < kHeadsHere ? static_cast<int>(from) : kHeadsHere;
    const int last = end < 0 ? 0 : end < kHeadsHere ? static_cast<int>(end) : kHeadsHere;
    for (int i = first; i < last; ++i) total += scratch[in_shared<V>(i * D + threadIdx.x % D)];
  }
}

// What a lane adds up over the rows, of the elements of its head that it holds.
template <int D, int V>
struct RowSums {
  Floats<D, V> bias = {};
  Floats<D, V> weight = {};
  Floats<D, V> norm_bias = {};
};

// The gradients of one head, row by row: where a group of lanes reads dy and x and where it writes dx.
template <class T, int D, int V>
struct GradientRows {
  const T* x;
  const T* grad;
  T* to;
  int64_t to_stride;
  RowWalk source;
  RowWalk grad_source;
  Values<T, D, V> next_grad;
  Values<T, D, V> next_x;

  __device__ inline GradientRows(const RopeQkvParams& p, const Chunk& chunk, const Head& head, const RopeRows& in,
                                 const RopeHeads& out)
      : x(static_cast<const T*>(in.data) + head.local * D),
        grad(static_cast<const T*>(out.data) + head.local * out.head_stride),
        source(chunk, in.batch_stride, in.row_stride),
        grad_source(chunk, out.batch_stride, out.row_stride) {
    const int64_t own_heads = head.kind == 0 ? p.heads : p.kv_heads;
    to_stride = (p.in_three ? own_heads : p.heads + 2 * p.kv_heads) * D;
    to = static_cast<T*>(p.dqkv) + chunk.first_row * to_stride +
         (p.in_three ? (head.column - head.local) * p.batch * p.length + head.local : head.column) * D;
  }
  __device__ inline void load(int lane, bool active, bool needs_x) {
    next_grad.load(grad + grad_source.offset, lane, active);
    next_x.load(x + source.offset, lane, needs_x);
  }
  __device__ inline void next(uint32_t length) {
    grad_source.next(length);
    source.next(length);
  }
};

// g, the gradient of a normalised head, becomes that of x, which is given without its bias and overwritten.
template <int D, int V>
__device__ inline void norm_backward(Floats<D, V>& g, Floats<D, V>& x, RowSums<D, V>& sums, const Floats<D, V>& bias,
                                     const Floats<D, V>& weight, float eps, bool turned) {
  using S = Shape<D, V>;
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
    for (int e = 0; e < V; ++e) x[c][e] += bias[c][e];
  }
  Floats<D, V>& h = x;
  const float rstd = normalise<D, V>(h, eps, turned);
  float sum = 0.0f;
  float product = 0.0f;
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
    for (int e = 0; e < V; ++e) {
      sums.norm_bias[c][e] += g[c][e];
      sums.weight[c][e] = fmaf(g[c][e], h[c][e], sums.weight[c][e]);
      g[c][e] *= weight[c][e];
      sum += g[c][e];
      product = fmaf(g[c][e], h[c][e], product);
    }
  }
  // Heads of v in a warp that also has others keep their gradient: rstd is 1, and nothing is taken away.
  sum = group_sum<S::kGroup>(sum) * (1.0f / D);
  product = group_sum<S::kGroup>(product) * (1.0f / D);
  sum = turned ? sum : 0.0f;
  product = turned ? product : 0.0f;
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
    for (int e = 0; e < V; ++e) g[c][e] = rstd * (g[c][e] - fmaf(h[c][e], product, sum));
  }
}

// One pass: the rows of the head of each group of lanes. `pass` counts the passes over the heads of the block.
template <class T, int D, int V>
__device__ inline void head_backward(RowSums<D, V>& sums, const RopeQkvParams& p, const Shared& shared,
                                     const Chunk& chunk, const Head& head, int pass) {
  using S = Shape<D, V>;
  const int rotary_dim = static_cast<int>(p.rotary_dim);
  const uint32_t length = static_cast<uint32_t>(p.length);
  const int lane = threadIdx.x % S::kGroup;
  const bool any_turned = __any_sync(kAllLanes, head.turned());
  const bool normed = any_turned && p.norm != nullptr;
  const bool needs_x = normed && head.turned();
  const bool block_turns = rotary_dim > 0 && static_cast<int64_t>(blockIdx.y) * kHeads < p.heads + p.kv_heads;
  const Rotation<D, V> rotation(lane, rotary_dim, head.turned());
  Floats<D, V> bias;
  Floats<D, V> weight;
  read_bias<T, D, V>(bias, p, head, lane, needs_x);
  if (normed) read_norm<D, V>(weight, shared, 0, head, lane, 1.0f);
  GradientRows<T, D, V> row(p, chunk, head, head.source(p), head.target(p));
  row.load(lane, head.active, needs_x);
#pragma unroll 1
  for (int tile = 0; tile < chunk.count; tile += kTileRows) {
    const int rows = chunk.count - tile < kTileRows ? chunk.count - tile : kTileRows;
    if (pass == 0 || chunk.count > kTileRows) {
      stage_rows<V>(p, shared, chunk, tile, rows, block_turns, false, -1.0f);
    }
#pragma unroll 1
    for (int r = 0; r < rows; ++r) {
      Floats<D, V> g;
      Floats<D, V> x;
      row.next_grad.get(g);
      row.next_x.get(x);
      if (tile + r + 1 < chunk.count) {
        row.next(length);
        row.load(lane, head.active, needs_x);
      }
      if (any_turned && rotary_dim > 0) {
        rotation.apply(g, shared.cos + r * rotary_dim, shared.sin + r * rotary_dim, lane);
      }
      if (normed) norm_backward<D, V>(g, x, sums, bias, weight, p.eps, head.turned());
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
        for (int e = 0; e < V; ++e) sums.bias[c][e] += g[c][e];
      }
      Values<T, D, V>::store(row.to, lane, g, head.active);
      row.to += row.to_stride;
    }
  }
}

template <class T, int D, int V>
__global__ void __launch_bounds__(kThreads, Shape<D, V>::kChunks* V > 8 ? 1 : 2)  // 96: more registers than 128
    rope_qkv_backward_kernel(RopeQkvParams p, int chunk_rows) {
  using S = Shape<D, V>;
  extern __shared__ float4 dynamic_memory[];
  const Shared shared(reinterpret_cast<float*>(dynamic_memory), nullptr, D, static_cast<int>(p.rotary_dim));
  const Chunk chunk(p, chunk_rows);
  if (p.norm != nullptr) stage_norm<D, V>(p, shared);

  float dweight_total = 0.0f;  // thread kind * D + d
  float dnorm_bias_total = 0.0f;
#pragma unroll 1
  for (int pass = 0; pass < S::kPasses; ++pass) {
    const int64_t first_head = static_cast<int64_t>(blockIdx.y) * kHeads + pass * S::kGroups;
    const int group = threadIdx.x / S::kGroup;
    const Head head(p, first_head + group, pass * S::kGroups + group < kHeads);
    RowSums<D, V> sums;
    head_backward<T, D, V>(sums, p, shared, chunk, head, pass);
    if (p.dbias != nullptr) {
      float* to = p.dbias + blockIdx.x * (p.heads + 2 * p.kv_heads) * D + head.column * D;
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
        store_floats_if<V>(to + c * S::kGroup * V, threadIdx.x % S::kGroup, sums.bias[c], head.active);
      }
    }
    if (p.dnorm != nullptr && first_head < p.heads + p.kv_heads) {  // the same for the whole block
      add_heads<D, V>(dweight_total, sums.weight, p, shared.sums, first_head);
      add_heads<D, V>(dnorm_bias_total, sums.norm_bias, p, shared.sums, first_head);
    }
  }
  if (p.dnorm != nullptr && threadIdx.x < 2 * D) {
    float* to = p.dnorm + (static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * 4 * D;
    const int kind = threadIdx.x / D;
    to[2 * kind * D + threadIdx.x % D] = dweight_total;
    to[(2 * kind + 1) * D + threadIdx.x % D] = dnorm_bias_total;
  }
}

template <class T, int D, int V>
struct Backward {
  static Status run(const RopeQkvParams& p, const Cut& cut, cudaStream_t stream) {
    const size_t bytes = Shared::bytes(D, p.rotary_dim, p.dnorm == nullptr ? 0 : Shape<D, V>::kGroups * D);
    rope_qkv_backward_kernel<T, D, V><<<cut.grid, kThreads, bytes, stream>>>(p, cut.rows);
    return check_launch("rope_qkv_backward_kernel");
  }
};

}  // namespace

Status rope_qkv_backward_cuda(const RopeQkvParams& params, void* stream) { return dispatch<Backward>(params, stream); }

}  // namespace showo
