// omni_attention forward in fp16 and bf16 on the tensor cores of sm_80, FlashAttention-2 style (Dao, 2023).
//
// One thread block of four warps owns `kRows` query rows of one head; a warp owns 16 or 32 of them and all columns, so
// softmax needs no exchange between warps. Scores live in registers only. Queries are read once and kept (registers, or
// shared memory from D = 128 on); keys and values of visited blocks stream through two shared-memory stages by
// cp.async: the next stage is copied while the current one is used, one barrier per stage.
//
// Masks. The block table (block_table.cu) names the 64 x 64 blocks to visit. Blocks that are full for the whole tile
// take a loop without any mask. In the others each lane reduces the intervals of one row to a bit or two for each 16
// columns; one OR over the warp tells for each 16 x 16 sub-tile whether to skip it, to use it whole, or to mask it.
// Only the last kind asks for the columns of single rows.
//
// Softcap. In tiles of 64 rows alone: scores become tanh(scale s / softcap) before the mask, and `scale` below is the
// softcap. A branch that all threads take alike jumps over this where there is none.
//
// Softmax. exp2 of scale log2(e) s - m, one FMA and one ex2 per score. m is a bound within 2^8 of the running maximum:
// output and sum are rescaled only when a maximum outgrows it, which keeps the loop free of multiplications and
// changes nothing but the exponent of intermediate numbers. In bf16, whose largest numbers are those of fp32, m is 32
// more: the weights of up to 2^24 columns then add up to less than 1, so that no sum of values outgrows the largest
// value. Row sums are per thread until the end.
//
// Memory. q, out and lse cross the bus once, k and v once per visited block and tile, in 16-byte accesses. Rows in
// shared memory are XOR-swizzled so that ldmatrix, cp.async and the output's staging have no bank conflicts.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>

#include "common/cuda_check.h"
#include "common/ptx.cuh"
#include "omni_attention/forward.h"
#include "omni_attention/forward_mask.cuh"
#include "omni_attention/forward_rows.cuh"
#include "omni_attention/params.h"
#include "omni_attention/softcap.cuh"

namespace showo {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kMaxGrowth = 8.0f;  // log2 of how far probabilities may exceed 1 before a rescale

// log2 of how much smaller than its probabilities the weights of a row are, until the row is normalised.
template <class T>
constexpr float kHeadroom = std::is_same_v<T, __nv_bfloat16> ? 32.0f : 0.0f;

// The shape of one instantiation: head size, m16 tiles of a warp.
template <int D, int M>
struct ForwardTile {
  static constexpr int kRows = 64 * M;
  static constexpr int kWarpRows = 16 * M;
  static constexpr int kColumns = D <= 64 ? 64 : 32;  // columns of a stage: registers for scores shrink as outputs grow
  static constexpr bool kQueriesInRegisters = D <= 96;
  static constexpr int kRowBytes = 2 * D;
  static constexpr int kQueryBytes = kRows * kRowBytes;
  static constexpr int kMatrixBytes = kColumns * kRowBytes;  // keys or values of one stage
  static constexpr int kStageBytes = 2 * kMatrixBytes;
  static constexpr int kSources = kQueryBytes + 2 * kStageBytes;  // offset of Sources [kForwardThreads]
  static constexpr int kSeen = kSources + 16 * kForwardThreads;   // offset of const uint8_t* [kForwardThreads]
  static constexpr int kIntervals = kSeen + 8 * kForwardThreads;  // offset of int2 [num_intervals][kRows]

  static constexpr int shared_bytes(int64_t num_intervals) {
    return kIntervals + static_cast<int>(num_intervals) * kRows * 8;
  }
};

// Where a thread reads keys and values. Kept in shared memory: the loop has no registers to spare.
struct alignas(16) Sources {
  const char *keys, *values;
};

// ---- the end of a row

struct RowResult {
  float factor, lse;  // factor of the output
};

// sum: of the whole row. bound: as in WarpRows. intervals: of the row, kRows apart.
template <int kRows>
__device__ __forceinline__ RowResult finish_row(float sum, float bound, const int2* intervals, int num_intervals) {
  if (sum != 0.0f) return {1.0f / sum, (log2_approx(sum) - bound) * kLn2};
  bool empty = true;  // no columns, or nothing but scores of -inf: the latter is 0 / 0
  for (int i = 0; i < num_intervals; ++i) empty &= intervals[i * kRows].x >= intervals[i * kRows].y;
  return {empty ? 0.0f : NAN, empty ? -INFINITY : NAN};
}

// ---- one warp's rows

template <class T, int D, int M>
struct WarpRows {
  using Tile = ForwardTile<D, M>;
  static constexpr int kC = Tile::kColumns;

