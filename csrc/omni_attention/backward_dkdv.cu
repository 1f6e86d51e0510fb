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
// Blocks that the mask allows whole take code without masks. In the others every product skips the 16 x 16 sub-tiles
// that the mask forbids, and masks those that it cuts.
//
// Q and dO come by cp.async into two stages, with lse and delta in the form that backward.cu's first kernel gave them.
// Memory traffic per thread block: k, v, dk, dv once; per visited block 2 x 64 x D x 2 bytes of q and dout, and
// 64 x D x 4 bytes of additions. Thread blocks start with the lowest kv rows: under causal masks, those see most.
#include <cuda_runtime.h>

#include "omni_attention/backward_kernels.h"
#include "omni_attention/backward_tile.cuh"

namespace showo {
namespace {

template <int D>
struct Tile {
  static constexpr int kWarps = D == 128 ? 8 : 4, kThreads = 32 * kWarps, kBlocksPerSm = D == 32 ? 3 : D == 128 ? 1 : 2;
  static constexpr int kRows = 16 * kWarps, kLines = kRows / 64;  // kv rows, and 64-column blocks of the mask
  static constexpr int kTiles = D == 128 ? 2 : 4;                 // of 8 queries: so many at a time in full blocks
  static constexpr bool kKeep = D <= 64;                          // fragments of k and v stay in registers
  static constexpr bool kOneLoop = D == 128;  // for want of registers; places in memory are computed again, too
  // ds^T: rows of 64 queries, padded by a chunk so that neither stores nor ldmatrix meet bank conflicts.
  static constexpr int kDsBytes = 64 * 2 + 16;
  // Shared memory. v is needed only until its fragments are in registers; then ds may have its place.
  static constexpr int kQ = 0, kDout = 64 * Rows<D>::kBytes, kStageStats = 2 * kDout;
  static constexpr int kMasks = kStageStats + 4 * kStats, kStage = kMasks + kLines * MaskBits::kBytes;
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
  // 32 bits wherever they do: registers are short.
  const int kv_heads = static_cast<int>(in.kv_heads), group = static_cast<int>(in.heads) / kv_heads;
  const int batch = static_cast<int>(blockIdx.x) / kv_heads, kv_head = static_cast<int>(blockIdx.x) % kv_heads;
  const int first_kv = static_cast<int>(blockIdx.y) * M::kRows;
  const int q_blocks = static_cast<int>(ceil_div(in.q_length, kQBlock));
  const int kv_blocks = static_cast<int>(ceil_div(in.kv_length, kKvBlock));

  // Where this lane finds its rows (ldmatrix: see scores and accumulate).
  const uint32_t own_at = shared + M::kK + swizzled<D>(16 * warp + lane % 16, lane / 16);
  constexpr int kDqTiles = D / 8 / M::kLines;
  const int dq_rows = warp % 4, dq_tile = warp / 4 * kDqTiles;  // this warp's part of a block of dq
  uint32_t ds_at = shared + (16 * warp + g) * M::kDsBytes + 4 * t;
  uint32_t dq_ds_at = shared + (lane / 16 * 8 + lane % 8) * M::kDsBytes + (2 * dq_rows + lane / 8 % 2) * 16;

  uint32_t row_at = swizzled<D>(lane % 8, lane / 8), column_at = swizzled<D>(lane % 16, lane / 16);
  const uint32_t dq_k_at = shared + swizzled<D>(lane % 16, lane / 16 + dq_tile);
  pin<D>(ds_at), pin<D>(dq_ds_at), pin<D>(row_at), pin<D>(column_at);

