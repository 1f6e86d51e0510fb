// Bias, QK-norm, partial rotary and head split of a projection, in one pass on the GPU.
//
// Tiling: block.cuh. A block has a chunk of rows and 32 heads, a group of lanes one head, and each group loads the next
// row before it works on this one.
//
// Global traffic. Each element of qkv is read once and each element of q, k and v is written once, in whole sectors (16
// bytes a lane, side by side). In addition a block reads
//   - its slice of the bias and the norm vectors, once;
//   - the cosines and sines of its rows, at most once for each pass over its heads, unless all its heads are of v;
//   - the slots of its rows, as often, if some of its heads are of k or v.
// At Show-o's sizes (32 heads of 64 dims, of which 32 turn, in bf16) these additional reads are 1.5% of the traffic of
// a training batch, and most of them are served by the L2 cache.
#include "common/cuda_check.h"
#include "rope_qkv/block.cuh"
#include "rope_qkv/instances.cuh"

namespace showo {
namespace {

template <class T, int D, int V>
__global__ void __launch_bounds__(kThreads, 2) rope_qkv_forward_kernel(RopeQkvParams p, int chunk_rows) {
  using S = Shape<D, V>;
  extern __shared__ float4 dynamic_memory[];
  __shared__ int64_t row_slots[kTileRows];
  const int rotary_dim = static_cast<int>(p.rotary_dim);
  const uint32_t length = static_cast<uint32_t>(p.length);
  const Shared shared(reinterpret_cast<float*>(dynamic_memory), row_slots, D, rotary_dim);
  const Chunk chunk(p, chunk_rows);
  const bool normed = p.norm != nullptr;
  if (normed) stage_norm<D, V>(p, shared);

  const int lane = threadIdx.x % S::kGroup;
#pragma unroll 1
  for (int pass = 0; pass < S::kPasses; ++pass) {
    const int64_t first_head = static_cast<int64_t>(blockIdx.y) * kHeads + pass * S::kGroups;
    const int group = threadIdx.x / S::kGroup;
    const Head head(p, first_head + group, pass * S::kGroups + group < kHeads);
    const bool any_turned = __any_sync(kAllLanes, head.turned());
    const Rotation<D, V> rotation(lane, rotary_dim, head.turned());
    Floats<D, V> bias;
    read_bias<T, D, V>(bias, p, head, lane, head.active);
    Floats<D, V> weight;
    Floats<D, V> norm_bias;
    if (any_turned && normed) {
      read_norm<D, V>(weight, shared, 0, head, lane, 1.0f);
      read_norm<D, V>(norm_bias, shared, 1, head, lane, -0.0f);  // 1 x - 0 is x, bit for bit
    }
    const RopeRows in = head.source(p);
    const T* from = static_cast<const T*>(in.data) + head.local * D;
    const RopeHeads out = head.target(p);
    T* to = static_cast<T*>(out.data) + head.local * out.head_stride;
    const bool slotted = p.slots != nullptr && head.kind > 0;
    RowWalk source(chunk, in.batch_stride, in.row_stride);
    RowWalk target(chunk, out.batch_stride, out.row_stride);

    Values<T, D, V> next;
    next.load(from + source.offset, lane, head.active);
#pragma unroll 1
    for (int tile = 0; tile < chunk.count; tile += kTileRows) {
      const int rows = chunk.count - tile < kTileRows ? chunk.count - tile : kTileRows;
      if (pass == 0 || chunk.count > kTileRows) {
        const int64_t block_head = static_cast<int64_t>(blockIdx.y) * kHeads;
        stage_rows<V>(p, shared, chunk, tile, rows, rotary_dim > 0 && block_head < p.heads + p.kv_heads,
                      p.slots != nullptr && block_head + kHeads > p.heads, 1.0f);
      }
#pragma unroll 1
      for (int r = 0; r < rows; ++r) {
        Floats<D, V> x;
        next.get(x);
        if (tile + r + 1 < chunk.count) {
          source.next(length);
          next.load(from + source.offset, lane, head.active);
        }
#pragma unroll
        for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
          for (int e = 0; e < V; ++e) x[c][e] += bias[c][e];
        }
        if (any_turned) {  // the same for the whole warp
          if (normed) {
            normalise<D, V>(x, p.eps, head.turned());
#pragma unroll
            for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
              for (int e = 0; e < V; ++e) x[c][e] = fmaf(x[c][e], weight[c][e], norm_bias[c][e]);
            }
          }
          if (rotary_dim > 0) rotation.apply(x, shared.cos + r * rotary_dim, shared.sin + r * rotary_dim, lane);
        }
        int64_t at = target.offset;
        bool writes = head.active;
        if (slotted) {
          const int64_t slot = shared.slots[r];
          at = target.batch * out.batch_stride + slot * out.row_stride;
          writes = writes && slot >= 0;
        }
        Values<T, D, V>::store(to + at, lane, x, writes);
        target.next(length);
      }
    }
  }
}

template <class T, int D, int V>
struct Forward {
  static Status run(const RopeQkvParams& p, const Cut& cut, cudaStream_t stream) {
    rope_qkv_forward_kernel<T, D, V><<<cut.grid, kThreads, Shared::bytes(D, p.rotary_dim, 0), stream>>>(p, cut.rows);
    return check_launch("rope_qkv_forward_kernel");
  }
};

}  // namespace

Status rope_qkv_forward_cuda(const RopeQkvParams& params, void* stream) { return dispatch<Forward>(params, stream); }

}  // namespace showo
