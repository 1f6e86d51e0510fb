// rope_qkv on the CPU. A task is one chunk of rows times one split of heads. A head is brought to float in a small
// buffer, normalised and turned there with vectors, and written once. Backward keeps the sums of a task in float and
// writes them as one partial result, so that the order of additions does not depend on the number of threads.
#include "common/dispatch.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "rope_qkv/params.h"

namespace showo {
namespace SHOWO_ISA {
namespace {

using showo::SHOWO_ISA::store;  // of float, beside those below

constexpr int64_t kMaxHeadDim = 128;
constexpr int64_t kWorthAThread = 1 << 15;  // numbers: tens of microseconds

// Rounds a vector to 16 bits, to nearest even; NaN stays NaN.
SHOWO_INLINE void store(BFloat16* p, VecF x) {
  const VecU bits = reinterpret_cast<VecU>(x);
  const VecU is_nan = reinterpret_cast<VecU>((bits & 0x7fffffffu) > 0x7f800000u);
  const VecU rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const VecU chosen = (is_nan & (bits | 0x400000u)) | (~is_nan & rounded);
  *reinterpret_cast<VecU16Any*>(p) = __builtin_convertvector(chosen >> 16, VecU16);
}

SHOWO_INLINE void store(Half* p, VecF x) {
  for (int i = 0; i < kLanes; ++i) store_float(p + i, x[i]);
}

template <class T>
const T* row_of(const RopeHeads& heads, int64_t b, int64_t head, int64_t row) {
  return static_cast<const T*>(heads.data) + b * heads.batch_stride + head * heads.head_stride + row * heads.row_stride;
}

// to[0..dim) = from + bias
template <class T>
void read_head(float* to, const T* from, const RopeQkvParams& p, int64_t column) {
  for (int64_t d = 0; d < p.head_dim; d += kLanes) {
    VecF x = load(from + d);
    if (p.bias != nullptr) {
      x += p.bias_dtype == DType::kF32 ? load(static_cast<const float*>(p.bias) + column * p.head_dim + d)
                                       : load(static_cast<const T*>(p.bias) + column * p.head_dim + d);
    }
    store(to + d, x);
  }
}

// x becomes (x - mean) / sqrt(variance + eps); returns 1 / sqrt(variance + eps).
float normalise(float* x, int64_t dim, float eps) {
  VecF total{};
  for (int64_t d = 0; d < dim; d += kLanes) total += load(x + d);
  const float mean = sum(total) / static_cast<float>(dim);
  VecF squares{};
  for (int64_t d = 0; d < dim; d += kLanes) {
    const VecF centred = load(x + d) - mean;
    squares += centred * centred;
    store(x + d, centred);
  }
  const float rstd = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(dim) + eps);
  for (int64_t d = 0; d < dim; d += kLanes) store(x + d, load(x + d) * rstd);
  return rstd;
}

// Turns pairs (i, i + half) of x by the angles; direction -1 turns them back.
void turn(float* x, const float* cos, const float* sin, int64_t half, float direction) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const VecF first = load(x + i), second = load(x + half + i);
    const VecF c = load(cos + i), s = load(sin + i) * direction;
    store(x + i, first * c - second * s);
    store(x + half + i, second * c + first * s);
  }
  for (; i < half; ++i) {
    const float first = x[i], second = x[half + i], s = sin[i] * direction;
    x[i] = first * cos[i] - second * s;
    x[half + i] = second * cos[i] + first * s;
  }
}

template <class T>
void write_head(T* to, const float* x, int64_t dim) {
  for (int64_t d = 0; d < dim; d += kLanes) store(to + d, load(x + d));
}

struct Column {
  int64_t index;  // in the order q, k, v
  int64_t local;  // within its own tensor
  int kind;       // 0 q, 1 k, 2 v
};

Column column_of(const RopeQkvParams& p, int64_t index) {
  if (index < p.heads) return {index, index, 0};
  if (index < p.heads + p.kv_heads) return {index, index - p.heads, 1};
  return {index, index - p.heads - p.kv_heads, 2};
}

template <class T>
const T* source_of(const RopeQkvParams& p, const Column& column, int64_t b, int64_t row) {
  const RopeRows& in = p.in[column.kind];
  return static_cast<const T*>(in.data) + b * in.batch_stride + row * in.row_stride + column.local * p.head_dim;
}

