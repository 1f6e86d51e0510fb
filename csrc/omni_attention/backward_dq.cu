// dq of omni_attention in fp16 and bf16, reproducibly: a thread block owns 64 query rows of one head and walks over the
// kv blocks that they see, in order.
//
//   s = q k^T;  p = exp(scale s - lse);  dp = dout v^T;  ds = p (dp - delta);  dq = scale sum over blocks of ds k
//
// With a softcap as in backward_dkdv.cu.
//
// A warp owns 16 rows and keeps their fragments of q and dout in registers where there is room. Its accumulators of ds,
// 32 columns at a time (in blocks that the mask cuts, 16 of them, and none that it forbids), rounded to 16 bits, are
// the A fragments of dq += ds k: nothing but k and v passes through shared memory, in two stages of cp.async. s and dp
// are computed a second time (backward_dkdv.cu has had them): seven products per block in all, the price of the same
// bits every time.
//
// Memory traffic per thread block: q, dout, dq once; k and v of every visited block once.
#include <cuda_runtime.h>

#include "omni_attention/backward_kernels.h"
#include "omni_attention/backward_tile.cuh"

namespace showo {
namespace {

template <int D>
struct Tile {
  static constexpr int kWarps = 4, kThreads = 32 * kWarps, kBlocksPerSm = D == 32 ? 3 : D == 128 ? 1 : 2;
  static constexpr int kRows = 64, kTiles = 4;  // of 8 columns: so many at a time in full blocks
  static constexpr bool kKeep = D <= 64;        // fragments of q and dout stay in registers
  static constexpr int kMatrix = 64 * Rows<D>::kBytes;
  static constexpr int kK = 0, kV = kMatrix, kMasks = 2 * kMatrix, kStage = kMasks + MaskBits::kBytes;
  static constexpr int kQ = 2 * kStage, kDout = kQ + kMatrix, kStatsAt = kDout + kMatrix;
  static constexpr int kShared = kStatsAt + kStats * 4;
};

// The thread's two rows of a block, of which `row` is the first: -lse and -delta. stats: of the block.
__device__ __forceinline__ void load_stats(float (&minus_lse)[2], float (&minus_delta)[2], const float* stats,
                                           int row) {
#pragma unroll
  for (int i = 0; i < 2; ++i, row += 8) {
    minus_lse[i] = stats[kStatsLse + row];
    minus_delta[i] = stats[kStatsDelta + row / 2 * 4 + row % 2];
  }
}

// dp starts at -delta.
template <int kTiles>
__device__ __forceinline__ void start(float (&dp)[kTiles][4], const float (&minus_delta)[2]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) dp[n][i] = minus_delta[i / 2];
}

// Scores become the exponents of p, in units of log2.
template <int kTiles>
__device__ __forceinline__ void subtract_lse(float (&s)[kTiles][4], float factor, const float (&minus_lse)[2]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) s[n][i] = fmaf(s[n][i], factor, minus_lse[i / 2]);
}

// Masks the scores of 16 x 16 pairs. masks: where the bits of the thread's first row lie for the first 16 columns;
// column: the thread's first.
template <int kPart, int kTiles>
__device__ __forceinline__ void apply_mask(float (&s)[kTiles][4], uint32_t masks, int column) {
  unrolled<2>([&](auto half) {
    const uint32_t seen = load_shared_half_at<kPart * MaskBits::kStride + half * 16>(masks) >> column;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if ((seen & (1u << (i / 2 * 8 + i % 2))) == 0) s[i / 2][2 * half + i % 2] = -INFINITY;
  });
}

// ds as A fragments, from the exponents in s and from dp - delta.
template <class T, int kTiles>
__device__ __forceinline__ void make_fragments(uint32_t (&ds16)[kTiles / 2][4], const float (&s)[kTiles][4],
                                               const float (&dp)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; i += 2)
      ds16[n / 2][n % 2 * 2 + i / 2] =
          pack<T>(exp2_approx(s[n][i]) * dp[n][i], exp2_approx(s[n][i + 1]) * dp[n][i + 1]);
}

