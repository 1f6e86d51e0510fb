// Pieces that the CPU forward and backward share: the register tile, and blocks of rows brought to float32.
//
// Scores are kept transposed, p[column][query row], with the query rows along the vector lanes: row maxima and sums are
// then plain vector operations, and keys and values are used just as they lie in memory. All five matrix products of
// attention become one tile,  c[m][0..2 lanes) += sum_k a[m, k] b[k][0..2 lanes),  with a read by broadcast:
//
//   p^T [columns][rows]  = k      [columns][d]      q^T  [d][rows]         also dp^T = v dout^T
//   out [rows][d]        = p^T    [columns][rows]^T v    [columns][d]      also dq   = ds k
//   dv  [columns][d]     = p^T    [columns][rows]   dout [rows][d]         also dk   = ds^T q
#pragma once

#include "common/simd.h"
#include "omni_attention/cpu_plan.h"
#include "omni_attention/head_dim.h"
#include "omni_attention/mask.h"

namespace showo {
namespace SHOWO_ISA {

constexpr int kPanel = 2 * kLanes;                   // query rows (or head dims) of a tile: two vectors
constexpr int kTileRows = kLanes == 16 ? 12 : 6;     // rows of c: fills 12 of 16, or 24 of 32, vector registers
constexpr int64_t kQBlock = kLanes == 16 ? 96 : 48;  // query rows of a block: whole panels and whole tiles
constexpr int64_t kPanels = kQBlock / kPanel;

enum class Start { kZero, kAdd, kScaledAdd };

// c[m][0..kPanel) = start + sum over k < count of a[m A_ROW + k A_STEP] b[k B_STEP][0..kPanel), for m < ROWS.
// kScaledAdd multiplies row m of c by scale[m] before.
template <int ROWS, int A_ROW, int A_STEP, int B_STEP, int C_ROW, Start START>
static __attribute__((noinline)) void tile(float* c, const float* a, const float* b, int64_t count,
                                           const float* scale) {
  VecF sum[ROWS][2];
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m) {
    if (START == Start::kZero) {
      sum[m][0] = sum[m][1] = VecF{};
    } else {
      sum[m][0] = load(c + m * C_ROW);
      sum[m][1] = load(c + m * C_ROW + kLanes);
      if (START == Start::kScaledAdd) {
        sum[m][0] *= scale[m];
        sum[m][1] *= scale[m];
      }
    }
  }
#pragma GCC unroll 4
  for (int64_t k = 0; k < count; ++k) {
    const VecF b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; ++m) {
      const VecF x = set1(a[m * A_ROW]);
      sum[m][0] += x * b0;
      sum[m][1] += x * b1;
    }
    a += A_STEP;
    b += B_STEP;
  }
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m) {
    store(c + m * C_ROW, sum[m][0]);
    store(c + m * C_ROW + kLanes, sum[m][1]);
  }
}

// Tiles come in a few heights; anything else is put together from them.
SHOWO_INLINE int tile_height(int64_t rows) {
  return rows >= kTileRows ? kTileRows : rows >= 6 ? 6 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
}

template <int A_ROW, int A_STEP, int B_STEP, int C_ROW, Start START>
SHOWO_INLINE void tile_of(int height, float* c, const float* a, const float* b, int64_t count,
                          const float* scale = nullptr) {
  if (height == kTileRows) return tile<kTileRows, A_ROW, A_STEP, B_STEP, C_ROW, START>(c, a, b, count, scale);
  if (height == 6) return tile<6, A_ROW, A_STEP, B_STEP, C_ROW, START>(c, a, b, count, scale);
  if (height == 4) return tile<4, A_ROW, A_STEP, B_STEP, C_ROW, START>(c, a, b, count, scale);
  if (height == 2) return tile<2, A_ROW, A_STEP, B_STEP, C_ROW, START>(c, a, b, count, scale);
  return tile<1, A_ROW, A_STEP, B_STEP, C_ROW, START>(c, a, b, count, scale);
}

// ---- scores

constexpr float kLog2E = 1.4426950408889634f;

// What becomes of the products of queries, which carry `factor`, and keys: scores in units of log2. Without a softcap
// the products are the scores.
struct Scores {
  float factor;   // of the queries
  float softcap;  // in units of log2; 0: none
  float inverse;  // of the softcap, in the units of the products

  explicit Scores(const OmniInputs& in)
      : factor(in.softcap > 0 ? in.scale : in.scale * kLog2E),
        softcap(in.softcap * kLog2E),
        inverse(in.softcap > 0 ? 1 / in.softcap : 0) {}

