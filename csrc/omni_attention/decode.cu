// omni_attention for at most 16 query rows against a long kv: split over kv, then combined. The kernels of fp16 and
// bf16; fp32's are in decode_f32.cu.
//
// Rows. The query heads of one kv head are packed: their group * S_q rows fill m16 tiles of 16 rows, up to four tiles
// in a thread block, so that keys and values are read once for all rows (once per 64 packed rows where there are more).
// If the thread block has one tile, its four warps share the tile: of a stage's 64 columns each warp takes 16. If it
// has two tiles, two warps share each tile and take 32 columns each. If it has more, each tile has one warp.
//
// Columns. A split has every splits-th block of 64 columns and visits those that some row sees. It finds these blocks
// in the rows' intervals: there is no block table. Blocks that every row sees whole take no mask; in the other blocks
// each lane turns the intervals of one row into column bits. Shared memory has three stages (two from D = 128 on),
// filled by cp.async: while one block is used the next blocks are on their way, with one barrier a block.
//
// Softmax and softcap. As in forward_tile.cuh, but every warp has an m, a sum and an output of its own for each of its
// rows. At the end the warps' triples (m, sum, output) are joined through shared memory, and the splits' triples by the
// combine kernel, one warp a row. Triple s has the weight 2^(m_s - max m). These weights round no more than one softmax
// over all columns; in fp32, weights made from an lse of each split would round more.
//
// Memory. k and v of visited blocks, q and out cross the bus once; the workspaces are written and read once, 4 D + 8
// bytes for each row and split that has columns. With one split there is neither workspace nor combine kernel. What a
// row gets does not depend on the machine, nor on the order in which thread blocks run.
#include "omni_attention/checks.h"
#include "omni_attention/decode_tile.cuh"

namespace showo {
namespace {

// One warp's share: 16 rows and some of the columns. Members as in WarpRows.
template <class T, int D>
struct DecodeRows {
  using Tile = DecodeTile<D, D>;

  static constexpr bool kQueriesInRegisters = D <= 128;

  float out[D / 8][4];
  float bound[2], sum[2];
  uint32_t query[kQueriesInRegisters ? D / 16 : 1][4];
  uint32_t query_address, flip;  // flip: the signs of two numbers if they are to change
  float scale;
  Softcap softcap;

  __device__ __forceinline__ DecodeRows(float signed_scale, const Softcap& cap)
      : scale(cap.factor(fmaxf(fabsf(signed_scale) * kLog2E, 1e-30f))), softcap(cap) {
    sum[0] = sum[1] = 0.0f;
    bound[0] = bound[1] = FLT_MAX;
#pragma unroll
    for (int n8 = 0; n8 < D / 8; ++n8)
#pragma unroll
      for (int i = 0; i < 4; ++i) out[n8][i] = 0.0f;
  }

  // A negative scale is that of negative queries.
  __device__ __forceinline__ void keep_queries(uint32_t address, bool negative) {
    query_address = address, flip = negative ? 0x80008000u : 0;
    if constexpr (kQueriesInRegisters) unrolled<D / 16>([&](auto k16) { read_query(query[k16], k16); });
  }

  __device__ __forceinline__ void read_query(uint32_t (&a)[4], int k16) const {
    ldmatrix_x4(a, ChunkPairs<D>(query_address)[k16] + ChunkPairs<D>::offset(k16));
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] ^= flip;
  }

