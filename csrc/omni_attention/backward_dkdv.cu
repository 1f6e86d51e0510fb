// dk, dv and, unless reproducibility is asked for, dq of omni_attention in fp16 and bf16: five products per block.
//
//   s = q k^T;  p = exp(scale s - lse);  dp = dout v^T;  ds = p (dp - delta)
//   dv = p^T dout;  dk = scale ds^T q;  dq = scale ds k
//
// A thread block owns 64 kv rows (128 for head size 128) of one kv head, and walks over the 64-row query blocks that
// see them, for every query head that reads the kv head: dk and dv stay in registers, in fp32, and are written once.
//
// A warp owns 16 kv rows. It computes s^T = k q^T and dp^T = v dout^T, 8 kTiles queries at a time, so that its
// accumulators, rounded to 16 bits, are the A fragments of dv += p^T dout and dk += ds^T q: p never leaves the
// registers. Its fragments of k and v stay in registers where there is room. ds^T goes to shared memory once; after a
// barrier the warps divide the query rows among them for dq += ds k, added to an fp32 workspace with red.global. The
// workspace is in fragment order (128 contiguous bytes per instruction); backward.cu's last kernel puts it straight.
//
// Q and dO come by cp.async into two stages, with lse and delta in the form that backward.cu's first kernel gave them.
// Memory traffic per thread block: k, v, dk, dv once; per visited block 2 x 64 x D x 2 bytes of q and dout, and
// 64 x D x 4 bytes of additions. Thread blocks start with the lowest kv rows: under causal masks, those see most.
#include <cuda_runtime.h>

#include "common/cuda_check.h"
#include "common/launch.h"
#include "omni_attention/backward_kernels.h"
#include "omni_attention/backward_tile.cuh"

