// The block table of the CPU kernels: which blocks of query rows x 64 columns hold anything, and which need no mask.
// Built once per mask, read by every layer, forward and backward.
#include "common/launch.h"
#include "common/parallel.h"
#include "omni_attention/cpu_plan.h"
#include "omni_attention/mask.h"
#include "omni_attention/params.h"

namespace showo {
namespace {

Status check_row(const OmniBlockTableParams& p, int64_t batch, int64_t row) {
  const int32_t* pair = p.intervals + batch * p.intervals_batch_stride + row * p.intervals_row_stride;
  for (int64_t i = 0; i < p.num_intervals; ++i, pair += 2) {
    SHOWO_CHECK_ARGUMENT(0 <= pair[0] && pair[0] <= pair[1] && pair[1] <= p.kv_length,
                         "intervals[%lld, %lld, %lld] is [%d, %d], expected [start, stop] with 0 <= start <= stop <= "
                         "kv_length, %lld",
                         static_cast<long long>(batch), static_cast<long long>(row), static_cast<long long>(i), pair[0],
                         pair[1], static_cast<long long>(p.kv_length));
  }
  return ok_status();
}

// Fills in one block of columns of one batch entry: the states of all its blocks of rows, and the columns that some row
// sees.
void fill_column_of_blocks(const OmniBlockTableParams& p, int64_t batch, int64_t kv_block, int64_t block_rows) {
  const int64_t first_column = kv_block * kKvBlock, kv_blocks = ceil_div(p.kv_length, kKvBlock);
  const int64_t q_blocks = ceil_div(p.q_length, block_rows);
  const uint64_t existing = low_bits(p.kv_length - first_column);
  const int32_t* intervals = p.intervals + batch * p.intervals_batch_stride;
  uint8_t* states = p.states + batch * q_blocks * kv_blocks + kv_block;
  uint64_t seen = 0;
  for (int64_t row = 0; row < p.q_length; row += block_rows, states += kv_blocks) {
    uint64_t any = 0, all = existing;
    for (int64_t i = row; i < row + block_rows && i < p.q_length; ++i) {
      const uint64_t bits = row_bits(intervals + i * p.intervals_row_stride, p.num_intervals, first_column) & existing;
      any |= bits;
      all &= bits;
    }
    *states = any == 0 ? kEmpty : all == existing ? kFull : kPartial;
    seen |= any;
  }
  bool* const to = p.seen + (batch * kv_blocks + kv_block) * kKvBlock;
  for (int64_t i = 0; i < kKvBlock; ++i) to[i] = (seen >> i & 1) != 0;
}

}  // namespace

int64_t omni_attention_block_rows() { return omni_cpu_kernels().q_block; }

Status omni_block_table_cpu(const OmniBlockTableParams& p, int num_threads) {
  SHOWO_CHECK_ARGUMENT(p.num_intervals >= 1, "mask: %lld intervals per row, expected 1 to 8",
                       static_cast<long long>(p.num_intervals));
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t row = 0; row < p.q_length; ++row) SHOWO_RETURN_IF_ERROR(check_row(p, b, row));
  const int64_t block_rows = omni_attention_block_rows();
  const int64_t kv_blocks = ceil_div(p.kv_length, kKvBlock);
  parallel_for(p.batch * kv_blocks, num_threads,
               [&](int64_t i) { fill_column_of_blocks(p, i / kv_blocks, i % kv_blocks, block_rows); });
  return ok_status();
}

}  // namespace showo
