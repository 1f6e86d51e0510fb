// omni_attention for few query rows in fp32: plain FMAs, no TF32. See decode.cu, whose blocks, pipeline, joining of
// warps and combine kernel these are.
//
// A stage has 32 columns, a warp takes 8 of them at a time for 16 packed rows. Lane 8 y + x computes the scores of
// column x and rows y, y + 4, y + 8, y + 12, from 16-byte reads of four dims; probabilities go through the warp's own
// 512 bytes of shared memory, after which the lane owns the dims of chunks x, x + 8, ... of the same rows. Tiles of up
// to four rows compute these alone.
#include "omni_attention/bound_f32.cuh"
#include "omni_attention/decode_tile.cuh"

namespace showo {
namespace {

template <int D>
struct DecodeRowsF32 {
  // Bounds are of scores yet to be scaled: a row of one column is that column's v to the last bit.
  float out[4][D / 32][4], bound[4], sum[4];
  float scale, sign;
  Softcap softcap;

  __device__ __forceinline__ DecodeRowsF32(float signed_scale, const Softcap& cap)
      : scale(cap.factor(fmaxf(fabsf(signed_scale) * kLog2E, 1e-30f))),
        sign(signed_scale < 0 && !cap.exists() ? -1.0f : 1.0f),
        softcap(cap) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[i] = 0.0f, bound[i] = FLT_MAX;
#pragma unroll
      for (int c = 0; c < D / 32; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) out[i][c][e] = 0.0f;
    }
  }

  // 8 columns for the first 4 kFours rows. queries, keys, values: offsets in shared memory, of the tile and of these
  // columns. bits: of the lane's row, as in UnitMask.
  template <int kFours>
  __device__ __forceinline__ void unit(const char* shared, uint32_t queries, uint32_t keys, uint32_t values,
                                       char* probabilities, uint32_t bits) {
    const int x = static_cast<int>(threadIdx.x) % 8, y = static_cast<int>(threadIdx.x & 31) / 8;
    const auto at = [&](uint32_t row, int chunk) {
      return *reinterpret_cast<const float4*>(shared + chunk_at<2 * D>(row, chunk));
    };
    float4 products[kFours] = {};  // four sums: shorter chains, smaller errors
    const uint32_t key = keys + swizzled<2 * D>(x, 0);
    uint32_t query[kFours];
#pragma unroll
    for (int i = 0; i < kFours; ++i) query[i] = queries + swizzled<2 * D>(y + 4 * i, 0);
#pragma unroll 8
    for (int chunk = 0; chunk < D / 4; ++chunk) {
      const float4 b = at(key, chunk);
#pragma unroll
      for (int i = 0; i < kFours; ++i) {
        const float4 a = at(query[i], chunk);
        float4& sums = products[i];
        sums.x = fmaf(a.x, b.x, sums.x), sums.y = fmaf(a.y, b.y, sums.y);
        sums.z = fmaf(a.z, b.z, sums.z), sums.w = fmaf(a.w, b.w, sums.w);
      }
    }
    float sums[1][4] = {};
#pragma unroll
    for (int i = 0; i < kFours; ++i) sums[0][i] = products[i].x + products[i].y + (products[i].z + products[i].w);
    if (softcap.exists()) softcap.apply<true, 0, 1>(sums);
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const uint32_t seen = __shfl_sync(kAllLanes, bits, y + 4 * i) >> x;
      const float score = (seen & 1) != 0 ? sums[0][i] * sign : -INFINITY;
      raise_bound<D>(score, scale, bound[i], sum[i], out[i]);
      const float probability = exp2_approx((score + bound[i]) * scale);
      sum[i] += probability;
      *reinterpret_cast<float*>(probabilities + (y + 4 * i) * 32 + x * 4) = probability;
    }
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float4 a[kFours];
#pragma unroll
      for (int i = 0; i < kFours; ++i)
        a[i] = *reinterpret_cast<const float4*>(probabilities + (y + 4 * i) * 32 + half * 16);
#pragma unroll
      for (int column = 0; column < 4; ++column) {
        const uint32_t value = values + swizzled<2 * D>(4 * half + column, x);
#pragma unroll
        for (int c = 0; c < D / 32; ++c) {
          const float4 b = *reinterpret_cast<const float4*>(shared + value + c * 128);
#pragma unroll
          for (int i = 0; i < kFours; ++i) {
            const float w = column == 0 ? a[i].x : column == 1 ? a[i].y : column == 2 ? a[i].z : a[i].w;
            out[i][c][0] = fmaf(w, b.x, out[i][c][0]);
            out[i][c][1] = fmaf(w, b.y, out[i][c][1]);
            out[i][c][2] = fmaf(w, b.z, out[i][c][2]);
            out[i][c][3] = fmaf(w, b.w, out[i][c][3]);
          }
        }
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void leave(char* output, float2* stats) const {
    const int x = static_cast<int>(threadIdx.x) % 8, y = static_cast<int>(threadIdx.x & 31) / 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float total = sum[i];
#pragma unroll
      for (int distance = 1; distance < 8; distance *= 2) total += __shfl_xor_sync(kAllLanes, total, distance);
      if (x == 0) stats[y + 4 * i] = make_float2(fminf(bound[i] * scale, FLT_MAX), total);
#pragma unroll
      for (int c = 0; c < D / 32; ++c)
        *reinterpret_cast<float4*>(output + decode_output<D>(y + 4 * i, x + 8 * c)) =
            make_float4(out[i][c][0], out[i][c][1], out[i][c][2], out[i][c][3]);
    }
  }
};

