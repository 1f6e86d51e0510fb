// Forward on the CPU: online softmax over blocks of 48 (96) query rows x 64 columns.
//
//   for each visited block of columns:  s = q k^T;  m' = max(m, max s);  p = 2^(s - m');
//                                       l = l 2^(m - m') + sum p;  out = out 2^(m - m') + p v
//   out /= l;  lse = ln(2) (m + log2 l)
//
// Scores are in units of log2 (the factor is folded into q), transposed (see cpu_tile.h). p and l are smaller by
// 2^headroom, a power of two above the number of columns: l stays below 1, so that no sum p v outgrows the largest v.
// Inside a block only the tiles that somebody sees are computed: a panel of rows takes the columns between its first
// and last visible one, a tile of output rows sums over its own such range.
#include "omni_attention/cpu_few_rows.h"
#include "omni_attention/cpu_tile.h"

namespace showo {
namespace SHOWO_ISA {
namespace {

constexpr float kLn2 = 0.6931471805599453f;
constexpr float kOnes[12] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

template <int D>
struct alignas(64) ForwardScratch {
  float q[kQBlock * D];          // panels [kPanels][D][kPanel], times the factor of Scores
  float rows[kQBlock * D];       // query rows as they come
  float out[kQBlock * D];        // [row][d]
  float p[kKvBlock * kQBlock];   // [column][row]: scores, then probabilities
  float m[kQBlock], l[kQBlock];  // running maximum and sum
  float rescale[kQBlock];        // 2^(m - m')
  int headroom;                  // see the head of this file
  BlockMask mask;
};

// Scores of one panel in p, columns [from, to). Tiles that nobody sees become -inf.
template <int D>
SHOWO_INLINE void panel_scores(ForwardScratch<D>* s, const Scores& scores, const float* keys, int64_t panel, int from,
                               int to) {
  const float* q = s->q + panel * (D * kPanel);
  const uint64_t any = s->mask.any[panel];
  for (int j = from, height; j < to; j += height) {
    height = tile_height(to - j);
    if (any >> j & low_bits(height)) {
      tile_of<D, 1, kPanel, kQBlock, Start::kZero>(height, s->p + j * kQBlock + panel * kPanel, keys + j * D, q, D);
      for (int column = j; scores.capped() && column < j + height; ++column) {
        for (int half = 0; half < 2; ++half) {
          float* p = s->p + column * kQBlock + panel * kPanel + half * kLanes;
          store(p, scores.score(load(p)));
        }
      }
    } else {
      fill_columns(s->p, panel, j, j + height, -__builtin_inff());
    }
  }
}

// Masks the scores of one panel, updates m, l and rescale, and turns the scores into probabilities.
template <int D>
SHOWO_INLINE void panel_softmax(ForwardScratch<D>* s, int64_t panel, int from, int to) {
  const int64_t row = panel * kPanel;
  const uint64_t every = s->mask.every[panel];
  const VecF minus_infinity = set1(-__builtin_inff());
  VecF best[2] = {load(s->m + row), load(s->m + row + kLanes)};
  for (int j = from; j < to; ++j) {
    float* p = s->p + j * kQBlock + row;
    VecF x0 = load(p), x1 = load(p + kLanes);
    if (!(every >> j & 1)) {
      x0 = select(s->mask.sees(row, j) < 0, x0, minus_infinity);
      x1 = select(s->mask.sees(row + kLanes, j) < 0, x1, minus_infinity);
      store(p, x0);
      store(p + kLanes, x1);
    }
    best[0] = max(x0, best[0]);
    best[1] = max(x1, best[1]);
  }
  // A row that has seen no column yet keeps m = -inf; it must not meet (-inf) - (-inf).
  VecF base[2], sum[2] = {VecF{}, VecF{}};
  const int headroom = s->headroom;
  for (int half = 0; half < 2; ++half) base[half] = select(best[half] == minus_infinity, VecF{}, best[half]);
#pragma GCC unroll 2
  for (int j = from; j < to; ++j) {
    float* p = s->p + j * kQBlock + row;
    const VecF x0 = exp2_bounded(load(p) - base[0], headroom), x1 = exp2_bounded(load(p + kLanes) - base[1], headroom);
    store(p, x0);
    store(p + kLanes, x1);
    sum[0] += x0;
    sum[1] += x1;
  }
  for (int half = 0; half < 2; ++half) {
    const int64_t at = row + half * kLanes;
    const VecF rescale = exp2_bounded(load(s->m + at) - base[half]);
    store(s->rescale + at, rescale);
    store(s->l + at, load(s->l + at) * rescale + sum[half]);
    store(s->m + at, best[half]);
  }
}

template <int D>
void forward_block(ForwardScratch<D>* s, const Scores& scores, int64_t rows, const float* keys, const float* values) {
  const int first = first_bit(s->mask.any_row), last = end_bit(s->mask.any_row);
  for (int64_t panel = 0; panel < kPanels; ++panel) {
    const uint64_t any = s->mask.any[panel];
    // A tile of output rows may span two panels: what one of them does not compute must read as zero.
    if (any == 0) {
      fill_columns(s->p, panel, first, last, 0.0f);
      for (int half = 0; half < 2; ++half) store(s->rescale + panel * kPanel + half * kLanes, set1(1.0f));
      continue;
    }
    const int from = first_bit(any), to = end_bit(any);
    panel_scores(s, scores, keys, panel, from, to);
    panel_softmax(s, panel, from, to);
    fill_columns(s->p, panel, first, from, 0.0f);
    fill_columns(s->p, panel, to, last, 0.0f);
  }
  for (int64_t row = 0, height; row < rows; row += height) {
    height = tile_height(rows - row);
    // Runs, lest a value that no row of the tile sees be read: zero times NaN is NaN.
    const float* scale = s->rescale + row;
    for_each_run(s->mask.any_of_rows(row, row + height), [&](int from, int count) {
      for (int d = 0; d < D; d += kPanel)
        tile_of<1, kQBlock, D, D, Start::kScaledAdd>(height, s->out + row * D + d, s->p + from * kQBlock + row,
                                                     values + from * D + d, count, scale);
      scale = kOnes;
    });
  }
}

int headroom_of(int64_t kv_length) {
  int headroom = 0;
  while (kv_length >> headroom != 0) ++headroom;
  return headroom;
}

// The rows of a task where there are few: an item is a head.
template <int D, class T>
void forward_few_rows(const OmniForwardParams& p, const OmniTask& task) {
  const OmniInputs& in = p.in;
  const int64_t group = in.heads / in.kv_heads;
  const int headroom = headroom_of(in.kv_length);
  const Scores scores(in);
  alignas(64) float out[D];
  for (int64_t item = task.first_item; item < task.last_item; ++item) {
    const int64_t head = task.kv_head * group + item;
    for (int64_t row = 0; row < in.q_length; ++row) {
      const float lse = forward_row<D, T>(p, scores, task.batch, head, row, headroom, out);
      write_row<D>(const_cast<void*>(row_at(p.out, p.out_strides, in.dtype, task.batch, head, row)), out, in.dtype);
      p.lse[(task.batch * in.heads + head) * in.q_length + row] = lse * kLn2;
    }
  }
}

template <int D>
void forward_task(const OmniForwardParams& p, const OmniPlan& plan, const OmniTask& task, void* scratch) {
  const OmniInputs& in = p.in;
  if (in.q_length <= kFewRows) {
    if (in.dtype == DType::kF32) return forward_few_rows<D, float>(p, task);
    if (in.dtype == DType::kF16) return forward_few_rows<D, Half>(p, task);
    return forward_few_rows<D, BFloat16>(p, task);
  }
  auto* s = static_cast<ForwardScratch<D>*>(scratch);
  KvRows<D> keys, values;
  place_kv_copies<D>(&keys, &values, in, task, s + 1);
  const int64_t group = in.heads / in.kv_heads;
  const Scores scores(in);
  s->headroom = headroom_of(in.kv_length);
  for (int64_t item = task.first_item; item < task.last_item; ++item) {
    const int64_t head = task.kv_head * group + item / plan.num_q_blocks, block = item % plan.num_q_blocks;
    const int64_t first_row = block * kQBlock;
    const int64_t rows = in.q_length - first_row < kQBlock ? in.q_length - first_row : kQBlock;
    read_rows<D>(s->rows, in.q, in.q_strides, in.dtype, task.batch, head, first_row, rows);
    transpose_to_panels<D>(s->q, s->rows, rows, scores.factor);
    std::memset(s->out, 0, sizeof(s->out));
    std::memset(s->l, 0, sizeof(s->l));
    for (int64_t i = 0; i < kQBlock; ++i) s->m[i] = -__builtin_inff();

    for (int64_t row = 0; row < rows; ++row)
      prefetch_row<D, true>(row_at(p.out, p.out_strides, in.dtype, task.batch, head, first_row + row), in.dtype);

    const uint8_t* state = plan.row_of_blocks(task.batch, block);
    for (int64_t kv = 0; kv < plan.num_kv_blocks; ++kv) {
      if (state[kv] == kEmpty) continue;
      const int64_t first_column = kv * kKvBlock;
      const int64_t columns = in.kv_length - first_column < kKvBlock ? in.kv_length - first_column : kKvBlock;
      s->mask.fill(in, task.batch, first_row, rows, first_column, columns, state[kv] == kFull);
      forward_block<D>(s, scores, rows, keys.block(kv), values.block(kv));
    }

    for (int64_t row = 0; row < rows; ++row) {
      const float l = s->l[row];
      const float inverse = l == 0.0f ? 0.0f : 1.0f / l;
      float* out = s->out + row * D;
      for (int d = 0; d < D; d += kLanes) store(out + d, load(out + d) * inverse);
      write_row<D>(const_cast<void*>(row_at(p.out, p.out_strides, in.dtype, task.batch, head, first_row + row)), out,
                   in.dtype);
      p.lse[(task.batch * in.heads + head) * in.q_length + first_row + row] =
          l == 0.0f ? -__builtin_inff() : s->m[row] * kLn2 + __builtin_logf(__builtin_ldexpf(l, s->headroom));
    }
  }
}

}  // namespace

int64_t omni_forward_scratch(const OmniForwardParams& p) {
  int64_t fixed = 0;
  dispatch_wide_head_dim(p.in.head_dim, [&](auto size) {
    fixed = sizeof(ForwardScratch<decltype(size)::value>);
    return ok_status();
  });
  return fixed + kv_copy_bytes(p.in);
}

void omni_forward_task(const OmniForwardParams& p, const OmniPlan& plan, const OmniTask& task, void* scratch) {
  dispatch_wide_head_dim(p.in.head_dim, [&](auto size) {
    forward_task<decltype(size)::value>(p, plan, task, scratch);
    return ok_status();
  });
}

int64_t omni_backward_scratch(const OmniBackwardParams& p);
void omni_backward_task(const OmniBackwardParams& p, const OmniPlan& plan, const OmniTask& task, void* scratch);

const OmniCpuKernels& omni_cpu_kernels() {
  static const OmniCpuKernels kernels = {kQBlock, &omni_forward_scratch, &omni_backward_scratch, &omni_forward_task,
                                         &omni_backward_task};
  return kernels;
}

}  // namespace SHOWO_ISA
}  // namespace showo
