// dq, dk, dv of omni_attention in fp32, every product a plain fp32 FMA (no TF32), reproducibly. The formulas are those
// of backward_dkdv.cu.
//
// One kernel, two uses. A thread block owns 64 rows and streams the rows of the visited 64 x 64 blocks past them, 32 at
// a time, all through shared memory:
//   owner kv: a, b = k, v of 64 kv rows; c, e = q, dout;  dk += ds c, dv += p e; loops over the query heads of a kv
//   head owner q:  a, b = q, dout of 64 query rows; c, e = k, v;  dq += ds c
// s = a c^T and dp = b e^T are 64 x 32; thread (y, x) of 16 x 16 has rows y + 16 i and columns x + 16 j of every
// product. In shared memory, rows of a, b, c and e are padded by 16 bytes, so that 8 lanes read 8 rows without bank
// conflicts; rows of p and ds are not, so that a lane reads two numbers of its row at once.
// Memory traffic per thread block: own rows once, and 2 x 64 x D x 4 bytes per visited block.
#include <cuda_runtime.h>

#include "omni_attention/backward_kernels.h"
#include "omni_attention/backward_tile.cuh"

namespace showo {
namespace {

constexpr int kThreads = 256, kOwn = 64, kStream = 32;

template <int D>
struct Memory {
  static constexpr int kPitch = D + 4;
  float a[kOwn * kPitch], b[kOwn * kPitch], c[kStream * kPitch], e[kStream * kPitch];
  float p[kOwn * kStream], ds[kOwn * kStream];
  uint64_t seen[kQBlock];  // of the current block: the columns that a query row sees
  float minus_lse[kQBlock], minus_delta[kQBlock];
};

template <int D>
struct Tile {
  static constexpr int kThreads = showo::kThreads, kRows = kOwn, kShared = sizeof(Memory<D>);
};

// kRows rows from `first` on; those beyond `length`, and those whose bit in `keep` is not set, are zeros.
template <int D, int kRows>
__device__ inline void load_rows(float* to, const float* from, int64_t stride, int64_t first, int64_t length,
                                 uint64_t keep) {
#pragma unroll 4
  for (int i = threadIdx.x; i < kRows * D / 4; i += kThreads) {
    const int row = i / (D / 4), column = i % (D / 4) * 4;
    const float4 x = first + row < length && (keep >> row & 1) != 0
                         ? *reinterpret_cast<const float4*>(from + (first + row) * stride + column)
                         : make_float4(0, 0, 0, 0);
    *reinterpret_cast<float4*>(to + row * (D + 4) + column) = x;
  }
}

__device__ inline float dot4(float4 x, float4 y, float sum) {
  return fmaf(x.w, y.w, fmaf(x.z, y.z, fmaf(x.y, y.y, fmaf(x.x, y.x, sum))));
}

template <int D>
__device__ inline void products(float (&s)[4][2], const float* own, const float* stream) {
  const int y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll 1
  for (int first = 0; first < D; first += 16) {  // sums of sums: shorter chains of roundings
    float part[4][2] = {};
#pragma unroll
    for (int d = first; d < first + 16; d += 4) {
      float4 column[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) column[j] = *reinterpret_cast<const float4*>(stream + (x + 16 * j) * (D + 4) + d);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 row = *reinterpret_cast<const float4*>(own + (y + 16 * i) * (D + 4) + d);
#pragma unroll
        for (int j = 0; j < 2; ++j) part[i][j] = dot4(row, column[j], part[i][j]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) s[i][j] += part[i][j];
  }
}

template <int D>
__device__ inline void accumulate_fp32(float (&sum)[4][D / 16], const float* pairs, const float* stream) {
  const int y = threadIdx.x / 16, x = threadIdx.x % 16;
  float part[4][D / 16] = {};
#pragma unroll 2
  for (int k = 0; k < kStream; ++k) {
    float row[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) row[i] = pairs[(y + 16 * i) * kStream + k];
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      const float value = stream[k * (D + 4) + x + 16 * j];
#pragma unroll
      for (int i = 0; i < 4; ++i) part[i][j] = fmaf(row[i], value, part[i][j]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < D / 16; ++j) sum[i][j] += part[i][j];
}

template <int D>
__device__ inline void store_fp32(const float (&sum)[4][D / 16], float factor, float* to, int64_t first,
                                  int64_t length) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = first + threadIdx.x / 16 + 16 * i;
    if (row >= length) continue;
#pragma unroll
    for (int j = 0; j < D / 16; ++j) to[row * D + threadIdx.x % 16 + 16 * j] = sum[i][j] * factor;
  }
}

template <int D, bool kOwnerKv>
__global__ void __launch_bounds__(kThreads, 1)
    omni_backward_fp32_kernel(const __grid_constant__ OmniBackwardCudaParams p,
                              const __grid_constant__ Softcap softcap) {
  extern __shared__ __align__(16) unsigned char memory[];
  Memory<D>& m = *reinterpret_cast<Memory<D>*>(memory);
  const OmniInputs& in = p.in;
  const int64_t group = in.heads / in.kv_heads, owners = kOwnerKv ? in.kv_heads : in.heads;
  const int64_t batch = blockIdx.x / owners, owner = blockIdx.x % owners;
  const int64_t kv_head = kOwnerKv ? owner : owner / group;
  const int q_blocks = static_cast<int>(ceil_div(in.q_length, kQBlock));
  const int kv_blocks = static_cast<int>(ceil_div(in.kv_length, kKvBlock));
  const int64_t own_block = blockIdx.y, own_first = own_block * kOwn;
  const float* k = static_cast<const float*>(in.k) + batch * in.k_strides.batch + kv_head * in.k_strides.head;
  const float* v = static_cast<const float*>(in.v) + batch * in.v_strides.batch + kv_head * in.v_strides.head;
  const uint8_t* states = in.block_states + batch * in.block_states_batch_stride;
  const int y = threadIdx.x / 16, x = threadIdx.x % 16;
  const float factor = softcap.exists() ? in.softcap : in.scale;  // of tanh, or of the products

  if constexpr (kOwnerKv) {
    const uint64_t seen = columns_of_all_rows(in, batch, static_cast<int>(own_block));
    load_rows<D, kOwn>(m.a, k, in.k_strides.row, own_first, in.kv_length, seen);
    load_rows<D, kOwn>(m.b, v, in.v_strides.row, own_first, in.kv_length, seen);
  }
  float dc[4][D / 16] = {}, de[4][D / 16] = {};  // ds c, p e
  const int64_t first_head = kOwnerKv ? owner * group : owner, last_head = kOwnerKv ? first_head + group : owner + 1;
  for (int64_t head = first_head; head < last_head; ++head) {
    const float* q = static_cast<const float*>(in.q) + batch * in.q_strides.batch + head * in.q_strides.head;
    const float* dout = static_cast<const float*>(p.dout) + batch * p.dout_strides.batch + head * p.dout_strides.head;
    const float* stats = p.stats + (batch * in.heads + head) * q_blocks * kStats;
    if constexpr (!kOwnerKv) {
      const uint64_t with_columns = rows_with_columns(stats + own_block * kStats + kStatsLse);
      load_rows<D, kOwn>(m.a, q, in.q_strides.row, own_first, in.q_length, with_columns);
      load_rows<D, kOwn>(m.b, dout, p.dout_strides.row, own_first, in.q_length, with_columns);
    }
    BlockWalk<1> walk(kOwnerKv ? states + own_block : states + own_block * kv_blocks, kOwnerKv ? kv_blocks : 1, 0,
                      kOwnerKv ? q_blocks : kv_blocks, 1, kOwnerKv ? q_blocks : kv_blocks);
    Visit visit;
    while (walk.next(&visit)) {
      const int64_t q_block = kOwnerKv ? visit.block : own_block, kv_block = kOwnerKv ? own_block : visit.block;
      const int64_t stream_first = static_cast<int64_t>(visit.block) * 64;
      uint64_t keep = 0;  // of the streamed rows: those that take part
      for (int part = 0; part < 64; part += kStream) {
        __syncthreads();  // the last products are done
        if (part == 0) {
          const int row = threadIdx.x, lane = threadIdx.x % 32;
          if (row < kQBlock) {
            m.seen[row] =
                visit.full ? ~uint64_t{0} : seen_columns(in, batch, q_block * kQBlock + row, kv_block * kKvBlock);
            m.minus_lse[row] = stats[q_block * kStats + kStatsLse + row];
            m.minus_delta[row] = stats[q_block * kStats + kStatsDelta + row / 2 * 4 + row % 2];
          }
          __syncthreads();
          keep = kOwnerKv ? rows_with_columns(m.minus_lse) : or_of_warp(m.seen[lane] | m.seen[lane + 32]);
        }
        load_rows<D, kStream>(m.c, kOwnerKv ? q : k, kOwnerKv ? in.q_strides.row : in.k_strides.row,
                              stream_first + part, kOwnerKv ? in.q_length : in.kv_length, keep >> part);
        load_rows<D, kStream>(m.e, kOwnerKv ? dout : v, kOwnerKv ? p.dout_strides.row : in.v_strides.row,
                              stream_first + part, kOwnerKv ? in.q_length : in.kv_length, keep >> part);
        __syncthreads();
        float s[4][2] = {}, dp[4][2] = {};
        products<D>(s, m.a, m.c);
        products<D>(dp, m.b, m.e);
        if (softcap.exists()) softcap.apply<true, 0, 4>(s);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int own = y + 16 * i, streamed = x + 16 * j;
            const int row = kOwnerKv ? part + streamed : own, column = kOwnerKv ? own : part + streamed;
            const bool sees = m.seen[row] >> column & 1;
            const float probability = sees ? expf(fmaf(s[i][j], factor, m.minus_lse[row])) : 0.0f;
            const float slope = softcap.exists() ? fmaf(-s[i][j], s[i][j], 1.0f) : 1.0f;
            if (kOwnerKv) m.p[own * kStream + streamed] = probability;
            m.ds[own * kStream + streamed] = sees ? probability * (dp[i][j] + m.minus_delta[row]) * slope : 0.0f;
          }
        }
        __syncthreads();
        accumulate_fp32<D>(dc, m.ds, m.c);
        if constexpr (kOwnerKv) accumulate_fp32<D>(de, m.p, m.e);
      }
    }
  }
  const int64_t length = kOwnerKv ? in.kv_length : in.q_length;
  const int64_t result = (batch * owners + owner) * length * D;
  store_fp32<D>(dc, in.scale, static_cast<float*>(kOwnerKv ? p.dk : p.dq) + result, own_first, length);
  if constexpr (kOwnerKv) store_fp32<D>(de, 1.0f, static_cast<float*>(p.dv) + result, own_first, length);
}

}  // namespace

Status omni_backward_fp32(const OmniBackwardCudaParams& p, cudaStream_t stream) {
  return dispatch_head_dim(p.in.head_dim, [&](auto size) {
    constexpr int kD = decltype(size)::value;
    const char* name = "omni_backward_fp32_kernel";
    SHOWO_RETURN_IF_ERROR(
        (launch_rows<Tile<kD>>(omni_backward_fp32_kernel<kD, true>, name, p, p.in.kv_heads, p.in.kv_length, stream)));
    return launch_rows<Tile<kD>>(omni_backward_fp32_kernel<kD, false>, name, p, p.in.heads, p.in.q_length, stream);
  });
}

}  // namespace showo