  float out[M][D / 8][4];
  float bound[M][2];  // -m above, in units of log2
  float sum[M][2];    // this thread's columns only
  uint32_t query[M][Tile::kQueriesInRegisters ? D / 16 : 1][4];
  uint32_t query_address;
  float scale;  // times log2(e), not negative
  Softcap softcap;

  // No column seen yet. The sign of a negative scale is the queries' (see negate). A scale of zero becomes a tiny one:
  // zero times the score -inf of a masked column would be NaN.
  __device__ __forceinline__ WarpRows(float signed_scale, const Softcap& cap)
      : scale(fmaxf(fabsf(signed_scale) * kLog2E, 1e-30f)), softcap(cap) {
    if (M == 1) scale = cap.factor(scale);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      sum[m][0] = sum[m][1] = 0.0f;
      bound[m][0] = bound[m][1] = FLT_MAX;
#pragma unroll
      for (int n8 = 0; n8 < D / 8; ++n8)
#pragma unroll
        for (int i = 0; i < 4; ++i) out[m][n8][i] = 0.0f;
    }
  }

  // Whether scores are tanh of products, and `scale` is the softcap. The large tile has no registers for that.
  __device__ __forceinline__ static bool capped(const Softcap& cap) { return M == 1 && cap.exists(); }