// What a task works on.
struct Part {
  int64_t chunk, split;
  int64_t first_row, end_row;
  int64_t first_head, end_head;
};

template <class Function>
void for_each_part(const RopeQkvParams& p, int num_threads, const Function& function) {
  const int64_t num_rows = p.batch * p.length, total_heads = p.heads + 2 * p.kv_heads;
  if (num_rows <= 0 || total_heads <= 0) return;
  const int64_t splits = rope_qkv_splits(total_heads), rows = rope_qkv_chunk_rows(num_rows, total_heads);
  // A row of a text that grows is done before another thread has woken up.
  if (num_rows * total_heads * p.head_dim < kWorthAThread) num_threads = 1;
  parallel_for(rope_qkv_chunks(num_rows, total_heads) * splits, num_threads, [&](int64_t task) {
    Part part;
    part.chunk = task / splits;
    part.split = task % splits;
    part.first_row = part.chunk * rows;
    part.end_row = part.first_row + rows < num_rows ? part.first_row + rows : num_rows;
    part.first_head = part.split * kRopeHeadsPerSplit;
    part.end_head =
        part.first_head + kRopeHeadsPerSplit < total_heads ? part.first_head + kRopeHeadsPerSplit : total_heads;
    function(part);
  });
}

template <class T>
void forward_part(const RopeQkvParams& p, const Part& part) {
  alignas(64) float x[kMaxHeadDim];
  const int64_t half = p.rotary_dim / 2;
  for (int64_t row = part.first_row; row < part.end_row; ++row) {
    const int64_t b = row / p.length, s = row % p.length;
    const int64_t angles = b * p.table_batch_stride + s * half;
    const int64_t slot = p.slots != nullptr ? p.slots[b * p.slots_batch_stride + s] : s;
    for (int64_t head = part.first_head; head < part.end_head; ++head) {
      const Column column = column_of(p, head);
      read_head(x, source_of<T>(p, column, b, s), p, head);
      if (column.kind < 2) {
        if (p.norm != nullptr) {
          normalise(x, p.head_dim, p.eps);
          const float* weight = p.norm + column.kind * 2 * p.head_dim;
          const float* bias = weight + p.head_dim;
          for (int64_t d = 0; d < p.head_dim; d += kLanes)
            store(x + d, load(x + d) * load(weight + d) + load(bias + d));
        }
        turn(x, p.cos + angles, p.sin + angles, half, 1.0f);
      }
      const T* to = row_of<T>(p.out[column.kind], b, column.local, column.kind == 0 ? s : slot);
      write_head(const_cast<T*>(to), x, p.head_dim);
    }
  }
}