namespace showo {
namespace {

template <int D>
struct Tile {
  static constexpr int kWarps = D == 128 ? 8 : 4, kThreads = 32 * kWarps, kBlocksPerSm = D == 32 ? 3 : D == 128 ? 1 : 2;
  static constexpr int kRows = 16 * kWarps, kLines = kRows / 64;  // kv rows, and 64-column blocks of the mask
  static constexpr int kTiles = D == 128 ? 2 : 4;                 // queries are taken 8 kTiles at a time
  static constexpr bool kKeep = D <= 64;                          // fragments of k and v stay in registers
  // ds^T: rows of 64 queries, padded by a chunk so that neither stores nor ldmatrix meet bank conflicts.
  static constexpr int kDsBytes = 64 * 2 + 16;
  // Shared memory. v is needed only until its fragments are in registers; then ds may have its place.
  static constexpr int kQ = 0, kDout = 64 * Rows<D>::kBytes, kStageStats = 2 * kDout;
  static constexpr int kMasks = kStageStats + 4 * kStats, kStage = kMasks + kWarps * 64 * 2;
  static constexpr int kK = 2 * kStage, kV = kK + kRows * Rows<D>::kBytes;
  static constexpr int kDs = kKeep ? kV : kV + kRows * Rows<D>::kBytes;
  static constexpr int kVEnd = kV + kRows * Rows<D>::kBytes, kDsEnd = kDs + kRows * kDsBytes;
  static constexpr int kShared = kVEnd > kDsEnd ? kVEnd : kDsEnd;
  static_assert(kStage % 128 == 0 && kRows * Rows<D>::kBytes <= kStageStats, "alignment; room for the results");
};

// Keeps an address in registers: without it the compiler computes it again in every step of the loop. Only where there
// are registers to spare.
template <int D, class Address>
__device__ __forceinline__ void pin(Address& x) {
  if constexpr (D <= 64) {
    if constexpr (sizeof(Address) == 8)
      asm volatile("" : "+l"(x));
    else
      asm volatile("" : "+r"(x));
  }
}

template <class T, int D>
__global__ void __launch_bounds__(Tile<D>::kThreads, Tile<D>::kBlocksPerSm)
    omni_backward_dkdv_kernel(const __grid_constant__ OmniBackwardCudaParams p) {
  using M = Tile<D>;
  using R = Rows<D>;
  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t shared = shared_address(memory);
  const OmniInputs& in = p.in;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int g = lane / 4, t = lane % 4;
  const int64_t batch = blockIdx.x / in.kv_heads, kv_head = blockIdx.x % in.kv_heads;
  const int64_t first_kv = static_cast<int64_t>(blockIdx.y) * M::kRows;
  const int q_blocks = static_cast<int>(ceil_div(in.q_length, kQBlock));
  const int kv_blocks = static_cast<int>(ceil_div(in.kv_length, kKvBlock));

  // Where this lane finds its rows (ldmatrix: see scores and accumulate).
  const LaneRows<D, 2> own(shared + M::kK + R::at(16 * warp + lane % 16, lane / 16));
  constexpr int kDqTiles = D / 8 / M::kLines;
  const int dq_rows = warp % 4, dq_tile = warp / 4 * kDqTiles;  // this warp's part of a block of dq
  uint32_t ds_at = shared + M::kDs + (16 * warp + g) * M::kDsBytes + 4 * t;
  uint32_t dq_ds_at = shared + M::kDs + (lane / 16 * 8 + lane % 8) * M::kDsBytes + (2 * dq_rows + lane / 8 % 2) * 16;

  uint32_t row_at = R::at(lane % 8, lane / 8), column_at = R::at(lane % 16, lane / 16);
  LaneRows<D, 2> dq_k(shared + M::kK + R::at(lane % 16, lane / 16 + dq_tile));
  pin<D>(ds_at), pin<D>(dq_ds_at), pin<D>(row_at), pin<D>(column_at);
#pragma unroll
  for (int i = 0; i < dq_k.kCount; ++i) pin<D>(dq_k.base[i]);

  // The thread's own first place in the matrices that it copies from and to.
  uint32_t copy_at = R::at(R::copy_row(), R::copy_chunk());
  pin<D>(copy_at);
  const auto source = [&](const void* matrix, const OmniStrides& strides, int64_t head, int64_t row) {
    return reinterpret_cast<const char*>(static_cast<const T*>(matrix) + batch * strides.batch + head * strides.head +
                                         (row + R::copy_row()) * strides.row + R::copy_chunk() * 8);
  };
  const int kv_left = static_cast<int>(min(in.kv_length - first_kv, static_cast<int64_t>(M::kRows)));
  R::template copy<M::kRows, M::kThreads>(shared + M::kK + copy_at, source(in.k, in.k_strides, kv_head, first_kv),
                                          in.k_strides.row * 2, kv_left);
  R::template copy<M::kRows, M::kThreads>(shared + M::kV + copy_at, source(in.v, in.v_strides, kv_head, first_kv),
                                          in.v_strides.row * 2, kv_left);
  cp_async_commit();

  const char *q, *dout, *stats;  // of the current head
  const uint32_t q_step = static_cast<uint32_t>(in.q_strides.row) * (kQBlock * 2);
  const uint32_t dout_step = static_cast<uint32_t>(p.dout_strides.row) * (kQBlock * 2);
  // Starts the copies of one query block, and says which of its pairs the mask allows: a word per warp and row.
  const auto load = [&](uint32_t stage, const Visit& visit) {
    const uint64_t block = static_cast<uint32_t>(visit.block);
    const int left = static_cast<int>(in.q_length) - visit.block * static_cast<int>(kQBlock);
    R::template copy<64, M::kThreads>(stage + M::kQ + copy_at, q + block * q_step, in.q_strides.row * 2, left);
    R::template copy<64, M::kThreads>(stage + M::kDout + copy_at, dout + block * dout_step, p.dout_strides.row * 2,
                                      left);
    if (threadIdx.x < kStats / 4) cp_async16(stage + M::kStageStats + threadIdx.x * 16, stats + block * (kStats * 4));
    cp_async_commit();
    const int line = threadIdx.x / 64, mask_row = threadIdx.x % 64;
    if ((visit.visited & ~visit.full) >> line & 1 && line < M::kLines) {
      const int64_t row = static_cast<int64_t>(visit.block) * kQBlock + mask_row;
      const uint64_t bits = seen_columns(in, batch, row, first_kv + 64 * line);
      uint16_t* words = reinterpret_cast<uint16_t*>(memory + (stage - shared) + M::kMasks) + line * 256 + mask_row;
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i * 64] = static_cast<uint16_t>(bits >> (16 * i));
    }
  };

