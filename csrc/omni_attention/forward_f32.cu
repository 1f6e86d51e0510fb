// omni_attention forward in fp32: plain FMAs, so every product is exact to a rounding; no TF32.
//
// The pipeline, the block table's walk and the mask words are those of forward_tile.cuh. Here a warp owns 16 rows and a
// stage has 32 columns. Lane 8 y + x computes the scores of rows y, y + 4, y + 8, y + 12 and columns x, x + 8, x + 16,
// x + 24, from 16-byte reads of four dims; probabilities go through the warp's own 2 KiB of shared memory, after which
// the lane owns the dims of chunks x, x + 8, ... of the same rows. With a softcap scores become tanh(scale s / softcap)
// before the mask, and the softcap takes the place of scale. Reads q and writes out and lse once; k and v once
// per visited block and tile of 64 rows.
#include <cuda_runtime.h>

#include "omni_attention/bound_f32.cuh"
#include "omni_attention/forward_launch.cuh"

namespace showo {
namespace {

template <int D>
struct F32Tile {
  static constexpr int kRows = 64, kColumns = 32;
  static constexpr int kRowBytes = 4 * D;
  static constexpr int kMatrixBytes = kColumns * kRowBytes;
  static constexpr int kStageBytes = 2 * kMatrixBytes;
  static constexpr int kStages = kRows * kRowBytes;
  static constexpr int kProbabilities = kStages + 2 * kStageBytes;
  static constexpr int kIntervals = kProbabilities + kRows * kColumns * 4;

  static constexpr int shared_bytes(int64_t num_intervals) {
    return kIntervals + static_cast<int>(num_intervals) * kRows * 8;
  }
};

// Probabilities of a row: 16-byte chunks, permuted so that four rows of two chunks hit eight bank groups.
__device__ __forceinline__ int probability_offset(int row, int chunk) {
  return row * 128 + ((chunk ^ (row & 3) << 1) << 4);
}

template <int D>
__device__ __forceinline__ float4 chunk_of(const char* rows, int row, int chunk) {
  return *reinterpret_cast<const float4*>(rows + swizzled<2 * D>(row, chunk));
}

// What a lane has of its warp's 16 rows: x and y as in the head of this file.
template <int D>
struct F32Rows {
  // As in WarpRows, but bounds are of scores yet to be scaled: a row of one column is that column's v to the last bit.
  float out[4][D / 32][4] = {}, bound[4] = {FLT_MAX, FLT_MAX, FLT_MAX, FLT_MAX}, sum[4] = {};
  float scale, sign;
  int x = threadIdx.x % 8, y = threadIdx.x % 32 / 8;

  __device__ __forceinline__ F32Rows(float signed_scale, const Softcap& cap)
      : scale(cap.factor(fmaxf(fabsf(signed_scale) * kLog2E, 1e-30f))),
        sign(signed_scale < 0 && !cap.exists() ? -1.0f : 1.0f) {}

  __device__ __forceinline__ void scores(float (&s)[4][4], const char* queries, const char* keys) const {
#pragma unroll 1
    for (int first = 0; first < D / 4; first += 4) {  // sums of sums: shorter chains of roundings
      float part[4][4] = {};
#pragma unroll 2
      for (int chunk = first; chunk < first + 4; ++chunk) {
        float4 b[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) b[j] = chunk_of<D>(keys, x + 8 * j, chunk);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float4 a = chunk_of<D>(queries, y + 4 * i, chunk);
#pragma unroll
          for (int j = 0; j < 4; ++j)
            part[i][j] = fmaf(a.w, b[j].w, fmaf(a.z, b[j].z, fmaf(a.y, b[j].y, fmaf(a.x, b[j].x, part[i][j]))));
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) s[i][j] += part[i][j];
    }
  }

  // Masks the scores, raises the bounds that they have outgrown, and stores the probabilities. bits: the columns that
  // row lane % 16 sees.
  __device__ __forceinline__ void update(float (&s)[4][4], uint32_t bits, char* probabilities) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = y + 4 * i;
      const uint32_t seen = __shfl_sync(kAllLanes, bits, row) >> x;
      float top = -INFINITY;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        s[i][j] = (seen & 1u << 8 * j) != 0 ? s[i][j] * sign : -INFINITY;
        top = fmaxf(top, s[i][j]);
      }
      raise_bound<D>(top, scale, bound[i], sum[i], out[i]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float probability = exp2_approx((s[i][j] + bound[i]) * scale);
        sum[i] += probability;
        *reinterpret_cast<float*>(probabilities + probability_offset(row, 2 * j + x / 4) + x % 4 * 4) = probability;
      }
    }
  }

  // out += p v.
  __device__ __forceinline__ void add_values(const char* probabilities, const char* values) {
#pragma unroll 2
    for (int chunk = 0; chunk < 8; ++chunk) {
      float4 a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[i] = *reinterpret_cast<const float4*>(probabilities + probability_offset(y + 4 * i, chunk));
#pragma unroll
      for (int column = 0; column < 4; ++column)
#pragma unroll
        for (int c = 0; c < D / 32; ++c) {
          const float4 b = chunk_of<D>(values, 4 * chunk + column, x + 8 * c);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float w = column == 0 ? a[i].x : column == 1 ? a[i].y : column == 2 ? a[i].z : a[i].w;
            out[i][c][0] = fmaf(w, b.x, out[i][c][0]);
            out[i][c][1] = fmaf(w, b.y, out[i][c][1]);
            out[i][c][2] = fmaf(w, b.z, out[i][c][2]);
            out[i][c][3] = fmaf(w, b.w, out[i][c][3]);
          }
        }
    }
  }

  // Normalises the rows and stores them with their lse. intervals: of the tile, whose first row is first_row.
  __device__ __forceinline__ void finish(const OmniForwardParams& p, int batch, int head, int first_row, int warp_row,
                                         const int2* intervals) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + warp_row + y + 4 * i;