// Heads are the outer loop, so that a head's sums stay in the buffers.
template <class T>
void backward_part(const RopeQkvParams& p, const Part& part) {
  const int64_t dim = p.head_dim, half = p.rotary_dim / 2, width = (p.heads + 2 * p.kv_heads) * dim;
  alignas(64) float g[kMaxHeadDim], h[kMaxHeadDim], dbias[kMaxHeadDim];
  alignas(64) float dnorm[4 * kMaxHeadDim] = {};
  for (int64_t head = part.first_head; head < part.end_head; ++head) {
    const Column column = column_of(p, head);
    const bool normed = column.kind < 2 && p.norm != nullptr;
    const float* weight = normed ? p.norm + column.kind * 2 * dim : nullptr;
    float* dweight = dnorm + (column.kind == 1 ? 2 * dim : 0);
    float* dnorm_bias = dweight + dim;
    for (int64_t d = 0; d < dim; ++d) dbias[d] = 0.0f;
    const int64_t to_stride = p.in_three ? (column.kind == 0 ? p.heads : p.kv_heads) * dim : width;
    const int64_t to_first =
        p.in_three ? (head - column.local) * p.batch * p.length + column.local : head;  // in heads, of the first row
    for (int64_t row = part.first_row; row < part.end_row; ++row) {
      const int64_t b = row / p.length, s = row % p.length;
      const int64_t angles = b * p.table_batch_stride + s * half;
      const T* from = row_of<T>(p.out[column.kind], b, column.local, s);
      T* to = static_cast<T*>(p.dqkv) + to_first * dim + row * to_stride;
      if (column.kind == 2 && p.dbias == nullptr) {  // nothing to do but to copy
        for (int64_t d = 0; d < dim; d += kLanes) store(to + d, load(from + d));
        continue;
      }
      for (int64_t d = 0; d < dim; d += kLanes) store(g + d, load(from + d));
      if (column.kind < 2) turn(g, p.cos + angles, p.sin + angles, half, -1.0f);
      if (normed) {
        read_head(h, source_of<T>(p, column, b, s), p, head);
        const float rstd = normalise(h, dim, p.eps);
        VecF sums{}, products{};
        for (int64_t d = 0; d < dim; d += kLanes) {
          const VecF grad = load(g + d), normal = load(h + d);
          store(dnorm_bias + d, load(dnorm_bias + d) + grad);
          store(dweight + d, load(dweight + d) + grad * normal);
          const VecF weighted = grad * load(weight + d);
          sums += weighted;
          products += weighted * normal;
          store(g + d, weighted);
        }
        const float mean = sum(sums) / static_cast<float>(dim), slope = sum(products) / static_cast<float>(dim);
        for (int64_t d = 0; d < dim; d += kLanes) store(g + d, (load(g + d) - mean - load(h + d) * slope) * rstd);
      }
      if (p.dbias != nullptr) {
        for (int64_t d = 0; d < dim; d += kLanes) store(dbias + d, load(dbias + d) + load(g + d));
      }
      write_head(to, g, dim);
    }
    if (p.dbias != nullptr) write_head(p.dbias + part.chunk * width + head * dim, dbias, dim);
  }
  if (p.dnorm != nullptr) {
    const int64_t splits = rope_qkv_splits(p.heads + 2 * p.kv_heads);
    write_head(p.dnorm + (part.chunk * splits + part.split) * 4 * dim, dnorm, 4 * dim);
  }
}

Status check(const RopeQkvParams& p) {
  SHOWO_CHECK_ARGUMENT(p.head_dim >= 32 && p.head_dim <= kMaxHeadDim && p.head_dim % 32 == 0,
                       "rope_qkv: no kernel for head_dim %lld", static_cast<long long>(p.head_dim));
  SHOWO_CHECK_ARGUMENT(p.rotary_dim >= 0 && p.rotary_dim <= p.head_dim && p.rotary_dim % 2 == 0,
                       "rope_qkv: rotary_dim %lld is not an even number up to head_dim %lld",
                       static_cast<long long>(p.rotary_dim), static_cast<long long>(p.head_dim));
  if (p.slots == nullptr) return ok_status();
  for (int64_t b = 0; b < (p.slots_batch_stride == 0 ? 1 : p.batch); ++b) {
    for (int64_t s = 0; s < p.length; ++s) {
      const int64_t slot = p.slots[b * p.slots_batch_stride + s];
      SHOWO_CHECK_ARGUMENT(slot >= 0 && slot < p.num_slots, "slots holds %lld, expected 0 to %lld",
                           static_cast<long long>(slot), static_cast<long long>(p.num_slots - 1));
    }
  }
  return ok_status();
}

}  // namespace

Status rope_qkv_forward_cpu(const RopeQkvParams& p, int num_threads) {
  SHOWO_RETURN_IF_ERROR(check(p));
  for_each_part(p, num_threads, [&](const Part& part) {
    if (p.dtype == DType::kF32) return forward_part<float>(p, part);
    if (p.dtype == DType::kF16) return forward_part<Half>(p, part);
    return forward_part<BFloat16>(p, part);
  });
  return ok_status();
}

Status rope_qkv_backward_cpu(const RopeQkvParams& p, int num_threads) {
  SHOWO_RETURN_IF_ERROR(check(p));
  for_each_part(p, num_threads, [&](const Part& part) {
    if (p.dtype == DType::kF32) return backward_part<float>(p, part);
    if (p.dtype == DType::kF16) return backward_part<Half>(p, part);
    return backward_part<BFloat16>(p, part);
  });
  return ok_status();
}

}  // namespace SHOWO_ISA

SHOWO_CPU_LAUNCHER(rope_qkv_forward_cpu, RopeQkvParams)
SHOWO_CPU_LAUNCHER(rope_qkv_backward_cpu, RopeQkvParams)

}  // namespace showo