  bool capped() const { return softcap > 0; }
  // Of products, with a softcap: the score, and the score as a share of the softcap.
  VecF share(VecF product) const { return tanh(product * inverse); }
  VecF score(VecF product) const { return share(product) * softcap; }
};

// ---- rows of tensors

SHOWO_INLINE const void* row_at(const void* base, const OmniStrides& s, DType dtype, int64_t batch, int64_t head,
                                int64_t row) {
  return static_cast<const char*>(base) +
         (batch * s.batch + head * s.head + row * s.row) * (dtype == DType::kF32 ? 4 : 2);
}

template <int D>
SHOWO_INLINE void read_row(float* to, const void* from, DType dtype) {
#pragma GCC unroll 2
  for (int d = 0; d < D; d += kLanes) {
    VecF x;
    if (dtype == DType::kF32) {
      x = load(static_cast<const float*>(from) + d);
    } else if (dtype == DType::kBF16) {
      x = load(static_cast<const BFloat16*>(from) + d);
    } else {
      x = load(static_cast<const Half*>(from) + d);
    }
    store(to + d, x);
  }
}

// Asks for rows that will be read (or written) soon: rows of [B, S, H, D] tensors lie kilobytes apart, which hardware
// prefetchers do not follow.
template <int D, bool FOR_WRITE>
SHOWO_INLINE void prefetch_row(const void* row, DType dtype) {
  for (int byte = 0; byte < D * (dtype == DType::kF32 ? 4 : 2); byte += 64)
    __builtin_prefetch(static_cast<const char*>(row) + byte, FOR_WRITE ? 1 : 0);
}

constexpr int64_t kRowsAhead = 8;

// `rows` rows of one head as float32 [rows][D].
template <int D>
SHOWO_INLINE void read_rows(float* to, const void* base, const OmniStrides& strides, DType dtype, int64_t batch,
                            int64_t head, int64_t first, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    if (row + kRowsAhead < rows)
      prefetch_row<D, false>(row_at(base, strides, dtype, batch, head, first + row + kRowsAhead), dtype);
    read_row<D>(to + row * D, row_at(base, strides, dtype, batch, head, first + row), dtype);
  }
}

template <int D>
SHOWO_INLINE void write_row(void* to, const float* from, DType dtype) {
  if (dtype == DType::kF32) {
    for (int d = 0; d < D; d += kLanes) store(static_cast<float*>(to) + d, load(from + d));
  } else if (dtype == DType::kBF16) {
    for (int d = 0; d < D; ++d) store_float(static_cast<BFloat16*>(to) + d, from[d]);
  } else {
    for (int d = 0; d < D; ++d) store_float(static_cast<Half*>(to) + d, from[d]);
  }
}

// x [kQBlock][D] (rows beyond `rows` are taken as zero) to panels [kPanels][D][kPanel], times factor.
template <int D>
static void transpose_to_panels(float* panels, const float* x, int64_t rows, float factor) {
  for (int64_t row = 0; row < kQBlock; ++row) {
    float* to = panels + row / kPanel * (D * kPanel) + row % kPanel;
    if (row < rows) {
      for (int d = 0; d < D; ++d) to[d * kPanel] = x[row * D + d] * factor;
    } else {
      for (int d = 0; d < D; ++d) to[d * kPanel] = 0.0f;
    }
  }
}

// Rows of keys or values as float32 blocks [<= 64][D]: the tensor itself where it already looks so, else a copy made at
// the first visit of a block.
template <int D>
struct KvRows {
  const void* base;
  OmniStrides strides;
  DType dtype;
  int64_t batch, head, length;
  float* copy;      // [num_kv_blocks * 64][D]
  uint8_t* copied;  // [num_kv_blocks], zero at the start

  bool direct() const { return dtype == DType::kF32 && strides.row == D; }

  const float* block(int64_t index) {
    const int64_t first = index * kKvBlock;
    if (direct()) return static_cast<const float*>(row_at(base, strides, dtype, batch, head, first));
    float* to = copy + first * D;
    if (!copied[index]) {
      const int64_t rows = length - first < kKvBlock ? length - first : kKvBlock;
      read_rows<D>(to, base, strides, dtype, batch, head, first, rows);
      copied[index] = 1;
    }
    return to;
  }
};

SHOWO_INLINE bool needs_copy(const OmniStrides& strides, DType dtype, int64_t head_dim) {
  return dtype != DType::kF32 || strides.row != head_dim;
}

