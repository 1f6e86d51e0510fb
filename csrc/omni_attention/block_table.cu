// Which 64 x 64 blocks of a mask are empty, partial or full, and which columns some row sees: built once per mask, read
// by every layer, forward and backward.
//
// One thread block per (64 columns, batch entry). Its warps take the blocks of 64 rows in turn, two rows a lane: one OR
// and one AND of the rows' column words over the warp tell the state, the OR of all of them the columns that are seen.
// Reads every interval once per 64 columns, writes a byte per block of the mask and one per column.
#include <cuda_runtime.h>

#include "common/cuda_check.h"
#include "common/launch.h"
#include "common/ptx.cuh"
#include "omni_attention/mask.h"
#include "omni_attention/params.h"

namespace showo {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int64_t kMaxIntervals = 8;

__global__ void __launch_bounds__(kThreads) omni_block_table_kernel(OmniBlockTableParams p) {
  __shared__ uint64_t seen_by[kWarps];  // columns that some row of the warp's blocks sees
  const int64_t kv_block = blockIdx.x, kv_blocks = gridDim.x, batch = blockIdx.y;
  const int64_t q_blocks = ceil_div(p.q_length, kQBlock), first_column = kv_block * kKvBlock;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint64_t existing = low_bits(p.kv_length - first_column);
  const int32_t* intervals = p.intervals + batch * p.intervals_batch_stride;
  uint64_t seen = 0;
  for (int64_t q_block = warp; q_block < q_blocks; q_block += kWarps) {
    uint64_t any = 0, all = ~uint64_t{0};
    for (int64_t row = q_block * kQBlock + lane; row < min((q_block + 1) * kQBlock, p.q_length); row += 32) {
      const uint64_t bits = row_bits(intervals + row * p.intervals_row_stride, p.num_intervals, first_column);
      any |= bits & existing;
      all &= bits & existing;  // a block that sticks out of the last column is never full
    }
    any = or_of_warp(any);
    all = ~or_of_warp(~all);
    if (lane == 0)
      p.states[(batch * q_blocks + q_block) * kv_blocks + kv_block] = any == 0              ? kEmpty
                                                                      : all == ~uint64_t{0} ? kFull
                                                                                            : kPartial;
    seen |= any;
  }
  if (lane == 0) seen_by[warp] = seen;
  __syncthreads();
  if (threadIdx.x >= kKvBlock) return;
  seen = 0;
  for (const uint64_t columns : seen_by) seen |= columns;
  p.seen[(batch * kv_blocks + kv_block) * kKvBlock + threadIdx.x] = (seen >> threadIdx.x & 1) != 0;
}

}  // namespace

Status omni_block_table_cuda(const OmniBlockTableParams& p, void* stream) {
  SHOWO_CHECK_ARGUMENT(p.num_intervals >= 1 && p.num_intervals <= kMaxIntervals,
                       "mask: %lld intervals per row, expected 1 to 8", static_cast<long long>(p.num_intervals));
  if (p.batch <= 0 || p.q_length <= 0 || p.kv_length <= 0) return ok_status();
  const int64_t kv_blocks = ceil_div(p.kv_length, kKvBlock);
  SHOWO_CHECK_ARGUMENT(kv_blocks <= kMaxGridX && p.batch <= kMaxGridY, "mask: batch %lld is too large for one launch",
                       static_cast<long long>(p.batch));
  const dim3 grid(static_cast<unsigned>(kv_blocks), static_cast<unsigned>(p.batch));
  omni_block_table_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  return check_launch("omni_block_table_kernel");
}

}  // namespace showo
