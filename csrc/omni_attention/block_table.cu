// Which 64 x 64 blocks of a mask are empty, partial or full: built once per mask, read by every layer, forward and
// backward.
//
// One thread block per (batch entry, 64 query rows). Its intervals go to shared memory once; each thread then owns kv
// blocks t, t + 128, ... and combines the 64-bit column words of its rows: one OR, one AND. Reads every interval once,
// writes one byte per block of the mask.
#include <cuda_runtime.h>

#include "common/cuda_check.h"
#include "common/launch.h"
#include "omni_attention/mask.h"
#include "omni_attention/params.h"

namespace showo {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxIntervals = 8;

__global__ void __launch_bounds__(kThreads) omni_block_table_kernel(OmniBlockTableParams p) {
  __shared__ int32_t intervals[kQBlock * kMaxIntervals * 2];
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kQBlock;
  const int rows = static_cast<int>(min(kQBlock, p.q_length - first_row));
  const int per_row = static_cast<int>(p.num_intervals) * 2;
  const int32_t* source = p.intervals + blockIdx.y * p.intervals_batch_stride + first_row * p.intervals_row_stride;
  for (int i = threadIdx.x; i < rows * per_row; i += kThreads)
    intervals[i] = source[i / per_row * p.intervals_row_stride + i % per_row];
  __syncthreads();

  const int64_t kv_blocks = ceil_div(p.kv_length, kKvBlock);
  uint8_t* out = p.states + (blockIdx.y * static_cast<int64_t>(gridDim.x) + blockIdx.x) * kv_blocks;
  for (int64_t block = threadIdx.x; block < kv_blocks; block += kThreads) {
    const uint64_t existing = low_bits(p.kv_length - block * kKvBlock);
    uint64_t any = 0, all = ~uint64_t{0};
    for (int row = 0; row < rows; ++row) {
      const uint64_t bits = row_bits(intervals + row * per_row, p.num_intervals, block * kKvBlock);
      any |= bits;
      all &= bits;
    }
    all &= existing;  // a block that sticks out of the last column is never full
    out[block] = (any & existing) == 0 ? kEmpty : all == ~uint64_t{0} ? kFull : kPartial;
  }
}

}  // namespace

Status omni_block_table_cuda(const OmniBlockTableParams& p, void* stream) {
  SHOWO_CHECK_ARGUMENT(p.num_intervals >= 1 && p.num_intervals <= kMaxIntervals,
                       "mask: %lld intervals per row, expected 1 to 8", static_cast<long long>(p.num_intervals));
  if (p.batch <= 0 || p.q_length <= 0 || p.kv_length <= 0) return ok_status();
  const int64_t q_blocks = ceil_div(p.q_length, kQBlock);
  SHOWO_CHECK_ARGUMENT(q_blocks <= kMaxGridX && p.batch <= kMaxGridY, "mask: batch %lld is too large for one launch",
                       static_cast<long long>(p.batch));
  const dim3 grid(static_cast<unsigned>(q_blocks), static_cast<unsigned>(p.batch));
  omni_block_table_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  return check_launch("omni_block_table_kernel");
}

}  // namespace showo
