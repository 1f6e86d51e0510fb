// dk, dv and, unless reproducibility is asked for, dq of omni_attention in fp16 and bf16: five products per block.
//
//   s = q k^T;  p = exp(scale s - lse);  dp = dout v^T;  ds = p (dp - delta)
//   dv = p^T dout;  dk = scale ds^T q;  dq = scale ds k
//
// With a softcap, t = tanh(scale s / softcap): p = exp(softcap t - lse) and ds = p (dp - delta) (1 - t^2).
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
  // So many tiles of 8 queries at a time in full blocks. With a softcap more of them would spill for D = 32, whose
  // three thread blocks leave a thread 168 registers.
  static constexpr int kTiles = D == 128 || D == 32 ? 2 : 4;
  static constexpr bool kKeep = D <= 64;      // fragments of k and v stay in registers
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

// A thread's places in q, dout and stats, for one head.
struct QueryPlaces {
  const char *q, *dout, *stats;
};

// Starts the copies of one query block to a stage. copy_at: the thread's first place in a matrix there.
template <int D>
__device__ __forceinline__ void load_queries(uint32_t stage, uint32_t copy_at, const QueryPlaces& from,
                                             const OmniBackwardCudaParams& p, int query_block) {
  using M = Tile<D>;
  using R = Rows<D>;
  const uint32_t q_step = static_cast<uint32_t>(p.in.q_strides.row) * (kQBlock * 2);
  const uint32_t dout_step = static_cast<uint32_t>(p.dout_strides.row) * (kQBlock * 2);
  const uint64_t block = static_cast<uint32_t>(query_block);
  const int left = static_cast<int>(p.in.q_length) - query_block * static_cast<int>(kQBlock);
  R::template copy<64, M::kThreads, M::kQ>(stage + copy_at, from.q + block * q_step, p.in.q_strides.row * 2, left);
  R::template copy<64, M::kThreads, M::kDout>(stage + copy_at, from.dout + block * dout_step, p.dout_strides.row * 2,
                                              left);
  if (threadIdx.x < kStats / 4)
    cp_async16_at<M::kStageStats>(stage + threadIdx.x * 16, from.stats + block * (kStats * 4), 16);
  cp_async_commit();
}

// What a warp has of its 16 kv rows, and how a block of 64 queries is added to it.
template <class T, int D>
struct KvRows {
  using M = Tile<D>;
  using R = Rows<D>;
  static constexpr int kDqTiles = D / 8 / M::kLines;  // of a block's dq, 8 columns each: a warp's part

  float dk[D / 8][4] = {}, dv[D / 8][4] = {};
  uint32_t own_k[M::kKeep ? D / 16 : 1][4], own_v[M::kKeep ? D / 16 : 1][4];
  float factor;  // of the scores, in units of log2; with a softcap, of tanh
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // Where the lane finds its own rows (ldmatrix: see scores and accumulate), and its places in a stage and in ds^T.
  uint32_t own_at, row_at, column_at, ds_at, dq_ds_at, dq_k_at;
  Softcap softcap;

  __device__ __forceinline__ KvRows(uint32_t shared, float scale, const Softcap& cap)
      : factor(cap.factor(scale * kLog2E)), softcap(cap) {
    own_at = shared + M::kK + swizzled<D>(16 * warp + lane % 16, lane / 16);
    ds_at = shared + (16 * warp + lane / 4) * M::kDsBytes + 4 * (lane % 4);
    dq_ds_at = shared + (lane / 16 * 8 + lane % 8) * M::kDsBytes + (2 * dq_rows() + lane / 8 % 2) * 16;
    row_at = swizzled<D>(lane % 8, lane / 8), column_at = swizzled<D>(lane % 16, lane / 16);
    dq_k_at = shared + swizzled<D>(lane % 16, lane / 16 + dq_tile());
    pin<D>(ds_at), pin<D>(dq_ds_at), pin<D>(row_at), pin<D>(column_at);
  }

  // The warp's part of a block of dq: 16 of its rows, and kDqTiles tiles of them.
  __device__ __forceinline__ int dq_rows() const { return warp % 4; }
  __device__ __forceinline__ int dq_tile() const { return warp / 4 * kDqTiles; }

  __device__ __forceinline__ void keep() {
    const LaneRows<D, 2> own(own_at);
    unrolled<D / 16>([&](auto i) {
      own.template load<i, 0>(own_k[i]);
      own.template load<i, M::kV - M::kK>(own_v[i]);
    });
  }