  // The thread's own first place in the matrices that it copies from and to.
  uint32_t copy_at = swizzled<D>(R::copy_row(), R::copy_chunk());
  pin<D>(copy_at);
  const auto source = [&](const void* matrix, const OmniStrides& strides, int head, int row) {
    return reinterpret_cast<const char*>(static_cast<const T*>(matrix) + batch * strides.batch + head * strides.head +
                                         (row + R::copy_row()) * strides.row + R::copy_chunk() * 8);
  };
  const int kv_left = static_cast<int>(in.kv_length) - first_kv;
  R::template copy<M::kRows, M::kThreads, M::kK>(shared + copy_at, source(in.k, in.k_strides, kv_head, first_kv),
                                                 in.k_strides.row * 2, kv_left);
  R::template copy<M::kRows, M::kThreads, M::kV>(shared + copy_at, source(in.v, in.v_strides, kv_head, first_kv),
                                                 in.v_strides.row * 2, kv_left);
  cp_async_commit();

  int head = kv_head * group;
  // This thread's places in q, dout and stats for the current head.
  struct Places {
    const char *q, *dout, *stats;
  };
  const auto places = [&](int h) -> Places {
    const int64_t first_block = static_cast<int64_t>(batch * in.heads + h) * q_blocks;
    return {source(in.q, in.q_strides, h, 0), source(p.dout, p.dout_strides, h, 0),
            reinterpret_cast<const char*>(p.stats + first_block * kStats) + threadIdx.x * 16};
  };
  Places kept;
  const uint32_t q_step = static_cast<uint32_t>(in.q_strides.row) * (kQBlock * 2);
  const uint32_t dout_step = static_cast<uint32_t>(p.dout_strides.row) * (kQBlock * 2);
  // Starts the copies of one query block, and says which of its pairs the mask allows.
  const auto load = [&](uint32_t stage, const Visit& visit) {
    const uint64_t block = static_cast<uint32_t>(visit.block);
    const Places from = M::kOneLoop ? places(opaque(head)) : kept;
    const int left = static_cast<int>(in.q_length) - visit.block * static_cast<int>(kQBlock);
    R::template copy<64, M::kThreads, M::kQ>(stage + copy_at, from.q + block * q_step, in.q_strides.row * 2, left);
    R::template copy<64, M::kThreads, M::kDout>(stage + copy_at, from.dout + block * dout_step, p.dout_strides.row * 2,
                                                left);
    if (threadIdx.x < kStats / 4)
      cp_async16_at<M::kStageStats>(stage + threadIdx.x * 16, from.stats + block * (kStats * 4), 16);
    cp_async_commit();
    const int line = threadIdx.x / 64, row = threadIdx.x % 64;
    if (!visit.full && line < M::kLines)
      MaskBits::store(memory + (stage - shared) + M::kMasks + line * MaskBits::kBytes, row,
                      seen_columns(in, batch, static_cast<int64_t>(visit.block) * kQBlock + row, first_kv + 64 * line));
  };

  unrolled<M::kLines>([&](auto line) {
    const uint64_t seen = columns_of_all_rows(in, batch, first_kv / static_cast<int>(kKvBlock) + line);
    if (~seen == 0) return;
    cp_async_wait<0>();
    __syncthreads();
    R::template erase<M::kThreads, M::kK + line * 64 * R::kBytes, M::kV - M::kK>(shared, seen);
  });

  float dk[D / 8][4] = {}, dv[D / 8][4] = {};
  uint32_t own_k[M::kKeep ? D / 16 : 1][4], own_v[M::kKeep ? D / 16 : 1][4];
  if constexpr (M::kKeep) {
    cp_async_wait<0>();
    __syncthreads();
    const LaneRows<D, 2> own(own_at);
    unrolled<D / 16>([&](auto i) {
      own.template load<i, 0>(own_k[i]);
      own.template load<i, M::kV - M::kK>(own_v[i]);
    });
    // The barrier that opens the first query block also stands between these reads of v and the first ds.
  }