  // address: the lane's ldmatrix address of the warp's rows in shared memory.
  __device__ __forceinline__ void keep_queries(uint32_t address) {
    query_address = address;
    if constexpr (Tile::kQueriesInRegisters) {
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int k16 = 0; k16 < D / 16; ++k16)
          ldmatrix_x4(query[m][k16],
                      ChunkPairs<D>(query_address)[k16] + ChunkPairs<D>::offset(k16) + m * 16 * Tile::kRowBytes);
    }
  }

  __device__ __forceinline__ void load_query(uint32_t (&a)[4], int m, int k16) const {
    if constexpr (Tile::kQueriesInRegisters) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = query[m][k16][i];
    } else {
      ldmatrix_x4(a, ChunkPairs<D>(query_address)[k16] + ChunkPairs<D>::offset(k16) + m * 16 * Tile::kRowBytes);
    }
  }

  template <int kK16>
  __device__ __forceinline__ static void multiply_keys(float (&s)[4], const uint32_t (&a)[4], uint32_t b0,
                                                       uint32_t b1) {
    if constexpr (kK16 == 0) {
      mma_m16n8k16_first<T>(s, a, b0, b1);
    } else {
      mma_m16n8k16<T>(s, a, b0, b1);
    }
  }

  // Scores of a 16 x 16 sub-tile, or of all rows with all columns.
  template <int kN16>
  __device__ __forceinline__ void scores_of(float (&s)[M][kC / 8][4], const ChunkPairs<D>& keys, int m) const {
    unrolled<D / 16>([&](auto k16) {
      uint32_t a[4], b[4];
      load_query(a, m, k16);
      ldmatrix_x4_at<kN16 * 16 * Tile::kRowBytes + ChunkPairs<D>::offset(k16)>(b, keys[k16]);
      multiply_keys<k16>(s[m][2 * kN16], a, b[0], b[1]);
      multiply_keys<k16>(s[m][2 * kN16 + 1], a, b[2], b[3]);
    });
  }
  __device__ __forceinline__ void all_scores(float (&s)[M][kC / 8][4], const ChunkPairs<D>& keys) const {
    unrolled<D / 16>([&](auto k16) {
      uint32_t a[M][4];
#pragma unroll
      for (int m = 0; m < M; ++m) load_query(a[m], m, k16);
      unrolled<kC / 16>([&](auto n16) {
        uint32_t b[4];
        ldmatrix_x4_at<n16 * 16 * Tile::kRowBytes + ChunkPairs<D>::offset(k16)>(b, keys[k16]);
#pragma unroll
        for (int m = 0; m < M; ++m) {
          multiply_keys<k16>(s[m][2 * n16], a[m], b[0], b[1]);
          multiply_keys<k16>(s[m][2 * n16 + 1], a[m], b[2], b[3]);
        }
      });
    });
  }

  // Turns the scores of 16 columns into probabilities, as an A fragment, and adds the probabilities to the sums.
  __device__ __forceinline__ void probabilities(uint32_t (&p)[4], const float (&s)[M][kC / 8][4], int m, int n16) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float x = exp2_approx(fmaf(s[m][2 * n16 + j][2 * row], scale, bound[m][row]));
        const float y = exp2_approx(fmaf(s[m][2 * n16 + j][2 * row + 1], scale, bound[m][row]));
        sum[m][row] += x;
        sum[m][row] += y;
        p[2 * j + row] = pack<T>(x, y);
      }
  }

  // top: the maxima of the new scores, unscaled, over this thread's columns. Raises the bound of every row whose new
  // maximum has outgrown the row's bound.
  __device__ __forceinline__ void raise_bounds(float (&top)[M][2]) {
    bool grown = false;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        top[m][row] = fmaxf(top[m][row], shuffle_xor<1>(top[m][row]));
        top[m][row] = fmaxf(top[m][row], shuffle_xor<2>(top[m][row]));
        grown |= fmaf(top[m][row], scale, bound[m][row]) > kMaxGrowth - kHeadroom<T>;
      }
    if (__any_sync(kAllLanes, grown)) rescale(top);
  }

  __device__ __forceinline__ void rescale(const float (&top)[M][2]) {
    float keep[M][2];
    bool any = false;  // a row whose sum is still zero has no output either
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float wanted = fmaf(top[m][row], scale, kHeadroom<T>);
        const bool raise = wanted + bound[m][row] > kMaxGrowth;
        keep[m][row] = raise ? exp2_approx(-bound[m][row] - wanted) : 1.0f;
        any |= raise && sum[m][row] != 0.0f;
        bound[m][row] = raise ? -wanted : bound[m][row];
      }
    if (!__any_sync(kAllLanes, any)) return;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        sum[m][row] *= keep[m][row];