// p: strides as `in_halves` gives them.
template <int D>
__global__ void __launch_bounds__(kForwardThreads, 1) omni_decode_f32_kernel(OmniDecodeParams p, Softcap softcap) {
  using Tile = DecodeTile<D, 2 * D>;
  extern __shared__ __align__(1024) char shared[];
  const DecodeBlock block(p);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warps = block.warps_per_tile(), m_tile = warp / warps, first_unit = warp % warps;
  const bool active = m_tile < block.m_tiles();
  const int2* intervals = reinterpret_cast<const int2*>(shared + Tile::intervals(block.m_tiles())) +
                          block.mask_row(m_tile * 16 + lane % 16);
  const int num_intervals = static_cast<int>(p.in.num_intervals);
  const uint32_t queries = Tile::kQueries + m_tile * 16 * Tile::kRowBytes;
  char* probabilities = shared + Tile::kScratch + warp * 512;
  DecodeRowsF32<D> rows(p.in.scale, softcap);
  const bool few = block.rows - m_tile * 16 <= 4;
  const bool some = decode_columns<D, 2 * D>(
      p, block, shared, [](uint32_t) {},
      [&](const Stage& stage, uint32_t slot) {
        if (!active) return;
        for (int unit = first_unit; unit < 4; unit += warps) {
          uint32_t bits = kAllLanes;
          if (!stage.full()) {
            const UnitMask mask(intervals, num_intervals, stage.column() + 8 * unit, 8);
            if (mask.any == 0) continue;
            bits = mask.bits;
          }
          const uint32_t keys = slot + unit * (8 * Tile::kRowBytes), values = keys + Tile::kMatrixBytes;
          if (few) {
            rows.template unit<1>(shared, queries, keys, values, probabilities, bits);
          } else {
            rows.template unit<4>(shared, queries, keys, values, probabilities, bits);
          }
        }
      });
  if (some && active)
    rows.leave(shared + warp * (64 * D), reinterpret_cast<float2*>(shared + Tile::kStats) + warp * 16);
  __syncthreads();
  decode_finish<float, D, 2 * D>(p, block, shared, some);
}

}  // namespace

Status omni_decode_f32(const OmniDecodeParams& params, cudaStream_t stream) {
  const OmniDecodeParams p = in_halves(params);
  return dispatch_head_dim(p.in.head_dim, [&](auto size) {
    constexpr int kD = decltype(size)::value;
    return launch_kernel(omni_decode_f32_kernel<kD>, "omni_decode_f32_kernel", decode_grid(p), kForwardThreads,
                         DecodeTile<kD, 2 * kD>::shared_bytes(decode_m_tiles(p), p.in.num_intervals), stream, p,
                         Softcap(p.in));
  });
}

}  // namespace showo