  const float factor = in.scale * kLog2E;
  uint32_t stage = shared;
  for (; head < (kv_head + 1) * group; ++head) {
    const int64_t first_block = static_cast<int64_t>(batch * in.heads + head) * q_blocks;
    if constexpr (!M::kOneLoop) kept = places(head);
    float* sums = p.dq_sums + first_block * (64 * D) + (dq_rows * (D / 8) + dq_tile) * 128 + lane;
    pin<D>(kept.q), pin<D>(kept.dout), pin<D>(kept.stats), pin<D>(sums);
    const uint8_t* states = in.block_states + opaque(batch) * in.block_states_batch_stride + first_kv / kKvBlock;
    pin<D>(states);
    const int lines = kv_blocks - static_cast<int>(first_kv / kKvBlock);
    BlockWalk<M::kLines> walk(states, kv_blocks, 1, q_blocks, lines, static_cast<int>(in.q_length / kQBlock));
    Visit visit, following;
    bool more = walk.next(&visit);
    if (more) load(stage, visit);

    const auto use = [&](auto full_block) {
      constexpr bool kFull = full_block.value;
      constexpr int kTiles = kFull ? M::kTiles : 2, kQueries = 8 * kTiles;
      more = walk.next(&following);
      cp_async_wait<0>();
      __syncthreads();
      const uint32_t other = shared + M::kStage - (stage - shared);
      if (more) load(other, following);
      if constexpr (!kFull) {
        const uint64_t with_columns =
            rows_with_columns(reinterpret_cast<const float*>(memory + (stage - shared) + M::kStageStats) + kStatsLse);
        if (~with_columns != 0) {
          R::template erase<M::kThreads, M::kQ, M::kDout - M::kQ>(stage, with_columns);
          __syncthreads();
        }
      }

      const LaneRows<D, 2> own(M::kKeep ? own_at : opaque(own_at));
      const LaneRows<D, 4> rows(stage + row_at);
      const LaneRows<D, 2> columns(stage + column_at);
      const uint32_t deltas = stage + t * 16, lses = stage + t * 8;
      const uint32_t masks = stage + M::kMasks + warp * MaskBits::kStride;
      const SubTiles own_tiles(kFull ? 0 : load_shared_word_at<0>(masks + lane * 4));
      unrolled<64 / kQueries>([&](auto part) {
        if (!kFull && !own_tiles.visited(part)) return;
        float s[kTiles][4], dp[kTiles][4];
        unrolled<kTiles>([&](auto n) {
          const float4 minus_delta =
              load_shared4_at<M::kStageStats + 4 * kStatsDelta + (part * kTiles + n) * 64>(deltas);
          dp[n][0] = minus_delta.x, dp[n][1] = minus_delta.y, dp[n][2] = minus_delta.z, dp[n][3] = minus_delta.w;
        });
        scores<T, D, true, 0, M::kQ + part * kQueries * R::kBytes, M::kKeep>(s, own_k, own, rows);
        scores<T, D, false, M::kV - M::kK, M::kDout + part * kQueries * R::kBytes, M::kKeep>(dp, own_v, own, rows);
        unrolled<kTiles>([&](auto n) {
          const float2 minus_lse = load_shared2_at<M::kStageStats + 4 * kStatsLse + (part * kTiles + n) * 32>(lses);
#pragma unroll
          for (int i = 0; i < 4; ++i) s[n][i] = fmaf(s[n][i], factor, i % 2 ? minus_lse.y : minus_lse.x);
        });
        if (!kFull && !own_tiles.full(part)) {
          unrolled<kTiles>([&](auto n) {
            // Bits 0..15: the warp's kv rows as an even query sees them; 16..31: as the next query does.
            const uint32_t seen = load_shared_word_at<(part * kTiles + n) * 16>(masks + t * 4) >> g;
#pragma unroll
            for (int i = 0; i < 4; ++i)
              if ((seen & (1u << (i % 2 * 16 + i / 2 * 8))) == 0) s[n][i] = -INFINITY;
          });
        }
        uint32_t p16[kTiles / 2][4], ds16[kTiles / 2][4];  // A fragments: kv rows x 16 queries
        unrolled<kTiles>([&](auto n) {
          unrolled<2>([&](auto half) {
            const float p0 = exp2_approx(s[n][2 * half]), p1 = exp2_approx(s[n][2 * half + 1]);
            const uint32_t ds = pack<T>(p0 * dp[n][2 * half], p1 * dp[n][2 * half + 1]);
            p16[n / 2][n % 2 * 2 + half] = pack<T>(p0, p1);
            ds16[n / 2][n % 2 * 2 + half] = ds;
            store_shared_word_at<M::kDs + (part * kTiles + n) * 16 + half * 8 * M::kDsBytes>(ds_at, ds);
          });
        });
        unrolled<kTiles / 2>([&](auto i) {
          constexpr int kOffset = (part * kTiles / 2 + i) * 16 * R::kBytes;
          accumulate<T, D, false, M::kDout + kOffset>(dv, p16[i], columns);
          accumulate<T, D, false, M::kQ + kOffset>(dk, ds16[i], columns);
        });
      });
      __syncthreads();

      if (p.dq_sums != nullptr) {
        float dq[kDqTiles][4];
        if constexpr (!kFull) {
#pragma unroll
          for (int j = 0; j < kDqTiles; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) dq[j][i] = 0;
        }
        const uint32_t dq_masks = stage + M::kMasks + lane / 8 * MaskBits::kStride + dq_rows * 32 + lane % 8 * 4;
        const LaneRows<D, 2> dq_k(opaque(dq_k_at));
        bool any = kFull;
        unrolled<M::kLines>([&](auto from) {
          const SubTiles tiles(kFull ? 0 : load_shared_word_at<from * MaskBits::kBytes>(dq_masks));
          any |= tiles.some != 0;
          unrolled<4>([&](auto i) {
            if (!kFull && !tiles.visited(i)) return;
            constexpr int kI = 4 * from + i;
            uint32_t a[4];
            ldmatrix_x4_trans_at<M::kDs + kI * 16 * M::kDsBytes>(a, dq_ds_at);
            accumulate<T, D, kFull && kI == 0, M::kK + kI * 16 * R::kBytes>(dq, a, dq_k);
          });
        });
        if (any) {
          float* const to = sums + static_cast<uint64_t>(static_cast<uint32_t>(visit.block)) * (64 * D);
          unrolled<kDqTiles>(
              [&](auto j) { unrolled<4>([&](auto i) { red_add_at<(j * 4 + i) * 128>(to, dq[j][i]); }); });
        }
      }
      visit = following;
      stage = other;
    };
    while (more) {
      if constexpr (M::kOneLoop) {
        if (visit.full) {
          use(std::true_type());
        } else {
          use(std::false_type());
        }
      } else {
        while (more && visit.full) use(std::true_type());
        while (more && !visit.full) use(std::false_type());
      }
    }
  }

  // All warps are done with q and dout: their last reads lie before the last barrier.
  if constexpr (!M::kKeep) {
    cp_async_wait<0>();  // without a visit, k and v may still be on their way
  }
  const uint32_t scratch = shared + warp * 16 * R::kBytes;
  const int64_t result = opaque(blockIdx.x) * in.kv_length * D;
  store_sums<T, D>(dk, in.scale, scratch, static_cast<T*>(p.dk) + result, first_kv + 16 * warp, in.kv_length);
  store_sums<T, D>(dv, 1.0f, scratch, static_cast<T*>(p.dv) + result, first_kv + 16 * warp, in.kv_length);
}

}  // namespace

Status omni_backward_dkdv(const OmniBackwardCudaParams& p, cudaStream_t stream) {
  return dispatch_16bit(p.in, [&](auto type, auto size) {
    constexpr int kD = decltype(size)::value;
    return launch_rows<Tile<kD>>(omni_backward_dkdv_kernel<typename decltype(type)::Type, kD>,
                                 "omni_backward_dkdv_kernel", p, p.in.kv_heads, p.in.kv_length, stream);
  });
}

}  // namespace showo