  // Adds the queries of a stage to dk and dv, and stores ds^T. kFull: without a mask.
  template <bool kFull>
  __device__ __forceinline__ void add_block(uint32_t stage) {
    constexpr int kTiles = kFull ? M::kTiles : 2, kQueries = 8 * kTiles;
    const int t = lane % 4;
    const LaneRows<D, 2> own(M::kKeep ? own_at : opaque(own_at));
    const LaneRows<D, 4> rows(stage + row_at);
    const LaneRows<D, 2> columns(stage + column_at);
    const uint32_t masks = stage + M::kMasks + warp * MaskBits::kStride;
    const SubTiles own_tiles(kFull ? 0 : load_shared_word_at<0>(masks + lane * 4));
    unrolled<64 / kQueries>([&](auto part) {
      if (!kFull && !own_tiles.visited(part)) return;
      float s[kTiles][4], dp[kTiles][4];
      load_minus_deltas<part>(dp, stage + t * 16);
      scores<T, D, true, 0, M::kQ + part * kQueries * R::kBytes, M::kKeep>(s, own_k, own, rows);
      scores<T, D, false, M::kV - M::kK, M::kDout + part * kQueries * R::kBytes, M::kKeep>(dp, own_v, own, rows);
      if (softcap.exists()) softcap.apply_with_slopes(s, dp);
      subtract_lse<part>(s, stage + t * 8);
      if (!kFull && !own_tiles.full(part)) apply_mask<part>(s, masks + t * 4);
      uint32_t p16[kTiles / 2][4], ds16[kTiles / 2][4];  // A fragments: kv rows x 16 queries
      make_fragments<part>(p16, ds16, s, dp);
      unrolled<kTiles / 2>([&](auto i) {
        constexpr int kOffset = (part * kTiles / 2 + i) * 16 * R::kBytes;
        accumulate<T, D, false, M::kDout + kOffset>(dv, p16[i], columns);
        accumulate<T, D, false, M::kQ + kOffset>(dk, ds16[i], columns);
      });
    });
  }

  template <int kPart, int kTiles>
  __device__ __forceinline__ static void load_minus_deltas(float (&dp)[kTiles][4], uint32_t deltas) {
    unrolled<kTiles>([&](auto n) {
      const float4 minus_delta = load_shared4_at<M::kStageStats + 4 * kStatsDelta + (kPart * kTiles + n) * 64>(deltas);
      dp[n][0] = minus_delta.x, dp[n][1] = minus_delta.y, dp[n][2] = minus_delta.z, dp[n][3] = minus_delta.w;
    });
  }

  template <int kPart, int kTiles>
  __device__ __forceinline__ void subtract_lse(float (&s)[kTiles][4], uint32_t lses) const {
    unrolled<kTiles>([&](auto n) {
      const float2 minus_lse = load_shared2_at<M::kStageStats + 4 * kStatsLse + (kPart * kTiles + n) * 32>(lses);
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n][i] = fmaf(s[n][i], factor, i % 2 ? minus_lse.y : minus_lse.x);
    });
  }

  template <int kPart, int kTiles>
  __device__ __forceinline__ void apply_mask(float (&s)[kTiles][4], uint32_t masks) const {
    unrolled<kTiles>([&](auto n) {
      // Bits 0..15: the warp's kv rows as an even query sees them; 16..31: as the next query does.
      const uint32_t seen = load_shared_word_at<(kPart * kTiles + n) * 16>(masks) >> (lane / 4);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if ((seen & (1u << (i % 2 * 16 + i / 2 * 8))) == 0) s[n][i] = -INFINITY;
    });
  }

  // p and ds as fragments, from the exponents in s and from dp - delta; ds^T also goes to shared memory.
  template <int kPart, int kTiles>
  __device__ __forceinline__ void make_fragments(uint32_t (&p16)[kTiles / 2][4], uint32_t (&ds16)[kTiles / 2][4],
                                                 const float (&s)[kTiles][4], const float (&dp)[kTiles][4]) const {
    unrolled<kTiles>([&](auto n) {
      unrolled<2>([&](auto half) {
        const float p0 = exp2_approx(s[n][2 * half]), p1 = exp2_approx(s[n][2 * half + 1]);
        const uint32_t ds = pack<T>(p0 * dp[n][2 * half], p1 * dp[n][2 * half + 1]);
        p16[n / 2][n % 2 * 2 + half] = pack<T>(p0, p1);
        ds16[n / 2][n % 2 * 2 + half] = ds;
        store_shared_word_at<M::kDs + (kPart * kTiles + n) * 16 + half * 8 * M::kDsBytes>(ds_at, ds);
      });
    });
  }

  // Adds the warp's part of the dq of a stage's queries, ds k, to `sums`, the lane's place for block 0. After a barrier
  // behind add_block.
  template <bool kFull>
  __device__ __forceinline__ void add_dq(uint32_t stage, float* sums, int block) const {
    float dq[kDqTiles][4];
    if constexpr (!kFull) {
#pragma unroll
      for (int j = 0; j < kDqTiles; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) dq[j][i] = 0;
    }
    const uint32_t masks = stage + M::kMasks + lane / 8 * MaskBits::kStride + dq_rows() * 32 + lane % 8 * 4;
    const LaneRows<D, 2> k(opaque(dq_k_at));
    bool any = kFull;
    unrolled<M::kLines>([&](auto from) {
      const SubTiles tiles(kFull ? 0 : load_shared_word_at<from * MaskBits::kBytes>(masks));
      any |= tiles.some != 0;
      unrolled<4>([&](auto i) {
        if (!kFull && !tiles.visited(i)) return;
        constexpr int kI = 4 * from + i;
        uint32_t a[4];
        ldmatrix_x4_trans_at<M::kDs + kI * 16 * M::kDsBytes>(a, dq_ds_at);
        accumulate<T, D, kFull && kI == 0, M::kK + kI * 16 * R::kBytes>(dq, a, k);
      });
    });
    if (any) {
      float* const to = sums + static_cast<uint64_t>(static_cast<uint32_t>(block)) * (64 * D);
      unrolled<kDqTiles>([&](auto j) { unrolled<4>([&](auto i) { red_add_at<(j * 4 + i) * 128>(to, dq[j][i]); }); });
    }
  }
};