  float dk[D / 8][4] = {}, dv[D / 8][4] = {};
  uint32_t own_k[M::kKeep ? D / 16 : 1][4], own_v[M::kKeep ? D / 16 : 1][4];
  if constexpr (M::kKeep) {
    cp_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      ldmatrix_x4(own_k[i], own.at(i, 0));
      ldmatrix_x4(own_v[i], own.at(i, M::kV - M::kK));
    }
    // The barrier that opens the first query block also stands between these reads of v and the first ds.
  }

  const float factor = in.scale * kLog2E;
  const int64_t group = in.heads / in.kv_heads;
  const uint8_t* states = in.block_states + batch * in.block_states_batch_stride + first_kv / kKvBlock;
  pin<D>(states);
  const int lines = static_cast<int>(min(static_cast<int64_t>(M::kLines), kv_blocks - first_kv / kKvBlock));
  uint32_t stage = shared;
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    q = source(in.q, in.q_strides, head, 0);
    dout = source(p.dout, p.dout_strides, head, 0);
    const int64_t first_block = (batch * in.heads + head) * q_blocks;
    stats = reinterpret_cast<const char*>(p.stats + first_block * kStats) + threadIdx.x * 16;
    float* sums = p.dq_sums + first_block * (64 * D) + (dq_rows * (D / 8) + dq_tile) * 128 + lane;
    pin<D>(q), pin<D>(dout), pin<D>(stats), pin<D>(sums);
    Walk<M::kLines> walk(states, kv_blocks, 1, q_blocks, lines);
    Visit visit, following;
    bool more = walk.next(&visit);
    if (more) load(stage, visit);
    while (more) {
      more = walk.next(&following);
      cp_async_wait<0>();
      __syncthreads();
      const uint32_t other = shared + M::kStage - (stage - shared);
      if (more) load(other, following);

      const int line = warp / 4;
      const bool mine = visit.visited >> line & 1, full = visit.full >> line & 1;
      if (mine) {
        const uint32_t masks = stage + M::kMasks + warp * 128 + t * 4;
        const LaneRows<D, 4> rows(stage + row_at);
        const LaneRows<D, 2> columns(stage + column_at);
#pragma unroll
        for (int part = 0; part < 8 / M::kTiles; ++part) {
          if (!full) {
            uint32_t any = 0;
#pragma unroll
            for (int n = 0; n < M::kTiles; ++n) any |= load_shared_word(masks + (part * M::kTiles + n) * 16);
            if (!__any_sync(kAllLanes, any)) {
#pragma unroll
              for (int n = 0; n < M::kTiles; ++n) {
                store_shared_word(ds_at + (part * M::kTiles + n) * 16, 0);
                store_shared_word(ds_at + (part * M::kTiles + n) * 16 + 8 * M::kDsBytes, 0);
              }
              continue;
            }
          }
          float s[M::kTiles][4] = {}, dp[M::kTiles][4];
#pragma unroll
          for (int n = 0; n < M::kTiles; ++n) {
            const float4 minus_delta =
                load_shared4(stage + M::kStageStats + 4 * kStatsDelta + t * 16 + (part * M::kTiles + n) * 64);
            dp[n][0] = minus_delta.x, dp[n][1] = minus_delta.y, dp[n][2] = minus_delta.z, dp[n][3] = minus_delta.w;
          }
          scores<T, D, M::kKeep>(s, own_k, own, 0, rows, M::kQ + part * M::kTiles * 8 * R::kBytes);
          scores<T, D, M::kKeep>(dp, own_v, own, M::kV - M::kK, rows, M::kDout + part * M::kTiles * 8 * R::kBytes);
#pragma unroll
          for (int n = 0; n < M::kTiles; ++n) {
            const float2 lse = load_shared2(stage + M::kStageStats + t * 8 + (part * M::kTiles + n) * 32);
#pragma unroll
            for (int i = 0; i < 4; ++i) s[n][i] = s[n][i] * factor - (i % 2 ? lse.y : lse.x);
          }
          if (!full) {
#pragma unroll
            for (int n = 0; n < M::kTiles; ++n) {
              // Bits 0..15: the warp's kv rows as an even query sees them; 16..31: as the next query does.
              const uint32_t seen = load_shared_word(masks + (part * M::kTiles + n) * 16) >> g;
#pragma unroll
              for (int i = 0; i < 4; ++i)
                if (!(seen >> (i % 2 * 16 + i / 2 * 8) & 1)) s[n][i] = -INFINITY;
            }
          }
          uint32_t p16[M::kTiles / 2][4], ds16[M::kTiles / 2][4];  // A fragments: kv rows x 16 queries
#pragma unroll
          for (int n = 0; n < M::kTiles; ++n) {
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
              const float p0 = exp2_approx(s[n][i]), p1 = exp2_approx(s[n][i + 1]);
              p16[n / 2][n % 2 * 2 + i / 2] = pack<T>(p0, p1);
              const uint32_t ds = pack<T>(p0 * dp[n][i], p1 * dp[n][i + 1]);
              ds16[n / 2][n % 2 * 2 + i / 2] = ds;
              store_shared_word(ds_at + (part * M::kTiles + n) * 16 + i / 2 * 8 * M::kDsBytes, ds);
            }
          }
#pragma unroll
          for (int i = 0; i < M::kTiles / 2; ++i) {
            accumulate<T, D>(dv, p16[i], columns, M::kDout + (part * M::kTiles / 2 + i) * 16 * R::kBytes);
            accumulate<T, D>(dk, ds16[i], columns, M::kQ + (part * M::kTiles / 2 + i) * 16 * R::kBytes);
          }
        }
      }
      __syncthreads();