template <class T, int D>
__global__ void __launch_bounds__(Tile<D>::kThreads, Tile<D>::kBlocksPerSm)
    omni_backward_dq_kernel(const __grid_constant__ OmniBackwardCudaParams p, const __grid_constant__ Softcap softcap) {
  using M = Tile<D>;
  using R = Rows<D>;
  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t shared = shared_address(memory);
  const OmniInputs& in = p.in;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int g = lane / 4, t = lane % 4;
  const int64_t batch = blockIdx.x / in.heads, head = blockIdx.x % in.heads, kv_head = head / (in.heads / in.kv_heads);
  const int q_blocks = static_cast<int>(ceil_div(in.q_length, kQBlock));
  const int kv_blocks = static_cast<int>(ceil_div(in.kv_length, kKvBlock));
  const int q_block = q_blocks - 1 - static_cast<int>(blockIdx.y);  // under causal masks the last rows see most
  const int64_t first_row = static_cast<int64_t>(q_block) * kQBlock;

  const LaneRows<D, 2> own(shared + M::kQ + swizzled<D>(16 * warp + lane % 16, lane / 16));
  const uint32_t copy_at = swizzled<D>(R::copy_row(), R::copy_chunk());
  const auto source = [&](const void* matrix, const OmniStrides& strides, int64_t h, int64_t row) {
    return reinterpret_cast<const char*>(static_cast<const T*>(matrix) + batch * strides.batch + h * strides.head +
                                         (row + R::copy_row()) * strides.row + R::copy_chunk() * 8);
  };
  const int rows_left = static_cast<int>(min(in.q_length - first_row, kQBlock));
  R::template copy<64, M::kThreads, M::kQ>(shared + copy_at, source(in.q, in.q_strides, head, first_row),
                                           in.q_strides.row * 2, rows_left);
  R::template copy<64, M::kThreads, M::kDout>(shared + copy_at, source(p.dout, p.dout_strides, head, first_row),
                                              p.dout_strides.row * 2, rows_left);
  const float* stats = p.stats + ((batch * in.heads + head) * q_blocks + q_block) * kStats;
  if (threadIdx.x < kStats / 4) cp_async16_at<M::kStatsAt>(shared + threadIdx.x * 16, stats + threadIdx.x * 4, 16);
  cp_async_commit();

  const char* k = source(in.k, in.k_strides, kv_head, 0);
  const char* v = source(in.v, in.v_strides, kv_head, 0);
  const uint32_t k_step = static_cast<uint32_t>(in.k_strides.row) * (kKvBlock * 2);
  const uint32_t v_step = static_cast<uint32_t>(in.v_strides.row) * (kKvBlock * 2);
  // Starts the copies of one kv block, and says which of its columns each row sees.
  const auto load = [&](uint32_t stage, const Visit& visit) {
    const uint64_t block = static_cast<uint32_t>(visit.block);
    const int64_t first_column = static_cast<int64_t>(block) * kKvBlock;
    const int left = static_cast<int>(min(in.kv_length - first_column, kKvBlock));
    R::template copy<64, M::kThreads, M::kK>(stage + copy_at, k + block * k_step, in.k_strides.row * 2, left);
    R::template copy<64, M::kThreads, M::kV>(stage + copy_at, v + block * v_step, in.v_strides.row * 2, left);
    cp_async_commit();
    if (!visit.full && threadIdx.x < 64)
      MaskBits::store(memory + (stage - shared) + M::kMasks, threadIdx.x,
                      seen_columns(in, batch, first_row + threadIdx.x, first_column));
  };

  cp_async_wait<0>();
  __syncthreads();
  if (const uint64_t rows = rows_with_columns(reinterpret_cast<const float*>(memory + M::kStatsAt) + kStatsLse);
      ~rows != 0) {
    R::template erase<M::kThreads, M::kQ, M::kMatrix>(shared, rows);
    __syncthreads();
  }
  uint32_t own_q[M::kKeep ? D / 16 : 1][4], own_dout[M::kKeep ? D / 16 : 1][4];
  if constexpr (M::kKeep) {
    unrolled<D / 16>([&](auto i) {
      own.template load<i, 0>(own_q[i]);
      own.template load<i, M::kDout - M::kQ>(own_dout[i]);
    });
  }
  const float* own_stats = reinterpret_cast<const float*>(memory + M::kStatsAt);
  float minus_lse[2], minus_delta[2];
  load_stats(minus_lse, minus_delta, own_stats, 16 * warp + g);

  const float factor = softcap.factor(in.scale * kLog2E);  // of the scores, or of tanh
  float dq[D / 8][4] = {};
  BlockWalk<1> walk(in.block_states + batch * in.block_states_batch_stride + static_cast<int64_t>(q_block) * kv_blocks,
                    1, 0, kv_blocks, 1, kv_blocks);
  Visit visit, following;
  uint32_t stage = shared;
  bool more = walk.next(&visit);
  if (more) load(stage, visit);
  const auto use = [&](auto full_block) {
    constexpr bool kFull = full_block.value;
    constexpr int kTiles = kFull ? M::kTiles : 2, kColumns = 8 * kTiles;
    more = walk.next(&following);
    cp_async_wait<0>();
    __syncthreads();
    if constexpr (!kFull) {
      const uint64_t seen = MaskBits::columns(memory + (stage - shared) + M::kMasks) |
                            ~low_bits(in.kv_length - static_cast<int64_t>(visit.block) * kKvBlock);
      if (~seen != 0) {
        R::template erase<M::kThreads, M::kK, M::kMatrix>(stage, seen);
        __syncthreads();
      }
    }
    const uint32_t other = shared + M::kStage - (stage - shared);
    if (more) load(other, following);
    const LaneRows<D, 4> rows(stage + swizzled<D>(lane % 8, lane / 8));
    const LaneRows<D, 2> columns(stage + swizzled<D>(lane % 16, lane / 16));
    const uint32_t masks = stage + M::kMasks + warp * 32;
    const SubTiles tiles(kFull ? 0 : load_shared_word_at<0>(masks + lane / 8 * MaskBits::kStride + lane % 8 * 4));
    unrolled<64 / kColumns>([&](auto part) {
      if (!kFull && !tiles.visited(part)) return;
      float s[kTiles][4], dp[kTiles][4];
      start(dp, minus_delta);
      scores<T, D, true, 0, M::kK + part * kColumns * R::kBytes, M::kKeep>(s, own_q, own, rows);
      scores<T, D, false, M::kDout - M::kQ, M::kV + part * kColumns * R::kBytes, M::kKeep>(dp, own_dout, own, rows);
      if (softcap.exists()) softcap.apply_with_slopes(s, dp);
      subtract_lse(s, factor, minus_lse);
      if (!kFull && !tiles.full(part)) apply_mask<part>(s, masks + g * 2, 2 * t);
      uint32_t ds16[kTiles / 2][4];
      make_fragments<T>(ds16, s, dp);
      unrolled<kTiles / 2>([&](auto i) {
        accumulate<T, D, false, M::kK + (part * kTiles / 2 + i) * 16 * R::kBytes>(dq, ds16[i], columns);
      });
    });
    visit = following;
    stage = other;
  };
  while (more) {
    while (more && visit.full) use(std::true_type());
    while (more && !visit.full) use(std::false_type());
  }
  __syncthreads();  // before the first stage becomes scratch memory
  store_sums<T, D>(dq, in.scale, shared + warp * 16 * R::kBytes,
                   static_cast<T*>(p.dq) + (batch * in.heads + head) * in.q_length * D, first_row + 16 * warp,
                   in.q_length);
}

}  // namespace

Status omni_backward_dq(const OmniBackwardCudaParams& p, cudaStream_t stream) {
  return dispatch_16bit(p.in, [&](auto type, auto size) {
    constexpr int kD = decltype(size)::value;
    return launch_rows<Tile<kD>>(omni_backward_dq_kernel<typename decltype(type)::Type, kD>, "omni_backward_dq_kernel",
                                 p, p.in.heads, p.in.q_length, stream);
  });
}

}  // namespace showo