template <class T, int D>
__global__ void __launch_bounds__(Tile<D>::kThreads, Tile<D>::kBlocksPerSm)
    omni_backward_dkdv_kernel(const __grid_constant__ OmniBackwardCudaParams p,
                              const __grid_constant__ Softcap softcap) {
  using M = Tile<D>;
  using R = Rows<D>;
  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t shared = shared_address(memory);
  const OmniInputs& in = p.in;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // 32 bits wherever they do: registers are short.
  const int kv_heads = static_cast<int>(in.kv_heads), group = static_cast<int>(in.heads) / kv_heads;
  const int batch = static_cast<int>(blockIdx.x) / kv_heads, kv_head = static_cast<int>(blockIdx.x) % kv_heads;
  const int first_kv = static_cast<int>(blockIdx.y) * M::kRows;
  const int q_blocks = static_cast<int>(ceil_div(in.q_length, kQBlock));
  const int kv_blocks = static_cast<int>(ceil_div(in.kv_length, kKvBlock));

  KvRows<T, D> rows(shared, in.scale, softcap);

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
  const auto places = [&](int h) -> QueryPlaces {
    const int64_t first_block = static_cast<int64_t>(batch * in.heads + h) * q_blocks;
    return {source(in.q, in.q_strides, h, 0), source(p.dout, p.dout_strides, h, 0),
            reinterpret_cast<const char*>(p.stats + first_block * kStats) + threadIdx.x * 16};
  };
  QueryPlaces kept;
  // Starts the copies of one query block, and says which of its pairs the mask allows.
  const auto load = [&](uint32_t stage, const Visit& visit) {
    load_queries<D>(stage, copy_at, M::kOneLoop ? places(opaque(head)) : kept, p, visit.block);
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

  if constexpr (M::kKeep) {
    cp_async_wait<0>();
    __syncthreads();
    rows.keep();
    // The barrier that opens the first query block also stands between these reads of v and the first ds.
  }

  uint32_t stage = shared;
  for (; head < (kv_head + 1) * group; ++head) {
    const int64_t first_block = static_cast<int64_t>(batch * in.heads + head) * q_blocks;
    if constexpr (!M::kOneLoop) kept = places(head);
    float* sums = p.dq_sums + first_block * (64 * D) + (rows.dq_rows() * (D / 8) + rows.dq_tile()) * 128 + lane;
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

      rows.template add_block<kFull>(stage);
      __syncthreads();
      if (p.dq_sums != nullptr) rows.template add_dq<kFull>(stage, sums, visit.block);
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
  store_sums<T, D>(rows.dk, in.scale, scratch, static_cast<T*>(p.dk) + result, first_kv + 16 * warp, in.kv_length);
  store_sums<T, D>(rows.dv, 1.0f, scratch, static_cast<T*>(p.dv) + result, first_kv + 16 * warp, in.kv_length);
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