  __device__ __forceinline__ void raise_bounds(float (&top)[2]) {
    bool grown = false;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      top[row] = fmaxf(top[row], shuffle_xor<1>(top[row]));
      top[row] = fmaxf(top[row], shuffle_xor<2>(top[row]));
      grown |= fmaf(top[row], scale, bound[row]) > kMaxGrowth - kHeadroom<T>;
    }
    if (!__any_sync(kAllLanes, grown)) return;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float wanted = fmaf(top[row], scale, kHeadroom<T>);
      const bool raise = wanted + bound[row] > kMaxGrowth;
      const float keep = raise ? exp2_approx(-bound[row] - wanted) : 1.0f;
      bound[row] = raise ? -wanted : bound[row];
      sum[row] *= keep;
#pragma unroll
      for (int n8 = 0; n8 < D / 8; ++n8) {
        out[n8][2 * row] *= keep;
        out[n8][2 * row + 1] *= keep;
      }
    }
  }

  // 16 columns. keys, values: the lane's ldmatrix addresses. seen: with kMasked the columns that the thread's two rows
  // see, its own first column at bit 0.
  template <bool kMasked>
  __device__ __forceinline__ void unit(uint32_t keys, uint32_t values, uint32_t seen0, uint32_t seen1) {
    float s[2][4];
    unrolled<D / 16>([&](auto k16) {
      uint32_t a[4], b[4];
      if constexpr (kQueriesInRegisters) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = query[k16][i];
      } else {
        read_query(a, k16);
      }
      ldmatrix_x4(b, ChunkPairs<D>(keys)[k16] + ChunkPairs<D>::offset(k16));
      if constexpr (k16 == 0) {
        mma_m16n8k16_first<T>(s[0], a, b[0], b[1]);
        mma_m16n8k16_first<T>(s[1], a, b[2], b[3]);
      } else {
        mma_m16n8k16<T>(s[0], a, b[0], b[1]);
        mma_m16n8k16<T>(s[1], a, b[2], b[3]);
      }
    });
    if (softcap.exists()) softcap.apply<false, 0, 2>(s);
    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (kMasked && ((i < 2 ? seen0 : seen1) & 1u << (8 * j + i % 2)) == 0) s[j][i] = -INFINITY;
        top[i / 2] = fmaxf(top[i / 2], s[j][i]);
      }
    raise_bounds(top);
    uint32_t p[4];
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float x = exp2_approx(fmaf(s[j][2 * row], scale, bound[row]));
        const float y = exp2_approx(fmaf(s[j][2 * row + 1], scale, bound[row]));
        sum[row] += x;
        sum[row] += y;
        p[2 * j + row] = pack<T>(x, y);
      }
#pragma unroll
    for (int d16 = 0; d16 < D / 16; ++d16) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, ChunkPairs<D>(values)[d16] + ChunkPairs<D>::offset(d16));
      mma_m16n8k16<T>(out[2 * d16], p, b[0], b[1]);
      mma_m16n8k16<T>(out[2 * d16 + 1], p, b[2], b[3]);
    }
  }

  // output: of this warp, as decode_output lays it out; stats: its 16 rows.
  __device__ __forceinline__ void leave(char* output, float2* stats) const {
    const int g = static_cast<int>(threadIdx.x & 31) / 4, t = static_cast<int>(threadIdx.x & 3);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = half * 8 + g;
      float total = sum[half];
      total += shuffle_xor<1>(total);
      total += shuffle_xor<2>(total);
      if (t == 0) stats[row] = make_float2(bound[half], total);
#pragma unroll
      for (int n8 = 0; n8 < D / 8; ++n8)
        *reinterpret_cast<float2*>(output + decode_output<D>(row, 2 * n8 + t / 2) + t % 2 * 8) =
            make_float2(out[n8][2 * half], out[n8][2 * half + 1]);
    }
  }
};