#pragma unroll
      for (int distance = 1; distance < 8; distance *= 2) sum[i] += __shfl_xor_sync(kAllLanes, sum[i], distance);
      if (row >= static_cast<int>(p.in.q_length)) continue;
      const RowResult result = finish_row<F32Tile<D>::kRows>(
          sum[i], fminf(bound[i] * scale, FLT_MAX), intervals + row - first_row, static_cast<int>(p.in.num_intervals));
      char* to = static_cast<char*>(p.out) +
                 2 * (batch * p.out_strides.batch + head * p.out_strides.head + row * p.out_strides.row);
#pragma unroll
      for (int c = 0; c < D / 32; ++c)
        *reinterpret_cast<float4*>(to + (x + 8 * c) * 16) =
            make_float4(out[i][c][0] * result.factor, out[i][c][1] * result.factor, out[i][c][2] * result.factor,
                        out[i][c][3] * result.factor);
      if (x == 0) p.lse[(batch * p.in.heads + head) * p.in.q_length + row] = result.lse;
    }
  }
};

// p: strides as `in_halves` gives them.
template <int D>
__global__ void __launch_bounds__(kForwardThreads, 3) omni_forward_f32_kernel(OmniForwardParams p, Softcap softcap) {
  using Tile = F32Tile<D>;
  using Copy = RowCopy<2 * D>;
  extern __shared__ __align__(1024) char shared[];
  const OmniInputs& in = p.in;
  const int q_length = static_cast<int>(in.q_length), kv_length = static_cast<int>(in.kv_length);
  const int head = static_cast<int>(blockIdx.x);
  const int kv_head = head / (static_cast<int>(in.heads) / static_cast<int>(in.kv_heads));
  const int batch = p.order[2 * blockIdx.y] + static_cast<int>(blockIdx.z);
  const int first_row = p.order[2 * blockIdx.y + 1] * Tile::kRows;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  const uint32_t base = shared_address(shared);
  int2* intervals = reinterpret_cast<int2*>(shared + Tile::kIntervals);
  const char* keys = Copy::source(in.k, in.k_strides, batch, kv_head);
  const char* values = Copy::source(in.v, in.v_strides, batch, kv_head);
  const auto fetch = [&](const Stage& stage, int slot) {
    if (stage.exists()) {
      const uint32_t to = base + Tile::kStages + slot * Tile::kStageBytes + Copy::place();
      Copy::template copy_seen<Tile::kColumns>(to, {keys, values},
                                               {static_cast<int>(in.k_strides.row), static_cast<int>(in.v_strides.row)},
                                               stage, [&] { return Copy::seen(in, p.order[2 * blockIdx.y]); });
    }
    cp_async_commit();
  };

  const int kv_blocks = (kv_length + 63) / 64;
  StageWalk<1, Tile::kColumns> walk{
      in.block_states + batch * in.block_states_batch_stride + static_cast<int64_t>(first_row / 64) * kv_blocks,
      kv_blocks, kv_length, 0, false};
  Stage stage = kNoStage;
  walk.advance(stage);
  Copy::template copy<Tile::kRows, 1>(base + Copy::place(), {Copy::source(in.q, in.q_strides, batch, head)},
                                      {static_cast<int>(in.q_strides.row)}, first_row, q_length);
  fetch(stage, 0);
  load_intervals<Tile::kRows>(intervals, in, batch, first_row);

  F32Rows<D> rows(in.scale, softcap);
  cp_async_wait<0>();
  __syncthreads();

  const int warp_row = warp * 16;
  const char* query = shared + warp_row * Tile::kRowBytes;
  char* probabilities = shared + Tile::kProbabilities + warp_row * 128;
  for (int slot = 0; stage.exists(); slot ^= 1) {
    Stage next = stage;
    walk.advance(next);
    fetch(next, slot ^ 1);
    const char* k = shared + Tile::kStages + slot * Tile::kStageBytes;
    const char* v = k + Tile::kMatrixBytes;
    uint32_t bits[1];  // of row lane % 16
    column_bits<1>(bits, intervals + warp_row + lane % 16, Tile::kRows, static_cast<int>(in.num_intervals),
                   stage.column());
    if (__any_sync(kAllLanes, bits[0] != 0)) {
      float s[4][4] = {};
      rows.scores(s, query, k);
      if (softcap.exists()) softcap.apply<true, 0, 4>(s);
      rows.update(s, bits[0], probabilities);
      __syncwarp();
      rows.add_values(probabilities, v);
    }
    cp_async_wait<0>();
    __syncthreads();
    stage = next;
  }
  rows.finish(p, batch, head, first_row, warp_row, intervals);
}

}  // namespace

Status omni_forward_f32(const OmniForwardParams& params, cudaStream_t stream) {
  SHOWO_CHECK_ARGUMENT(params.tile_rows == 64, "omni_attention: fp32 takes tiles of 64 rows, got %lld",
                       static_cast<long long>(params.tile_rows));
  const OmniForwardParams p = in_halves(params);
  return dispatch_head_dim(p.in.head_dim, [&](auto size) {
    constexpr int kD = decltype(size)::value;
    return launch_kernel(omni_forward_f32_kernel<kD>, "omni_forward_f32_kernel", forward_grid(p), kForwardThreads,
                         F32Tile<kD>::shared_bytes(p.in.num_intervals), stream, p, Softcap(p.in));
  });
}

}  // namespace showo