// Bytes of the copies of k and v and of their flags, in this order behind the fixed part of the scratch.
SHOWO_INLINE int64_t kv_copy_bytes(const OmniInputs& in) {
  const int64_t blocks = (in.kv_length + kKvBlock - 1) / kKvBlock;
  const int64_t copies =
      needs_copy(in.k_strides, in.dtype, in.head_dim) + needs_copy(in.v_strides, in.dtype, in.head_dim);
  return copies * blocks * kKvBlock * in.head_dim * 4 + 2 * blocks;
}

template <int D>
SHOWO_INLINE void place_kv_copies(KvRows<D>* keys, KvRows<D>* values, const OmniInputs& in, const OmniTask& task,
                                  void* memory) {
  const int64_t blocks = (in.kv_length + kKvBlock - 1) / kKvBlock;
  float* copy = static_cast<float*>(memory);
  *keys = KvRows<D>{in.k, in.k_strides, in.dtype, task.batch, task.kv_head, in.kv_length, copy, nullptr};
  if (!keys->direct()) copy += blocks * kKvBlock * D;
  *values = KvRows<D>{in.v, in.v_strides, in.dtype, task.batch, task.kv_head, in.kv_length, copy, nullptr};
  if (!values->direct()) copy += blocks * kKvBlock * D;
  keys->copied = reinterpret_cast<uint8_t*>(copy);
  values->copied = keys->copied + blocks;
  std::memset(keys->copied, 0, 2 * blocks);
}

// ---- masks

// Which columns the query rows of one block see. Bit j of every word stands for column j of the block's 64. A row
// beyond the last query row sees no column, and `every` leaves it out.
struct BlockMask {
  uint64_t bits[kQBlock];               // what each query row sees
  int32_t low[kQBlock], high[kQBlock];  // the two halves of `bits`, for vectors
  uint64_t any[kPanels];                // what some row of a panel sees
  uint64_t every[kPanels];              // what every row of a panel sees
  uint64_t any_row;                     // what some row of the block sees

  void fill(const OmniInputs& in, int64_t batch, int64_t first_row, int64_t rows, int64_t first_column, int64_t columns,
            bool full) {
    const int32_t* row = in.intervals + batch * in.intervals_batch_stride + first_row * in.intervals_row_stride;
    any_row = 0;
    for (int64_t panel = 0; panel < kPanels; ++panel) {
      uint64_t some = 0, all = ~uint64_t{0};
      for (int64_t i = panel * kPanel; i < (panel + 1) * kPanel; ++i) {
        uint64_t seen = 0;
        if (i < rows) {
          seen = full ? low_bits(columns)
                      : row_bits(row + i * in.intervals_row_stride, in.num_intervals, first_column) & low_bits(columns);
          some |= seen;
          all &= seen;
        }
        bits[i] = seen;
        low[i] = static_cast<int32_t>(seen);
        high[i] = static_cast<int32_t>(seen >> 32);
      }
      any[panel] = some;
      every[panel] = all;
      any_row |= some;
    }
  }

  // A lane for each row of [first, first + kLanes): negative if the row sees column j.
  VecI sees(int64_t first, int j) const { return load((j < 32 ? low : high) + first) << (31 - (j & 31)); }

  uint64_t any_of_rows(int64_t first, int64_t last) const {
    uint64_t some = 0;
    for (int64_t i = first; i < last; ++i) some |= bits[i];
    return some;
  }
};

SHOWO_INLINE int first_bit(uint64_t bits) { return __builtin_ctzll(bits); }
SHOWO_INLINE int end_bit(uint64_t bits) { return 64 - __builtin_clzll(bits); }

// Calls f(first, count) for each run of set bits, the lowest first.
template <class F>
SHOWO_INLINE void for_each_run(uint64_t bits, F f) {
  while (bits != 0) {
    const int first = first_bit(bits);
    const uint64_t from_end = ~(bits >> first);
    const int count = from_end == 0 ? 64 : first_bit(from_end);
    f(first, count);
    bits &= ~(low_bits(count) << first);
  }
}

// Sets p[j][panel] for the columns j in [from, to).
SHOWO_INLINE void fill_columns(float* p, int64_t panel, int from, int to, float value) {
  for (int j = from; j < to; ++j) {
    store(p + j * kQBlock + panel * kPanel, set1(value));
    store(p + j * kQBlock + panel * kPanel + kLanes, set1(value));
  }
}

}  // namespace SHOWO_ISA
}  // namespace showo
