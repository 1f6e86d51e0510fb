// The block table of the CPU kernels: which blocks of query rows x 64 columns hold anything, and which need no mask.
// Built once per mask, read by every layer, forward and backward.
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

// `rows` rows from `intervals` on against `columns` columns from `first_column` on.
BlockState state_of(const OmniBlockTableParams& p, const int32_t* intervals, int64_t rows, int64_t first_column,
                    int64_t columns) {
  const uint64_t existing = low_bits(columns);
  uint64_t any = 0, all = existing;
  for (int64_t row = 0; row < rows; ++row) {
    const uint64_t bits = row_bits(intervals + row * p.intervals_row_stride, p.num_intervals, first_column) & existing;
    any |= bits;
    all &= bits;
  }
  return any == 0 ? kEmpty : all == existing ? kFull : kPartial;
}

// The states of `rows` rows from `row` on of one batch entry.
void fill_row_of_blocks(const OmniBlockTableParams& p, int64_t batch, int64_t row, int64_t rows, uint8_t* states) {
  const int32_t* intervals = p.intervals + batch * p.intervals_batch_stride + row * p.intervals_row_stride;
  for (int64_t column = 0; column < p.kv_length; column += kKvBlock) {
    const int64_t columns = p.kv_length - column < kKvBlock ? p.kv_length - column : kKvBlock;
    *states++ = state_of(p, intervals, rows, column, columns);
  }
}

}  // namespace

int64_t omni_attention_block_rows() { return omni_cpu_kernels().q_block; }

Status omni_block_table_cpu(const OmniBlockTableParams& p, int num_threads) {
  SHOWO_CHECK_ARGUMENT(p.num_intervals >= 1, "mask: %lld intervals per row, expected 1 to 8",
                       static_cast<long long>(p.num_intervals));
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t row = 0; row < p.q_length; ++row) SHOWO_RETURN_IF_ERROR(check_row(p, b, row));
  const int64_t block_rows = omni_attention_block_rows();
  const int64_t q_blocks = (p.q_length + block_rows - 1) / block_rows;
  const int64_t kv_blocks = (p.kv_length + kKvBlock - 1) / kKvBlock;
  parallel_for(p.batch * q_blocks, num_threads, [&](int64_t i) {
    const int64_t row = i % q_blocks * block_rows;
    const int64_t rows = p.q_length - row < block_rows ? p.q_length - row : block_rows;
    fill_row_of_blocks(p, i / q_blocks, row, rows, p.states + i * kv_blocks);
  });
  return ok_status();
}

}  // namespace showo