template <class T, int D>
__global__ void __launch_bounds__(kForwardThreads, 1) omni_decode_kernel(OmniDecodeParams p, Softcap softcap) {
  using Tile = DecodeTile<D, D>;
  extern __shared__ __align__(1024) char shared[];
  const DecodeBlock block(p);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warps = block.warps_per_tile(), m_tile = warp / warps, first_unit = warp % warps;
  const bool active = m_tile < block.m_tiles();
  const int2* intervals = reinterpret_cast<const int2*>(shared + Tile::intervals(block.m_tiles())) +
                          block.mask_row(m_tile * 16 + lane % 16);
  const int num_intervals = static_cast<int>(p.in.num_intervals);

  // The row and the chunk that a lane addresses for ldmatrix: as in forward_tile.cuh.
  const uint32_t row16 = swizzled<D>(lane % 16, lane / 16), base = shared_address(shared);
  const uint32_t keys = base + swizzled<D>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  const uint32_t values = base + Tile::kMatrixBytes + row16;
  DecodeRows<T, D> rows(p.in.scale, softcap);
  const bool some = decode_columns<D, D>(
      p, block, shared,
      [&](uint32_t queries) {
        if (active)
          rows.keep_queries(queries + m_tile * 16 * Tile::kRowBytes + row16, p.in.scale < 0 && !softcap.exists());
      },
      [&](const Stage& stage, uint32_t slot) {
        if (!active) return;
        for (int unit = first_unit; unit < 4; unit += warps) {
          const uint32_t offset = slot + unit * (16 * Tile::kRowBytes);
          if (stage.full()) {
            rows.template unit<false>(keys + offset, values + offset, 0, 0);
            continue;
          }
          const UnitMask mask(intervals, num_intervals, stage.column() + 16 * unit, 16);
          if (mask.any == 0) continue;
          const uint32_t seen0 = __shfl_sync(kAllLanes, mask.bits, lane / 4) >> lane % 4 * 2;
          const uint32_t seen1 = __shfl_sync(kAllLanes, mask.bits, lane / 4 + 8) >> lane % 4 * 2;
          rows.template unit<true>(keys + offset, values + offset, seen0, seen1);
        }
      });
  if (some && active)
    rows.leave(shared + warp * (64 * D), reinterpret_cast<float2*>(shared + Tile::kStats) + warp * 16);
  __syncthreads();
  decode_finish<T, D, D>(p, block, shared, some);
}

// ---- the shares of all splits, joined: one warp for 128 dims of a query row, lane l with dims l, l + 32, ...

constexpr int kCombinedDims = 128;

__device__ __forceinline__ void store(float* to, float x) { *to = x; }
__device__ __forceinline__ void store(__half* to, float x) { *to = __float2half_rn(x); }
__device__ __forceinline__ void store(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }

__device__ __forceinline__ bool row_is_empty(const OmniInputs& in, int64_t batch, int64_t row) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int32_t* intervals = in.intervals + batch * in.intervals_batch_stride + row * in.intervals_row_stride;
  const bool empty =
      lane >= in.num_intervals || existing_columns(intervals + 2 * lane, static_cast<int>(in.kv_length)).empty();
  return __all_sync(kAllLanes, empty);
}

template <class T>
__global__ void __launch_bounds__(kForwardThreads) omni_decode_combine_kernel(OmniDecodeParams p) {
  const OmniInputs& in = p.in;
  const int64_t place = static_cast<int64_t>(blockIdx.x) * (kForwardThreads / 32) + threadIdx.x / 32;
  if (place >= in.batch * in.heads * in.q_length) return;
  const int lane = threadIdx.x % 32, splits = static_cast<int>(p.splits), dims = static_cast<int>(in.head_dim);
  const int first = static_cast<int>(blockIdx.y) * kCombinedDims + lane;
  const float2* stats = reinterpret_cast<const float2*>(p.partial_stats) + place * splits;
  float2 own[kMaxSplits / 32];
  float bound = FLT_MAX, sum = 0.0f;
#pragma unroll
  for (int k = 0; k < kMaxSplits / 32; ++k) {
    own[k] = 32 * k + lane < splits ? stats[32 * k + lane] : make_float2(FLT_MAX, 0.0f);
    bound = fminf(bound, own[k].x);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    bound = fminf(bound, __shfl_xor_sync(kAllLanes, bound, distance));
  float weights[kMaxSplits / 32];  // zero where the split has no output to be read
#pragma unroll
  for (int k = 0; k < kMaxSplits / 32; ++k) {
    weights[k] = own[k].y == 0.0f ? 0.0f : exp2_approx(bound - own[k].x);
    sum = fmaf(weights[k], own[k].y, sum);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);

  const float* shares = p.partial_out + place * splits * dims + first;
  float x[4] = {};
#pragma unroll
  for (int k = 0; k < kMaxSplits / 32; ++k) {
    const int count = min(32, splits - 32 * k);
#pragma unroll 4
    for (int s = 0; s < count; ++s) {
      const float weight = __shfl_sync(kAllLanes, weights[k], s);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        x[j] =
            fmaf(weight, weight != 0.0f && first + 32 * j < dims ? shares[(32 * k + s) * dims + 32 * j] : 0.0f, x[j]);
    }
  }
  const int64_t row = place % in.q_length, head = place / in.q_length % in.heads;
  const int64_t batch = place / in.q_length / in.heads;
  RowResult result{1.0f / sum, (log2_approx(sum) - bound) * kLn2};
  if (sum == 0.0f) {  // no columns, or nothing but scores of -inf: the latter is 0 / 0
    const bool empty = row_is_empty(in, batch, row);
    result = {empty ? 0.0f : NAN, empty ? -INFINITY : NAN};
  }
  T* to = static_cast<T*>(p.out) + batch * p.out_strides.batch + head * p.out_strides.head + row * p.out_strides.row;
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (first + 32 * j < dims) store(to + first + 32 * j, x[j] * result.factor);
  if (first == 0) p.lse[place] = result.lse;
}

// ---- launchers

template <class T>
Status launch_decode(const OmniDecodeParams& p, cudaStream_t stream) {
  return dispatch_wide_head_dim(p.in.head_dim, [&](auto size) {
    constexpr int kD = decltype(size)::value;
    return launch_kernel(omni_decode_kernel<T, kD>, "omni_decode_kernel", decode_grid(p), kForwardThreads,
                         DecodeTile<kD, kD>::shared_bytes(decode_m_tiles(p), p.in.num_intervals), stream, p,
                         Softcap(p.in));
  });
}

template <class T>
Status launch_combine(const OmniDecodeParams& p, cudaStream_t stream) {
  const int64_t rows = p.in.batch * p.in.heads * p.in.q_length;
  const unsigned blocks = static_cast<unsigned>(ceil_div(rows, kForwardThreads / 32));
  const dim3 grid(blocks, static_cast<unsigned>(ceil_div(p.in.head_dim, kCombinedDims)));
  omni_decode_combine_kernel<T><<<grid, kForwardThreads, 0, stream>>>(p);
  return check_launch("omni_decode_combine_kernel");
}

}  // namespace