#pragma unroll
        for (int n8 = 0; n8 < D / 8; ++n8) {
          out[m][n8][2 * row] *= keep[m][row];
          out[m][n8][2 * row + 1] *= keep[m][row];
        }
      }
  }

  __device__ __forceinline__ static void include(float (&top)[M][2], const float (&s)[M][kC / 8][4], int m, int n8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) top[m][i / 2] = fmaxf(top[m][i / 2], s[m][n8][i]);
  }

  // A stage that every row sees whole. keys and values: the lane's ldmatrix addresses.
  __device__ __forceinline__ void full_stage(uint32_t keys, uint32_t values) {
    float s[M][kC / 8][4], top[M][2];
    all_scores(s, ChunkPairs<D>(keys));
    if (capped(softcap)) softcap.apply<false, 0, kC / 8>(s[0]);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      top[m][0] = top[m][1] = -INFINITY;
#pragma unroll
      for (int n8 = 0; n8 < kC / 8; ++n8) include(top, s, m, n8);
    }
    raise_bounds(top);
    const ChunkPairs<D> chunks(values);
    unrolled<kC / 16>([&](auto n16) {
      uint32_t p[M][4];
#pragma unroll
      for (int m = 0; m < M; ++m) probabilities(p[m], s, m, n16);
      unrolled<D / 16>([&](auto d16) {
        uint32_t b[4];
        ldmatrix_x4_trans_at<n16 * 16 * Tile::kRowBytes + ChunkPairs<D>::offset(d16)>(b, chunks[d16]);
#pragma unroll
        for (int m = 0; m < M; ++m) {
          mma_m16n8k16<T>(out[m][2 * d16], p[m], b[0], b[1]);
          mma_m16n8k16<T>(out[m][2 * d16 + 1], p[m], b[2], b[3]);
        }
      });
    });
  }

  // bits: the columns that the lane's row sees (lane = row of the warp's tile).
  __device__ __forceinline__ void partial_stage(uint32_t keys, uint32_t values, const WarpMask<M, kC>& mask,
                                                const uint32_t (&bits)[kC / 32]) {
    float s[M][kC / 8][4], top[M][2];
    const int row = (threadIdx.x & 31) / 4, first_column = (threadIdx.x & 3) * 2;  // of the thread in a sub-tile
    const ChunkPairs<D> key_chunks(keys);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      top[m][0] = top[m][1] = -INFINITY;
      unrolled<kC / 16>([&](auto n16) {
        if (!mask.visited(m, n16)) return;
        scores_of<n16>(s, key_chunks, m);
        if (capped(softcap)) softcap.apply<false, 2 * n16, 2>(s[0]);
        if (mask.partial(m, n16)) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const uint32_t seen = __shfl_sync(kAllLanes, bits[n16 / 2], m * 16 + half * 8 + row) >> first_column;
#pragma unroll
            for (int i = 0; i < 4; ++i)
              if ((seen & 1u << (n16 % 2 * 16 + i / 2 * 8 + i % 2)) == 0)
                s[m][2 * n16 + i / 2][2 * half + i % 2] = -INFINITY;
          }
        }
        include(top, s, m, 2 * n16);
        include(top, s, m, 2 * n16 + 1);
      });
    }
    raise_bounds(top);
    const ChunkPairs<D> value_chunks(values);
    unrolled<kC / 16>([&](auto n16) {
#pragma unroll
      for (int m = 0; m < M; ++m) {
        if (!mask.visited(m, n16)) continue;
        uint32_t p[4];
        probabilities(p, s, m, n16);
        unrolled<D / 16>([&](auto d16) {
          uint32_t b[4];
          ldmatrix_x4_trans_at<n16 * 16 * Tile::kRowBytes + ChunkPairs<D>::offset(d16)>(b, value_chunks[d16]);
          mma_m16n8k16<T>(out[m][2 * d16], p, b[0], b[1]);
          mma_m16n8k16<T>(out[m][2 * d16 + 1], p, b[2], b[3]);
        });
      }
    });
  }

  // A stage of which the rows may see all, some or nothing. intervals: those of the lane's row, Tile::kRows apart.
  // column: the first of the stage.
  __device__ __forceinline__ void any_stage(uint32_t keys, uint32_t values, const int2* intervals, int num_intervals,
                                            int column) {
    const WarpMask<M, kC> mask(intervals, Tile::kRows, num_intervals, column);
    if (mask.everything()) {
      full_stage(keys, values);
    } else if (!mask.nothing()) {
      uint32_t bits[kC / 32];
      column_bits(bits, intervals, Tile::kRows, num_intervals, column);
      partial_stage(keys, values, mask, bits);
    }
  }

  // The end: the outputs, normalised and in T, to the warp's own rows in shared memory, from row `warp_row` of the tile
  // on, and the lse of those of the `count` rows that exist. intervals: of the tile. lse: of the thread's first row.
  __device__ __forceinline__ void finish(char* rows, int warp_row, const int2* intervals, int num_intervals, float* lse,
                                         int count) const {
    const int lane = threadIdx.x % 32;
    const uint32_t own = swizzled<D>(warp_row + lane / 4, 0) + lane % 4 * 4;  // where the thread's rows are eight apart
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = m * 16 + half * 8;
        float total = sum[m][half];
        total += __shfl_xor_sync(kAllLanes, total, 1);
        total += __shfl_xor_sync(kAllLanes, total, 2);
        const RowResult result =
            finish_row<Tile::kRows>(total, bound[m][half], intervals + warp_row + lane / 4 + row, num_intervals);
#pragma unroll
        for (int n8 = 0; n8 < D / 8; ++n8)
          *reinterpret_cast<uint32_t*>(rows + chunk_at<D>(own, n8) + row * Tile::kRowBytes) =
              pack<T>(out[m][n8][2 * half] * result.factor, out[m][n8][2 * half + 1] * result.factor);
        if (lane % 4 == 0 && lane / 4 + row < count) lse[row] = result.lse;
      }
  }
};

