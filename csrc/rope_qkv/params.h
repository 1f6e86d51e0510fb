// rope_qkv: a projection qkv + bias, fused or in three tensors, becomes q, k, v; q and k are normalised over each head
// and turned by rotary angles. Parameter struct and launchers. Strides are in elements; every launcher checks sizes and
// limits and returns a Status.
//
//   x = qkv[b, s, head] + bias[head]                                       heads in the order q, k, v
//   y = (x - mean) / sqrt(var + eps) * weight + norm_bias                  q and k only, where norm is given
//   y[i], y[i + half] = y[i] cos[s, i] - y[i + half] sin[s, i], y[i + half] cos[s, i] + y[i] sin[s, i]     i < half
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/status.h"

namespace showo {

// A tensor [batch, head, row, head_dim] whose last dimension is contiguous.
struct RopeHeads {
  void* data;
  int64_t batch_stride;
  int64_t head_stride;
  int64_t row_stride;
};

// A projection [batch, row, heads * head_dim] whose last dimension is contiguous.
struct RopeRows {
  const void* data;
  int64_t batch_stride;
  int64_t row_stride;
};

struct RopeQkvParams {
  RopeRows in[3];        // q, k, v; parts of one tensor where they are fused
  RopeHeads out[3];      // q, k, v: written by forward; their gradients, read by backward
  const float* cos;      // [1 or batch, length, rotary_dim / 2], contiguous
  const float* sin;      // the same
  const void* bias;      // [(heads + 2 kv_heads) head_dim], contiguous, or null
  const float* norm;     // [4, head_dim]: weight and bias of q, then of k; or null
  const int64_t* slots;  // forward: [1 or batch, length], the row of k and v that each row goes to; null: its own
  void* dqkv;    // backward: gradient of the projection, written: [batch, length, (heads + 2 kv_heads) head_dim], or
                 // if in_three [batch, length, heads head_dim] of q, then the same with kv_heads of k, then of v
  float* dbias;  // backward: [chunks, (heads + 2 kv_heads) head_dim], written, or null
  float* dnorm;  // backward: [chunks, splits, 4, head_dim], written, or null

  int64_t batch;
  int64_t length;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t rotary_dim;
  int64_t table_batch_stride;  // of cos and sin: 0 where all samples share them
  int64_t slots_batch_stride;
  int64_t num_slots;  // rows of out[1] and out[2] when slots are given
  bool in_three;      // backward: dqkv holds three gradients one after another, those of q, of k and of v
  float eps;
  DType dtype;       // of in, out, dqkv: f32, f16 or bf16
  DType bias_dtype;  // dtype, or f32
};

// Work is cut into chunks of rows (a row is one position of one sample) times splits of heads; a thread block, or a
// task on the CPU, has one chunk and one split. The cut depends on the sizes alone, and so does the order of every sum.
// There are at most as many blocks as an A100 holds at a time, two on each of its 108 multiprocessors, however many
// rows there are, because every block reads the parameters and writes partial sums of its own.
constexpr int64_t kRopeHeadsPerSplit = 32;
constexpr int64_t kRopeBlocks = 216;

constexpr int64_t rope_qkv_splits(int64_t total_heads) {
  return (total_heads + kRopeHeadsPerSplit - 1) / kRopeHeadsPerSplit;
}
constexpr int64_t rope_qkv_chunk_rows(int64_t num_rows, int64_t total_heads) {
  const int64_t splits = rope_qkv_splits(total_heads);
  const int64_t chunks = splits < kRopeBlocks ? kRopeBlocks / splits : 1;
  return (num_rows + chunks - 1) / chunks;
}
constexpr int64_t rope_qkv_chunks(int64_t num_rows, int64_t total_heads) {
  const int64_t rows = rope_qkv_chunk_rows(num_rows, total_heads);
  return (num_rows + rows - 1) / rows;
}

// A slot outside [0, num_slots) is an invalid argument, found before anything is written.
Status rope_qkv_forward_cpu(const RopeQkvParams& params, int num_threads);
Status rope_qkv_backward_cpu(const RopeQkvParams& params, int num_threads);

// Enqueue on `stream` (a cudaStream_t) and return. Rows with a slot out of range leave the caches alone.
Status rope_qkv_forward_cuda(const RopeQkvParams& params, void* stream);
Status rope_qkv_backward_cuda(const RopeQkvParams& params, void* stream);

}  // namespace showo
