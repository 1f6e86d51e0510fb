// What the decode kernels of 16-bit and fp32 share: which rows and columns a thread block has, the pipeline's memory,
// and how the warps' shares of a row become one. See decode.cu for the whole.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>

#include "common/launch.h"
#include "common/launch_kernel.cuh"
#include "omni_attention/forward.h"
#include "omni_attention/forward_tile.cuh"
#include "omni_attention/head_dim.h"
#include "omni_attention/softcap.cuh"

namespace showo {

constexpr int kDecodeRows = 64;  // packed rows of a thread block: four m16 tiles
constexpr int kDecodeWarps = 4;  // kForwardThreads / 32
constexpr int kMaskRows = 16;    // rows of intervals in shared memory; from S_q on they see nothing
constexpr int kMaxSplits = 128;  // four per lane of the combine kernel

// kHalves: head_dim in units of 16 bits, D for 16-bit types, 2 D for fp32. All strides are in these units.
template <int D, int kHalves>
struct DecodeTile {
  static constexpr bool kFloat = kHalves == 2 * D;
  static constexpr int kUnit = kFloat ? 8 : 16;  // columns that a warp takes at a time
  static constexpr int kColumns = 4 * kUnit;     // columns of a stage
  static constexpr int kRowBytes = 2 * kHalves;
  static constexpr int kMatrixBytes = kColumns * kRowBytes;
  static constexpr int kStageBytes = 2 * kMatrixBytes;
  // Three stages, or two where three would leave room for but one thread block on an A100's multiprocessor.
  static constexpr int kStages = D >= 128 ? 2 : 3;
  static constexpr int kStats = kStages * kStageBytes;             // offset of float2 [kDecodeWarps][16]
  static constexpr int kScratch = kStats + kDecodeWarps * 16 * 8;  // fp32: probabilities [kDecodeWarps][16][kUnit]
  static constexpr int kQueries = kScratch + (kFloat ? kDecodeWarps * 16 * kUnit * 4 : 0);  // offset of the m16 tiles

  // Intervals, int2 [num_intervals][kMaskRows], come behind the queries.
  __host__ __device__ static constexpr int intervals(int m_tiles) { return kQueries + m_tiles * 16 * kRowBytes; }
  static constexpr int shared_bytes(int m_tiles, int64_t num_intervals) {
    return intervals(m_tiles) + static_cast<int>(num_intervals) * kMaskRows * 8;
  }
  static_assert(kStageBytes >= kDecodeWarps * 16 * D * 4, "a stage holds the four warps' outputs");
};

// Packed row r of a kv head is query row r % S_q of its query head r / S_q.
struct DecodeBlock {
  int64_t batch;
  int kv_head, group, q_length, first_row, rows, split;

  __device__ __forceinline__ explicit DecodeBlock(const OmniDecodeParams& p)
      : batch(blockIdx.z),
        kv_head(static_cast<int>(blockIdx.y)),
        group(static_cast<int>(p.in.heads / p.in.kv_heads)),
        q_length(static_cast<int>(p.in.q_length)) {
    const int all_rows = group * q_length, tiles = (all_rows + kDecodeRows - 1) / kDecodeRows;
    split = static_cast<int>(blockIdx.x) / tiles;
    first_row = static_cast<int>(blockIdx.x) % tiles * kDecodeRows;
    rows = min(kDecodeRows, all_rows - first_row);
  }
  __device__ __forceinline__ int m_tiles() const { return (rows + 15) / 16; }
  // Warps that share an m16 tile, each with columns of its own: 4, 2 or 1.
  __device__ __forceinline__ int warps_per_tile() const { return rows <= 16 ? 4 : rows <= 32 ? 2 : 1; }
  __device__ __forceinline__ int head(int row) const { return kv_head * group + (first_row + row) / q_length; }
  __device__ __forceinline__ int query(int row) const { return (first_row + row) % q_length; }
  // Whose intervals a row of the m16 tiles has. With 16 query rows all rows of a tile exist.
  __device__ __forceinline__ int mask_row(int row) const { return row < rows ? query(row) : q_length % kMaskRows; }
};

__device__ __forceinline__ void fill_intervals(int2* to, const OmniInputs& in, int64_t batch) {
  const int32_t* from = in.intervals + batch * in.intervals_batch_stride;
  for (int i = threadIdx.x; i < in.num_intervals * kMaskRows; i += kForwardThreads) {
    const int row = i % kMaskRows, interval = i / kMaskRows;
    ColumnRange range{0, 0};  // absent rows see nothing
    if (row < in.q_length)
      range = existing_columns(from + row * in.intervals_row_stride + 2 * interval, static_cast<int>(in.kv_length));
    to[i] = make_int2(range.start, range.stop);
  }
}

// The m16 tiles of queries; rows that do not exist become zeros.
template <int kHalves>
__device__ __forceinline__ void copy_queries(uint32_t to, const OmniInputs& in, const DecodeBlock& block) {
  constexpr int kChunks = kHalves / 8;
  for (int i = threadIdx.x; i < block.m_tiles() * 16 * kChunks; i += kForwardThreads) {
    const int row = i / kChunks, chunk = i % kChunks, existing = min(row, block.rows - 1);
    const char* from = static_cast<const char*>(in.q) +
                       2 * (block.batch * in.q_strides.batch + block.head(existing) * in.q_strides.head +
                            block.query(existing) * in.q_strides.row) +
                       chunk * 16;
    cp_async16(to + swizzled<kHalves>(row, chunk), from, row < block.rows ? 16 : 0);
  }
}

// Walks those of a split's column blocks that some query row sees. The split has every splits-th block of kColumns,
// so that any run of visible columns is shared out evenly without counting. Each lane looks at one block.
template <int kColumns>
struct DecodeWalk {
  const int2* intervals;
  int num_intervals, q_length, kv_length, step;  // step: columns from one block of the split to its next
  int next;                                      // first column of the blocks that no lane has looked at yet
  int base = 0;
  uint32_t visited = 0, full = 0;