// ---- whole rows of a warp in shared memory

// Flips the sign of kCount rows of D numbers of 16 bits.
template <int D, int kCount>
__device__ __forceinline__ void negate(char* rows) {
  uint4* mine = reinterpret_cast<uint4*>(rows);
  for (int i = threadIdx.x % 32; i < kCount * D / 8; i += 32) {
    uint4 x = mine[i];
    x.x ^= 0x80008000u, x.y ^= 0x80008000u, x.z ^= 0x80008000u, x.w ^= 0x80008000u;
    mine[i] = x;
  }
  __syncwarp();
}

// Stores those of the warp's kCount rows, from row `warp_row` of the tile on, that exist: `count`. `to`: row 0 of them
// in global memory, row_bytes from one to the next.
//
// The warp stores kPassRows rows in a pass, 8 or 4, each lane at the address `from` plus whole rows. With 8 rows all
// passes have the same permutation of chunks. With 4 rows every other pass has the chunk numbers of the first with
// bit 2 flipped: the XOR below.
template <int D, int kCount>
__device__ __forceinline__ void store_rows(char* to, int64_t row_bytes, const char* rows, int warp_row, int count) {
  constexpr int kChunks = RowCopy<D>::kChunks, kPassRows = 32 / kChunks, kRowBytes = 2 * D;
  const int lane = threadIdx.x % 32, row = lane / kChunks;
  const uint32_t from = swizzled<D>(warp_row + row, lane % kChunks);
  to += row * row_bytes + lane % kChunks * 16;
#pragma unroll
  for (int pass = 0; pass < kCount / kPassRows; ++pass, to += kPassRows * row_bytes) {
    if (row + pass * kPassRows >= count) break;
#pragma unroll
    for (int j = 0; j < D / 8 / kChunks; ++j)
      *reinterpret_cast<uint4*>(to + j * kChunks * 16) = *reinterpret_cast<const uint4*>(
          rows + (from ^ (pass * kPassRows & 4) << 4) + pass * kPassRows * kRowBytes + j * kChunks * 16);
  }
}

// ---- the kernel

// Which tile a thread block works on. Read again where needed: the main loop has no registers to spare.
__device__ __forceinline__ int64_t tile_batch(const OmniForwardParams& p) {
  return p.order[2 * blockIdx.y] + static_cast<int64_t>(blockIdx.z);
}
__device__ __forceinline__ int tile_number(const OmniForwardParams& p) { return p.order[2 * blockIdx.y + 1]; }