      if (p.dq_sums != nullptr) {
        float dq[kDqTiles][4] = {};
#pragma unroll
        for (int from = 0; from < M::kLines; ++from) {
          if (M::kLines > 1 && !(visit.visited >> from & 1)) continue;
#pragma unroll
          for (int i = 4 * from; i < 4 * from + 4; ++i) {
            uint32_t a[4];
            ldmatrix_x4_trans(a, dq_ds_at + i * 16 * M::kDsBytes);
            accumulate<T, D>(dq, a, dq_k, i * 16 * R::kBytes);
          }
        }
        float* const to = sums + static_cast<uint64_t>(static_cast<uint32_t>(visit.block)) * (64 * D);
#pragma unroll
        for (int j = 0; j < kDqTiles; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) red_add(to + (j * 4 + i) * 32, dq[j][i]);
      }
      visit = following;
      stage = other;
    }
  }

  // All warps are done with q and dout: their last reads lie before the last barrier.
  if constexpr (!M::kKeep) {
    cp_async_wait<0>();  // without a visit, k and v may still be on their way
  }
  const uint32_t scratch = shared + warp * 16 * R::kBytes;
  const int64_t result = (batch * in.kv_heads + kv_head) * in.kv_length * D;
  store_sums<T, D>(dk, in.scale, scratch, static_cast<T*>(p.dk) + result, first_kv + 16 * warp, in.kv_length);
  store_sums<T, D>(dv, 1.0f, scratch, static_cast<T*>(p.dv) + result, first_kv + 16 * warp, in.kv_length);
}

template <class T, int D>
Status launch(const OmniBackwardCudaParams& p, cudaStream_t stream) {
  using M = Tile<D>;
  const auto kernel = omni_backward_dkdv_kernel<T, D>;
  SHOWO_RETURN_IF_ERROR(check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, M::kShared), "cudaFuncSetAttribute"));
  const dim3 grid(static_cast<unsigned>(p.in.batch * p.in.kv_heads),
                  static_cast<unsigned>(ceil_div(p.in.kv_length, M::kRows)));
  kernel<<<grid, M::kThreads, M::kShared, stream>>>(p);
  return check_launch("omni_backward_dkdv_kernel");
}

}  // namespace

Status omni_backward_dkdv(const OmniBackwardCudaParams& p, cudaStream_t stream) {
  return dispatch_16bit(p.in, [&](auto type, auto size) {
    return launch<typename decltype(type)::Type, decltype(size)::value>(p, stream);
  });
}

}  // namespace showo