  __device__ __forceinline__ Stage advance() {
    while (visited == 0) {
      if (next >= kv_length) return kNoStage;
      base = next;
      next += 32 * step;
      const int first = base + static_cast<int>(threadIdx.x & 31) * step, end = first + kColumns;
      bool any = false, all = true;  // blocks that reach beyond kv_length are in no interval whole
      for (int row = 0; row < q_length; ++row) {
        bool whole = false;
        for (int i = 0; i < num_intervals; ++i) {
          const int2 range = intervals[i * kMaskRows + row];
          any |= max(range.x, first) < min(range.y, end);
          whole |= range.x <= first && end <= range.y;
        }
        all &= whole;
      }
      visited = __ballot_sync(kAllLanes, any);
      full = __ballot_sync(kAllLanes, all);
    }
    const int bit = __ffs(visited) - 1;
    visited &= visited - 1;
    return Stage{base + bit * step + static_cast<int>((full >> bit) & 1)};
  }
};

// What 16 rows see of up to 32 columns. `bits`: of the lane's own row, lane % 16. `any`: what some of the rows sees.
struct UnitMask {
  uint32_t bits, any;

  __device__ __forceinline__ UnitMask(const int2* row, int num_intervals, int column, int columns) : bits(0) {
    for (int i = 0; i < num_intervals; ++i) {
      const int2 range = row[i * kMaskRows];
      bits |= bits_from(max(range.x - column, 0)) & ~bits_from(max(min(range.y - column, columns), 0));
    }
    any = __reduce_or_sync(kAllLanes, bits);
  }
};

// The loop over stages. `compute(stage, slot)` uses the keys and values at offset `slot` of shared memory; `begin()`
// runs once the queries are there. False if the split has no column to look at.
template <int D, int kHalves, class Begin, class Compute>
__device__ __forceinline__ bool decode_columns(const OmniDecodeParams& p, const DecodeBlock& block, char* shared,
                                               Begin&& begin, Compute&& compute) {
  using Tile = DecodeTile<D, kHalves>;
  using Copy = RowCopy<kHalves>;
  const OmniInputs& in = p.in;
  const uint32_t base = shared_address(shared);
  int2* intervals = reinterpret_cast<int2*>(shared + Tile::intervals(block.m_tiles()));
  copy_queries<kHalves>(base + Tile::kQueries, in, block);
  fill_intervals(intervals, in, block.batch);
  const int kv_length = static_cast<int>(in.kv_length);
  const char* keys = Copy::source(in.k, in.k_strides, block.batch, block.kv_head);
  const char* values = Copy::source(in.v, in.v_strides, block.batch, block.kv_head);
  __syncthreads();

  DecodeWalk<Tile::kColumns> walk{intervals, static_cast<int>(in.num_intervals),          block.q_length,
                                  kv_length, static_cast<int>(p.splits) * Tile::kColumns, block.split * Tile::kColumns};
  const auto fetch = [&](uint32_t slot) {
    const Stage stage = walk.advance();
    if (stage.exists()) {
      // What no query row sees may hold anything. Zeros take its place: its probabilities are zero, but zero times NaN
      // is NaN.
      int keep[Tile::kColumns / Copy::kRowsPerPass];
#pragma unroll
      for (int& x : keep) x = 1;
      if (!stage.full()) {
#pragma unroll
        for (int first = 0; first < Tile::kColumns; first += 32)
          Copy::leave_out(keep, first,
                          UnitMask(intervals + threadIdx.x % kMaskRows, static_cast<int>(in.num_intervals),
                                   stage.column() + first, 32)
                              .any);
      }
      Copy::copy_passes(base + Copy::place() + slot, {keys, values},
                        {static_cast<int>(in.k_strides.row), static_cast<int>(in.v_strides.row)}, stage.column(), keep);
    }
    cp_async_commit();
    return stage;
  };
  constexpr int kLast = Tile::kStages - 1, kLastSlot = kLast * Tile::kStageBytes;
  Stage coming[kLast];  // the one in use, then those on their way
#pragma unroll
  for (int i = 0; i < kLast; ++i) coming[i] = fetch(i * Tile::kStageBytes);
  uint32_t slot = 0, free = kLastSlot;
  const bool some = coming[0].exists();
  cp_async_wait<kLast - 1>();
  __syncthreads();
  begin(base + Tile::kQueries);
  while (coming[0].exists()) {
    const Stage fresh = fetch(free);
    compute(coming[0], slot);
    cp_async_wait<kLast - 1>();
    __syncthreads();
    free = slot;
    slot = slot == kLastSlot ? 0 : slot + Tile::kStageBytes;
#pragma unroll
    for (int i = 0; i + 1 < kLast; ++i) coming[i] = coming[i + 1];
    coming[kLast - 1] = fresh;
  }
  cp_async_wait<0>();
  return some;
}

// Where 16 bytes of a warp's fp32 output [16][D] lie; permuted so that fragments and rows have no bank conflicts.
template <int D>
__device__ __forceinline__ int decode_output(int row, int chunk) {
  return row * (4 * D) + ((chunk ^ (row & 3) << 1) << 4);
}

template <class T>
__device__ __forceinline__ void store4(char* to, const float4& x) {
  if constexpr (std::is_same_v<T, float>) {
    *reinterpret_cast<float4*>(to) = x;
  } else {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack<T>(x.x, x.y), pack<T>(x.z, x.w));
  }
}