template <class T, int D, int M>
__global__ void __launch_bounds__(kForwardThreads) omni_forward_kernel(OmniForwardParams p, Softcap softcap) {
  using Tile = ForwardTile<D, M>;
  extern __shared__ __align__(1024) char shared[];
  const OmniInputs& in = p.in;
  const int q_length = static_cast<int>(in.q_length), kv_length = static_cast<int>(in.kv_length);
  const int head = static_cast<int>(blockIdx.x);
  const int kv_head = head / (static_cast<int>(in.heads) / static_cast<int>(in.kv_heads));
  const int64_t batch = tile_batch(p);
  const int first_row = tile_number(p) * Tile::kRows;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  const uint32_t base = shared_address(shared), stages = base + Tile::kQueryBytes;
  int2* intervals = reinterpret_cast<int2*>(shared + Tile::kIntervals);

  const uint32_t own_place = RowCopy<D>::place();
  Sources* sources = reinterpret_cast<Sources*>(shared + Tile::kSources) + threadIdx.x;
  *sources = {RowCopy<D>::source(in.k, in.k_strides, batch, kv_head),
              RowCopy<D>::source(in.v, in.v_strides, batch, kv_head)};
  const uint8_t** seen = reinterpret_cast<const uint8_t**>(shared + Tile::kSeen) + threadIdx.x;
  *seen = RowCopy<D>::seen(in, p.order[2 * blockIdx.y]);
  const auto fetch = [&](const Stage& stage, uint32_t to) {
    if (stage.exists()) {
      const Sources from = *sources;
      RowCopy<D>::template copy_seen<Tile::kColumns>(
          to, {from.keys, from.values}, {static_cast<int>(in.k_strides.row), static_cast<int>(in.v_strides.row)}, stage,
          [&] { return *seen; });
    }
    cp_async_commit();
  };

  const int kv_blocks = (kv_length + 63) / 64, q_blocks = (q_length + 63) / 64, q_block = first_row / 64;
  StageWalk<M, Tile::kColumns> walk{
      in.block_states + batch * in.block_states_batch_stride + static_cast<int64_t>(q_block) * kv_blocks, kv_blocks,
      kv_length, q_block + 1 < q_blocks ? kv_blocks : 0, first_row + Tile::kRows > q_length};
  Stage stage = kNoStage;
  walk.advance(stage);
  RowCopy<D>::template copy<Tile::kRows, 1>(base + own_place, {RowCopy<D>::source(in.q, in.q_strides, batch, head)},
                                            {static_cast<int>(in.q_strides.row)}, first_row, q_length);
  fetch(stage, stages + own_place);
  load_intervals<Tile::kRows>(intervals, in, batch, first_row);

  WarpRows<T, D, M> rows(in.scale, softcap);
  cp_async_wait<0>();
  __syncthreads();

  const int warp_row = warp * Tile::kWarpRows;
  if (in.scale < 0 && !rows.capped(softcap)) negate<D, Tile::kWarpRows>(shared + warp_row * Tile::kRowBytes);
  // The row and the chunk that a lane addresses for ldmatrix. A fragments (queries): lanes 0..15 have the 16 rows of
  // the left chunk, lanes 16..31 those of the right chunk. B fragments of q k^T (keys): lanes 0..7 and 8..15 have rows
  // 0..7 of the left and of the right chunk, lanes 16..31 likewise rows 8..15. B fragments of p v (values, transposed):
  // as the A fragments.
  const uint32_t row16 = swizzled<D>(lane % 16, lane / 16);
  rows.keep_queries(base + warp_row * Tile::kRowBytes + row16);
  uint32_t key_address = stages + swizzled<D>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  uint32_t value_address = stages + Tile::kMatrixBytes + row16;
  uint32_t fill = stages + Tile::kStageBytes + own_place;  // where the thread's part of the next stage goes
  int32_t move = Tile::kStageBytes;                        // from this stage to that

  Stage next;
  const auto begin = [&] {
    next = stage;
    walk.advance(next);
    fetch(next, fill);
  };
  const auto end = [&] {
    cp_async_wait<0>();
    __syncthreads();
    key_address += move, value_address += move, fill -= move, move = -move;
    stage = next;
  };
  const int lane_row = warp_row + (M == 2 ? lane : lane % 16);
  while (stage.exists()) {
    while (stage.full()) {
      begin();
      rows.full_stage(key_address, value_address);
      end();
    }
    if (!stage.exists()) break;
    begin();
    if (first_row + warp_row < q_length)
      rows.any_stage(key_address, value_address, intervals + lane_row, static_cast<int>(in.num_intervals),
                     stage.column());
    end();
  }

  // ---- results: through the warp's own rows of the query buffer, to 16-byte stores
  const int first = tile_number(p) * Tile::kRows + warp_row, count = min(Tile::kWarpRows, q_length - first);
  if (count <= 0) return;
  __syncwarp();
  rows.finish(shared, warp_row, intervals, static_cast<int>(in.num_intervals),
              p.lse + (tile_batch(p) * in.heads + head) * q_length + first + lane / 4, count);
  __syncwarp();
  store_rows<D, Tile::kWarpRows>(
      static_cast<char*>(p.out) +
          2 * (tile_batch(p) * p.out_strides.batch + head * p.out_strides.head + first * p.out_strides.row),
      2 * p.out_strides.row, shared, warp_row, count);
}

}  // namespace showo