Status omni_attention_decode_cuda(const OmniDecodeParams& p, void* stream_pointer) {
  const OmniInputs& in = p.in;
  if (in.batch <= 0 || in.heads <= 0 || in.q_length <= 0) return ok_status();
  SHOWO_RETURN_IF_ERROR(check_inputs(in));
  SHOWO_RETURN_IF_ERROR(check_rows("out", p.out, p.out_strides, in.dtype));
  SHOWO_CHECK_ARGUMENT(in.q_length <= 16, "omni_attention: decode takes up to 16 query rows, got %lld",
                       static_cast<long long>(in.q_length));
  SHOWO_CHECK_ARGUMENT(p.splits >= 1 && p.splits <= kMaxSplits, "omni_attention: %lld splits, expected 1 to %d",
                       static_cast<long long>(p.splits), kMaxSplits);
  SHOWO_CHECK_ARGUMENT(p.splits == 1 || (p.partial_out != nullptr && is_aligned(p.partial_out, 16) &&
                                         p.partial_stats != nullptr && is_aligned(p.partial_stats, 8)),
                       "omni_attention: decode with %lld splits needs aligned workspaces",
                       static_cast<long long>(p.splits));
  SHOWO_CHECK_ARGUMENT(in.kv_heads <= kMaxGridY && in.batch <= kMaxGridY && in.heads * in.q_length * p.splits < kMaxInt,
                       "omni_attention: batch %lld with %lld heads is too large for one launch",
                       static_cast<long long>(in.batch), static_cast<long long>(in.heads));
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  switch (in.dtype) {
    case DType::kF16:
      SHOWO_RETURN_IF_ERROR(launch_decode<__half>(p, stream));
      return p.splits == 1 ? ok_status() : launch_combine<__half>(p, stream);
    case DType::kBF16:
      SHOWO_RETURN_IF_ERROR(launch_decode<__nv_bfloat16>(p, stream));
      return p.splits == 1 ? ok_status() : launch_combine<__nv_bfloat16>(p, stream);
    default:
      SHOWO_RETURN_IF_ERROR(omni_decode_f32(p, stream));
      return p.splits == 1 ? ok_status() : launch_combine<float>(p, stream);
  }
}

}  // namespace showo