// Joins what the warps have left in shared memory, outputs at 0 and (-m, sum) at kStats, and writes it: the result
// where there is but one split, else this split's share. some: whether there was any column; without it there are no
// outputs, and the combine kernel reads none.
template <class T, int D, int kHalves>
__device__ __forceinline__ void decode_finish(const OmniDecodeParams& p, const DecodeBlock& block, const char* shared,
                                              bool some) {
  using Tile = DecodeTile<D, kHalves>;
  const OmniInputs& in = p.in;
  const int2* intervals = reinterpret_cast<const int2*>(shared + Tile::intervals(block.m_tiles()));
  const float2* stats = reinterpret_cast<const float2*>(shared + Tile::kStats);
  const int warps = block.warps_per_tile();
  for (int i = threadIdx.x; i < block.rows * (D / 4); i += kForwardThreads) {
    const int row = i / (D / 4), chunk = i % (D / 4), first_warp = row / 16 * warps;
    float bound = FLT_MAX, sum = 0.0f;
    float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (some) {
      for (int w = 0; w < warps; ++w) bound = fminf(bound, stats[(first_warp + w) * 16 + row % 16].x);
      for (int w = 0; w < warps; ++w) {
        const float2 own = stats[(first_warp + w) * 16 + row % 16];
        const float weight = exp2_approx(bound - own.x);
        const float4 y =
            *reinterpret_cast<const float4*>(shared + (first_warp + w) * 64 * D + decode_output<D>(row % 16, chunk));
        sum = fmaf(weight, own.y, sum);
        x.x = fmaf(weight, y.x, x.x), x.y = fmaf(weight, y.y, x.y);
        x.z = fmaf(weight, y.z, x.z), x.w = fmaf(weight, y.w, x.w);
      }
    }
    const int head = block.head(row), query = block.query(row);
    const int64_t place = (block.batch * in.heads + head) * in.q_length + query;
    if (p.splits > 1) {
      const int64_t share = place * p.splits + block.split;
      if (some) *reinterpret_cast<float4*>(p.partial_out + share * D + chunk * 4) = x;
      if (chunk == 0) reinterpret_cast<float2*>(p.partial_stats)[share] = make_float2(bound, sum);
      continue;
    }
    const RowResult result = finish_row<kMaskRows>(sum, bound, intervals + query, static_cast<int>(in.num_intervals));
    char* to = static_cast<char*>(p.out) +
               2 * (block.batch * p.out_strides.batch + head * p.out_strides.head + query * p.out_strides.row);
    store4<T>(to + chunk * (Tile::kRowBytes / (D / 4)),
              make_float4(x.x * result.factor, x.y * result.factor, x.z * result.factor, x.w * result.factor));
    if (chunk == 0) p.lse[place] = result.lse;
  }
}

// Tiles of rows and splits, kv heads, batch entries. Tiles that read the same columns are neighbours.
inline dim3 decode_grid(const OmniDecodeParams& p) {
  const int64_t tiles = ceil_div(p.in.heads / p.in.kv_heads * p.in.q_length, kDecodeRows);
  return dim3(static_cast<unsigned>(tiles * p.splits), static_cast<unsigned>(p.in.kv_heads),
              static_cast<unsigned>(p.in.batch));
}
inline int decode_m_tiles(const OmniDecodeParams& p) {
  const int64_t rows = p.in.heads / p.in.kv_heads * p.in.q_length;
  return static_cast<int>(ceil_div(rows < kDecodeRows ? rows : kDecodeRows, 16));
}

}  // namespace showo
