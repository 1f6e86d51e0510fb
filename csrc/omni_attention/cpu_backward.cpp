// Backward on the CPU: probabilities are recomputed from lse, five matrix products per visited block.
//
//   p = 2^(s - lse);  dp = dout v^T;  ds = scale p (dp - delta),  delta = sum_d dout out - dlse
//   dv += p^T dout;   dk += ds^T q;   dq += ds k
//
// With a softcap, whose slope is 1 - tanh^2, ds is that much smaller.
//
// The query rows that read a kv head are dealt to several tasks, as many as there are summands of dk and dv
// (omni_attention_backward_summands). A task alone writes its summand of its kv head's dk and dv: no atomics, and the
// same bits every time.
#include "omni_attention/cpu_tile.h"

namespace showo {
namespace SHOWO_ISA {
namespace {

template <int D>
struct alignas(64) BackwardScratch {
  float q_panels[kQBlock * D];     // [kPanels][D][kPanel], times the factor of Scores
  float dout_panels[kQBlock * D];  // [kPanels][D][kPanel]
  float q[kQBlock * D];            // [row][d]
  float dout[kQBlock * D];         // [row][d]
  float dq[kQBlock * D];           // [row][d]
  float p[kKvBlock * kQBlock];     // [column][row]
  float ds[kKvBlock * kQBlock];    // [column][row]: dp, then ds
  float lse[kQBlock];              // in units of log2; +inf for rows without columns, whose p is then 0
  float delta[kQBlock];
  BlockMask mask;
};

// p and ds of one panel, columns [from, to).
template <int D>
SHOWO_INLINE void panel_gradients(BackwardScratch<D>* s, const Scores& scores, const float* keys, const float* values,
                                  float scale, int64_t panel, int from, int to) {
  const int64_t row = panel * kPanel;
  const float* q = s->q_panels + panel * (D * kPanel);
  const float* dout = s->dout_panels + panel * (D * kPanel);
  const uint64_t any = s->mask.any[panel], every = s->mask.every[panel];
  for (int j = from, height; j < to; j += height) {
    height = tile_height(to - j);
    if (!(any >> j & low_bits(height))) {
      fill_columns(s->p, panel, j, j + height, 0.0f);
      fill_columns(s->ds, panel, j, j + height, 0.0f);
      continue;
    }
    tile_of<D, 1, kPanel, kQBlock, Start::kZero>(height, s->p + j * kQBlock + row, keys + j * D, q, D);
    tile_of<D, 1, kPanel, kQBlock, Start::kZero>(height, s->ds + j * kQBlock + row, values + j * D, dout, D);
    for (int half = 0; half < 2; ++half) {
      const int64_t at = row + half * kLanes;
      const VecF lse = load(s->lse + at), delta = load(s->delta + at);
      for (int column = j; column < j + height; ++column) {
        float* p_at = s->p + column * kQBlock + at;
        float* ds_at = s->ds + column * kQBlock + at;
        VecF score = load(p_at), slope = set1(scale);
        if (scores.capped()) {
          const VecF share = scores.share(score);
          score = share * scores.softcap;
          slope *= 1.0f - share * share;
        }
        VecF p = exp2_bounded(score - lse);
        VecF ds = p * (load(ds_at) - delta) * slope;
        if (!(every >> column & 1)) {
          const VecI sees = s->mask.sees(at, column) < 0;
          p = select(sees, p, VecF{});
          ds = select(sees, ds, VecF{});
        }
        store(p_at, p);
        store(ds_at, ds);
      }
    }
  }
}

template <int D>
void backward_block(BackwardScratch<D>* s, const Scores& scores, int64_t rows, float scale, const float* keys,
                    const float* values, float* dk, float* dv) {
  const int first = first_bit(s->mask.any_row), last = end_bit(s->mask.any_row);
  for (int64_t panel = 0; panel < kPanels; ++panel) {
    const uint64_t any = s->mask.any[panel];
    const int from = any ? first_bit(any) : last, to = any ? end_bit(any) : last;
    panel_gradients(s, scores, keys, values, scale, panel, from, to);
    fill_columns(s->p, panel, first, from, 0.0f);
    fill_columns(s->p, panel, to, last, 0.0f);
    fill_columns(s->ds, panel, first, from, 0.0f);
    fill_columns(s->ds, panel, to, last, 0.0f);
  }
  for (int j = first, height; j < last; j += height) {
    height = tile_height(last - j);
    const uint64_t tile_columns = low_bits(height) << j;
    // Runs of rows, and below of columns, that have pairs in the tile: what no pair needs is not read, since zero times
    // NaN is NaN.
    for (int64_t from = 0, to; from < rows; from = to) {
      to = from + 1;
      if (!(s->mask.bits[from] & tile_columns)) continue;
      while (to < rows && s->mask.bits[to] & tile_columns) ++to;
      for (int d = 0; d < D; d += kPanel) {
        tile_of<kQBlock, 1, D, D, Start::kAdd>(height, dv + j * D + d, s->p + j * kQBlock + from,
                                               s->dout + from * D + d, to - from);
        tile_of<kQBlock, 1, D, D, Start::kAdd>(height, dk + j * D + d, s->ds + j * kQBlock + from, s->q + from * D + d,
                                               to - from);
      }
    }
  }
  for (int64_t row = 0, height; row < rows; row += height) {
    height = tile_height(rows - row);
    for_each_run(s->mask.any_of_rows(row, row + height), [&](int from, int count) {
      for (int d = 0; d < D; d += kPanel)
        tile_of<1, kQBlock, D, D, Start::kAdd>(height, s->dq + row * D + d, s->ds + from * kQBlock + row,
                                               keys + from * D + d, count);
    });
  }
}

// Brings q and dout of one block of rows, and what depends on the rows alone.
template <int D>
void load_rows(BackwardScratch<D>* s, const OmniBackwardParams& p, int64_t batch, int64_t head, int64_t first_row,
               int64_t rows) {
  const OmniInputs& in = p.in;
  const int64_t first = (batch * in.heads + head) * in.q_length + first_row;
  read_rows<D>(s->q, in.q, in.q_strides, in.dtype, batch, head, first_row, rows);
  read_rows<D>(s->dout, p.dout, p.dout_strides, in.dtype, batch, head, first_row, rows);
  transpose_to_panels<D>(s->dout_panels, s->dout, rows, 1.0f);

  // delta, summed like the dp tiles: where a row sees a single column, dp - delta is then exactly 0.
  float* out = s->dq;  // both are free until the first block
  float* out_panels = s->q_panels;
  read_rows<D>(out, p.out, p.out_strides, in.dtype, batch, head, first_row, rows);
  transpose_to_panels<D>(out_panels, out, rows, 1.0f);
  for (int64_t row = 0; row < kQBlock; row += kLanes) {
    const int64_t at = row / kPanel * (D * kPanel) + row % kPanel;
    VecF delta = VecF{};
    for (int d = 0; d < D; ++d) delta += load(out_panels + at + d * kPanel) * load(s->dout_panels + at + d * kPanel);
    store(s->delta + row, delta);
  }
  for (int64_t row = 0; row < kQBlock; ++row) s->lse[row] = __builtin_inff();
  for (int64_t row = 0; row < rows; ++row) {
    if (p.dlse) s->delta[row] -= p.dlse[first + row];
    const float lse = p.lse[first + row];
    if (lse != -__builtin_inff()) s->lse[row] = lse * kLog2E;
  }
  transpose_to_panels<D>(s->q_panels, s->q, rows, Scores(in).factor);
}

template <int D>
void backward_task(const OmniBackwardParams& p, const OmniPlan& plan, const OmniTask& task, void* scratch) {
  const OmniInputs& in = p.in;
  auto* s = static_cast<BackwardScratch<D>*>(scratch);
  KvRows<D> keys, values;
  place_kv_copies<D>(&keys, &values, in, task, s + 1);
  const int64_t kv_size = in.kv_length * D;
  const int64_t kv_index = (task.summand * in.batch + task.batch) * in.kv_heads + task.kv_head;
  float *dk = p.dk + kv_index * kv_size, *dv = p.dv + kv_index * kv_size;
  if (kv_size > 0) std::memset(dk, 0, sizeof(float) * kv_size);
  if (kv_size > 0) std::memset(dv, 0, sizeof(float) * kv_size);

  const Scores scores(in);
  const int64_t group = in.heads / in.kv_heads;
  for (int64_t item = task.first_item; item < task.last_item; ++item) {
    const int64_t head = task.kv_head * group + item / plan.num_q_blocks, block = item % plan.num_q_blocks;
    const int64_t first_row = block * kQBlock;
    const int64_t rows = in.q_length - first_row < kQBlock ? in.q_length - first_row : kQBlock;
    load_rows<D>(s, p, task.batch, head, first_row, rows);
    std::memset(s->dq, 0, sizeof(s->dq));

    const uint8_t* state = plan.row_of_blocks(task.batch, block);
    for (int64_t kv = 0; kv < plan.num_kv_blocks; ++kv) {
      if (state[kv] == kEmpty) continue;
      const int64_t first_column = kv * kKvBlock;
      const int64_t columns = in.kv_length - first_column < kKvBlock ? in.kv_length - first_column : kKvBlock;
      s->mask.fill(in, task.batch, first_row, rows, first_column, columns, state[kv] == kFull);
      backward_block<D>(s, scores, rows, in.scale, keys.block(kv), values.block(kv), dk + first_column * D,
                        dv + first_column * D);
    }
    float* dq = p.dq + ((task.batch * in.heads + head) * in.q_length + first_row) * D;
    std::memcpy(dq, s->dq, sizeof(float) * rows * D);
  }
}

}  // namespace

int64_t omni_backward_scratch(const OmniBackwardParams& p) {
  int64_t fixed = 0;
  dispatch_wide_head_dim(p.in.head_dim, [&](auto size) {
    fixed = sizeof(BackwardScratch<decltype(size)::value>);
    return ok_status();
  });
  return fixed + kv_copy_bytes(p.in);
}

void omni_backward_task(const OmniBackwardParams& p, const OmniPlan& plan, const OmniTask& task, void* scratch) {
  dispatch_wide_head_dim(p.in.head_dim, [&](auto size) {
    backward_task<decltype(size)::value>(p, plan, task, scratch);
    return ok_status();
  });
}

}  // namespace SHOWO_ISA
}  // namespace showo
