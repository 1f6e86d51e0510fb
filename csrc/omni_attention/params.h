// omni_attention: attention in which every query row sees a union of column intervals.
//
//   scores = scale q k^T, -inf outside the row's intervals;  lse = log sum_j exp(scores_j);  out = exp(scores - lse) v
//
// With a softcap the scores that are not masked become softcap tanh(scores / softcap) before.
// Rows without columns give zeros and lse = -inf. Query head h reads kv head h / (heads / kv_heads).
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/status.h"

namespace showo {

// Strides in elements of [batch, head, row]; the last dimension (head_dim) is contiguous.
struct OmniStrides {
  int64_t batch, head, row;
};

// The inputs that forward and backward share.
struct OmniInputs {
  const void* q;             // [B, H, S_q, D]      dtype
  const void* k;             // [B, H_kv, S_kv, D]  dtype
  const void* v;             // [B, H_kv, S_kv, D]  dtype
  const int32_t* intervals;  // [B, S_q, K, 2]      half-open column ranges, any order, overlap allowed
  int64_t batch, heads, kv_heads, q_length, kv_length, head_dim, num_intervals;
  OmniStrides q_strides, k_strides, v_strides;
  int64_t intervals_batch_stride, intervals_row_stride;  // the K pairs of a row are contiguous
  float scale;
  float softcap;  // from 2^-126 to 2^127; 0: none
  DType dtype;    // float32, float16 or bfloat16; arithmetic is float32
  // [B, ceil(S_q / rows), ceil(S_kv / 64)] BlockStates of mask.h, made by omni_block_table_cpu or _cuda; rows: see
  // there. Decode does not read them.
  const uint8_t* block_states;
  int64_t block_states_batch_stride;  // 0 where one mask serves the whole batch
  // [the same batch, 64 ceil(S_kv / 64)], made with block_states. Only the CUDA kernels that read block_states read it.
  const bool* seen;

  // By column: whether some row sees it. entry: of block_states, 0 where one mask serves the whole batch.
  constexpr const bool* seen_of(int entry) const {
    return seen + static_cast<int64_t>(entry) * ((static_cast<int>(kv_length) + 63) / 64 * 64);
  }
};

struct OmniBlockTableParams {
  const int32_t* intervals;  // [B, S_q, K, 2]
  int64_t batch, q_length, kv_length, num_intervals;
  int64_t intervals_batch_stride, intervals_row_stride;
  // [B, ceil(S_q / rows), ceil(S_kv / 64)] contiguous. A block has 64 rows on CUDA, omni_attention_block_rows() on the
  // CPU. The last block of columns may be incomplete: kPartial at most on CUDA, kFull if all that exists is seen on the
  // CPU.
  uint8_t* states;
  // [B, 64 ceil(S_kv / 64)] contiguous: whether some row of the batch entry sees the column. Columns that do not exist
  // are not seen.
  bool* seen;
};

struct OmniForwardParams {
  OmniInputs in;
  void* out;   // [B, H, S_q, D]  dtype
  float* lse;  // [B, H, S_q]     contiguous
  OmniStrides out_strides;
  // CUDA only. Tiles of `tile_rows` query rows, 64 or, for 16 bits without a softcap, 128, start in the order of the
  // `order_length` pairs of `order`: (batch entry of block_states, tile), heaviest first. One mask for the whole batch
  // is taken `batch` times.
  int64_t tile_rows, order_length;
  const int32_t* order;
};

// CUDA only: at most 16 query rows. Needs no block table.
struct OmniDecodeParams {
  OmniInputs in;
  void* out;   // [B, H, S_q, D]  dtype
  float* lse;  // [B, H, S_q]     contiguous
  OmniStrides out_strides;
  int64_t splits;  // into how many shares the columns of a kv head are dealt, 1 to 128
  // Workspaces, contiguous; null with one split.
  float* partial_out;    // [B, H, S_q, splits, D]
  float* partial_stats;  // [B, H, S_q, splits, 2]
};

struct OmniBackwardParams {
  OmniInputs in;
  const void* out;    // [B, H, S_q, D]  dtype
  const float* lse;   // [B, H, S_q]     contiguous
  const void* dout;   // [B, H, S_q, D]  dtype
  const float* dlse;  // [B, H, S_q]     contiguous, or null
  OmniStrides out_strides, dout_strides;
  // Results in float32, contiguous. dk and dv come as omni_attention_backward_summands() summands, which the caller
  // adds up.
  float* dq;  // [B, H, S_q, D]
  float* dk;  // [summands, B, H_kv, S_kv, D]
  float* dv;  // [summands, B, H_kv, S_kv, D]
  int64_t summands;
};

// Numbers per 64 query rows in `stats` below.
constexpr int64_t kOmniBackwardStats = 192;

struct OmniBackwardCudaParams {
  OmniInputs in;
  const void* out;    // [B, H, S_q, D]  dtype
  const float* lse;   // [B, H, S_q]     contiguous
  const void* dout;   // [B, H, S_q, D]  dtype
  const float* dlse;  // [B, H, S_q]     contiguous, or null
  OmniStrides out_strides, dout_strides;
  // Results in dtype, contiguous.
  void* dq;  // [B, H, S_q, D]
  void* dk;  // [B, H_kv, S_kv, D]
  void* dv;  // [B, H_kv, S_kv, D]
  // Workspaces, contiguous.
  float* stats;    // [B, H, ceil(S_q / 64), 192]; laid out in backward_tile.cuh
  float* dq_sums;  // [B, H, ceil(S_q / 64), 64 D] zeros: sums dq with atomic additions, in the order in which thread
                   // blocks happen to run. Null, and always with float32: dq gets its own kernel, reproducible.
};

// Query rows of a block of the CPU kernels, which depends on the instruction set in use.
int64_t omni_attention_block_rows();

// invalid_argument for an interval outside 0 <= start <= stop <= kv_length.
Status omni_block_table_cpu(const OmniBlockTableParams& params, int num_threads);

// unsupported for a head size that head_dim.h does not list for the CPU. Bitwise reproducible, for any number of
// threads. No column outside 0..kv_length is read, whatever an interval says.
Status omni_attention_forward_cpu(const OmniForwardParams& params, int num_threads);
Status omni_attention_backward_cpu(const OmniBackwardParams& params, int num_threads);

// On the device, columns outside 0..kv_length do not exist, whatever an interval says: nothing is read there.
// Takes only the layouts that checks.h describes.
Status omni_attention_forward_cuda(const OmniForwardParams& params, void* stream);
Status omni_attention_decode_cuda(const OmniDecodeParams& params, void* stream);
Status omni_attention_backward_cuda(const OmniBackwardCudaParams& params, void* stream);
Status omni_block_table_cuda(const OmniBlockTableParams& params, void* stream);

// How many summands the CPU kernel makes of dk and dv, so that few heads can still keep many threads busy. A function
// of the sizes alone: with the number of threads in it, results would depend on the machine.
int64_t omni_attention_backward_summands(int64_t batch, int64_t heads, int64_t kv_heads, int64_t q_length);

}  // namespace showo
