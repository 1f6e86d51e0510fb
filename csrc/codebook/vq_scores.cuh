// vq_encode's tensor-core pass: for every row the codes that can be nearest, nearly always a single one.
//
// Scores. With s_c = x.c - |c|^2 / 2 the nearest code has the largest s. A thread block of four warps owns 64 or 128
// rows and a range of the codes. A warp keeps 16 or 32 rows as A fragments in registers; tiles of codes stream through
// two shared-memory stages by cp.async, one barrier a tile. Every warp multiplies all of a tile: fp16 and bf16 by
// m16n8k16 as they are, fp32 as x = h + l in bf16, x.c by h.h + h.l + l.h. Accumulators start at the codes' offsets
// -|c|^2 / 2, so a score costs nothing but its products. Rows of more than 256 channels come in slices of 128 bytes,
// of which all products of a tile's 64 codes are kept; their A fragments are read again for each tile.
//
// Order of channels. A thread holds 16 consecutive bytes of a row, a quad 64 of them, and calls them the channels that
// an mma wants there; codes are held in the same way, so products meet. A tile lies in shared memory as [8 codes][64
// bytes] in the order of lanes: B fragments of two mma are one 16-byte read without bank conflicts or addresses to
// compute, and copies are 64-byte pieces.
//
// The bound. Let u = 2^-24, X = |x|^2, E = |c|^2 and F the fp32 sum of squared differences that decides (params.h);
// v = (X - F) / 2 is F's score. With D' = D rounded up as below, |score - v| <= A (X + E) + tiny, as a sum of
//   products   The hardware tells neither order nor rounding of the sum within an mma. It is taken to do no worse than
//              to cut 17 terms and their sum to 24 bits of the largest: 18 2^-23 of S, the sum of all magnitudes, for
//              each of D' / 16 mma. S <= E / 2 + sum |x_i c_i| <= X / 2 + E. In fp32, three times as many mma.
//   halves     fp32 only: |x - h - l| <= 2^-18 |x|, so l.l and both remainders: 3 2^-18 |x||c| <= 96 u (X + E).
//   offset     |c|^2 is summed by up to 8 lanes in fp32: less than (D' / 16 + 8) u E.
//   F          (D + 2) u F / 2 <= (D + 2) u (X + E).
// Together less than (2.32 D' + D + 10) u, in fp32 (6.9 D' + D + 106) u; A is 2.5 D' + D + 32 and 7 D' + D + 160 of u,
// which leaves room for the roundings of the thresholds themselves. `tiny` covers products that vanish: D' 2^-122.
//
// Candidates. Offsets are stored as -E (1/2 - A), so that a score is its code's upper bound but for A X. The lower
// bound of the best code is its score - 2 A E - A X; codes whose score does not exceed
//   threshold = max over codes of (score - 2 A E) - 2 A X - 2 tiny
// cannot win. Each row keeps the running threshold (E of a group of 32 codes is its largest, the `reach`), the best
// score and a list of codes above the threshold, emptied when the best of them falls below: in registers, but for the
// list. A group costs one maximum per score and one vote, unless some row has a score above its threshold.
//
// Numbers that do not fit this (NaN, infinities, norms that come near to overflow) never win here: such codes have an
// offset of -inf, such rows a threshold of +inf. Rows without a trustworthy winner are decided exactly in vq.cu.
//
// Memory. A block reads its rows once (once per 64 codes if sliced) and its codes once, in whole sectors.
#pragma once

#include <cuda_runtime.h>

#include "codebook/vq_scores.h"
#include "common/floats.cuh"
#include "common/launch_kernel.cuh"
#include "common/ptx.cuh"

namespace showo {

constexpr int kVqThreads = 128;

// T: of z. kBytes: of a row, or a slice, in shared memory: 32 (16 channels in 16 bits) to 1024. kM: m16 tiles of a
// warp.
template <class T, int kBytes, int kM, bool kSliced>
struct VqTile {
  using Half = std::conditional_t<std::is_same_v<T, float>, __nv_bfloat16, T>;  // what mma multiplies
  static constexpr bool kFloat = std::is_same_v<T, float>;
  static constexpr int kRows = 4 * 16 * kM;
  static constexpr int kWarpRows = 16 * kM;
  static constexpr int kBlocks = kBytes < 64 ? 1 : kBytes / 64;  // 64-byte pieces of a row
  static constexpr int kCodes = kSliced ? 64 : kBytes <= 128 ? 128 : kBytes <= 512 ? 64 : 32;
  static constexpr int kGroups = kCodes / kVqGroup;
  static constexpr int kGroupsAtOnce = kSliced ? kGroups : 1;
  static constexpr int kMatrixBytes = kCodes * kBytes;
  static constexpr int kStageBytes = kMatrixBytes + kGroups * kVqGroupBytes;
  static constexpr int kLists = 2 * kStageBytes;
  static constexpr int kSharedBytes = kLists + kRows * 16;
  static constexpr int kResident = kSliced ? 2 : kBytes <= 128 ? 4 : kBytes <= 256 ? 3 : 2;  // blocks a multiprocessor
  static constexpr int kFragment = kBytes < 64 ? 4 : 8;  // registers of A for one piece and m16 tile
};

// A thread's share of copying tiles of codes.
template <class Tile>
struct CodeCopy {
  static constexpr bool kShort = Tile::kBlocks == 1 && Tile::kFragment == 4;  // rows of 32 bytes, 16 of them a warp
  static constexpr int kPasses = Tile::kMatrixBytes / (kVqThreads * 16);
  static constexpr int kRowsAWarp = kShort ? 16 : 8;
  static constexpr int kPassesARow = Tile::kBlocks > 4 ? Tile::kBlocks / 4 : 1;
  static constexpr int kWarpsARow = Tile::kBlocks > 4 ? 4 : Tile::kBlocks;
  static constexpr int kStep = 4 / kWarpsARow * kRowsAWarp;  // rows from a pass to the next that has other rows
  static constexpr int kChunksARow = kShort ? 2 : 4;

  const char* from;  // of this thread's first row and chunk in the tile to be fetched next
  const char* offsets;
  int left;   // codes from there on
  int chunk;  // of the row

  __device__ __forceinline__ CodeCopy(const VqScoreParams& p, int first, int end) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = warp / kWarpsARow * kRowsAWarp + lane / kChunksARow;
    chunk = warp % kWarpsARow * 4 + lane % kChunksARow;
    from = p.codes + static_cast<int64_t>(first + row) * p.codes_stride + chunk * 16;
    offsets = p.offsets + static_cast<int64_t>(first / kVqGroup) * kVqGroupBytes + threadIdx.x * 16;
    left = end - first - row;
  }

  // `chunks` chunks of a code exist; chunks and codes that do not exist become zeros.
  __device__ __forceinline__ void fetch(uint32_t stage, int64_t stride, int slice, int chunks) const {
    const uint32_t to = stage + threadIdx.x * 16;
    const char* row = from + slice * (Tile::kBlocks * 64);
    const int chunks_left = chunks - chunk - slice * (Tile::kBlocks * 4);
    unrolled<kPasses / kPassesARow>([&](auto step) {
      unrolled<kPassesARow>([&](auto pass) {
        const bool exists = step * kStep < left && pass * 16 < chunks_left;
        cp_async16_at<(step * kPassesARow + pass) * kVqThreads * 16>(to, row + pass * 256, exists ? 16 : 0);
      });
      row += kStep * stride;
    });
    if (threadIdx.x < Tile::kGroups * (kVqGroupBytes / 16)) cp_async16_at<Tile::kMatrixBytes>(to, offsets, 16);
  }

  __device__ __forceinline__ void advance(int64_t stride) {
    from += Tile::kCodes * stride;
    offsets += Tile::kGroups * kVqGroupBytes;
    left -= Tile::kCodes;
  }
};

template <class T, int kBytes, int kM, bool kSliced>
struct VqRows {
  using Tile = VqTile<T, kBytes, kM, kSliced>;
  using Half = typename Tile::Half;
  static constexpr int kN8 = Tile::kGroupsAtOnce * 4;

  uint32_t rows[kM][Tile::kBlocks][Tile::kFragment];  // A fragments
  float threshold[kM][2], best[kM][2], slack[kM][2];
  int count[kM][2];

  // The words of a thread's 16 (or 8) bytes become registers `half`, half + 2, ... of the fragments.
  template <class Fragment>
  __device__ __forceinline__ static void place(Fragment& fragment, int half, uint4 words) {
    if constexpr (Tile::kFloat) {
      const float4& x = reinterpret_cast<const float4&>(words);
      fragment[half] = pack<Half>(x.x, x.y), fragment[2 + half] = pack<Half>(x.z, x.w);
      fragment[4 + half] = pack<Half>(x.x - as_float(Half(x.x)), x.y - as_float(Half(x.y)));
      fragment[6 + half] = pack<Half>(x.z - as_float(Half(x.z)), x.w - as_float(Half(x.w)));
    } else {
      fragment[half] = words.x, fragment[2 + half] = words.y;
      if constexpr (Tile::kFragment == 8) fragment[4 + half] = words.z, fragment[6 + half] = words.w;
    }
  }

  __device__ __forceinline__ static float square(uint4 words) {
    const Chunk<T>& chunk = reinterpret_cast<const Chunk<T>&>(words);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < Chunk<T>::kCount; ++i) sum = fmaf(as_float(chunk.element[i]), as_float(chunk.element[i]), sum);
    return sum;
  }

  // A fragments of a slice, and the sums of squares of this thread's channels added to `squares`.
  __device__ __forceinline__ void load(const VqScoreParams& p, int64_t first_row, int slice, float (&squares)[kM][2]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = first_row + m * 16 + half * 8 + lane / 4;
        const char* z = p.z + row * p.z_stride + slice * kBytes;
#pragma unroll
        for (int j = 0; j < Tile::kBlocks; ++j) {
          uint4 words = make_uint4(0, 0, 0, 0);
          if constexpr (kBytes < 64) {
            if (row < p.num_rows && lane % 4 / 2 < p.chunks) {
              const uint2 pair = reinterpret_cast<const uint2*>(z)[lane % 4];
              words.x = pair.x, words.y = pair.y;
            }
          } else {
            const int chunk = j * 4 + lane % 4;
            const bool exists = row < p.num_rows && slice * (Tile::kBlocks * 4) + chunk < p.chunks;
            if constexpr (kSliced) {
              // Zeros are selected word by word: nvcc would copy words that are loaded into the fragments' own
              // registers before each mma.
              words = *reinterpret_cast<const uint4*>(exists ? z + chunk * 16 : p.z);
              words.x = exists ? words.x : 0, words.y = exists ? words.y : 0;
              words.z = exists ? words.z : 0, words.w = exists ? words.w : 0;
            } else if (exists) {
              words = reinterpret_cast<const uint4*>(z)[chunk];
            }
          }
          place(rows[m][j], half, words);
          squares[m][half] += square(words);
        }
      }
  }

  template <bool kFirst>
  __device__ __forceinline__ static void multiply(float (&s)[4], const uint32_t* a, uint32_t b0, uint32_t b1,
                                                  const float4& offset) {
    const uint32_t fragment[4] = {a[0], a[1], a[2], a[3]};
    if constexpr (kFirst) {
      mma_m16n8k16_from<Half>(s, fragment, b0, b1, offset);
    } else {
      mma_m16n8k16<Half>(s, fragment, b0, b1);
    }
  }

  __device__ __forceinline__ static float4 offset_of(const char* offsets, int n) {
    return *reinterpret_cast<const float4*>(offsets + n / 4 * kVqGroupBytes + n % 4 * 64);
  }

  // Starts the scores from the codes' offsets, as products<true>() does.
  __device__ __forceinline__ static void begin(float (&s)[kM][kN8][4], const char* offsets) {
#pragma unroll
    for (int n = 0; n < kN8; ++n) {
      const float4 offset = offset_of(offsets, n);
#pragma unroll
      for (int m = 0; m < kM; ++m)
        s[m][n][0] = offset.x, s[m][n][1] = offset.y, s[m][n][2] = offset.z, s[m][n][3] = offset.w;
    }
  }

  // Adds the products with 8 kN8 codes to the scores; with kStart the scores start from the codes' offsets. codes,
  // offsets: the lane's addresses for the first of these codes.
  template <bool kStart>
  __device__ __forceinline__ void products(float (&s)[kM][kN8][4], const char* codes, const char* offsets) const {
    float4 offset[kN8];
    if constexpr (kStart) {
#pragma unroll
      for (int n = 0; n < kN8; ++n) offset[n] = offset_of(offsets, n);
    }
    unrolled<Tile::kBlocks>([&](auto j) {
      constexpr bool kFirst = kStart && j == 0;
#pragma unroll
      for (int n = 0; n < kN8; ++n) {
        if constexpr (Tile::kFragment == 4) {
          const uint2 b = *reinterpret_cast<const uint2*>(codes + n * 256);
#pragma unroll
          for (int m = 0; m < kM; ++m) multiply<kFirst>(s[m][n], rows[m][j], b.x, b.y, offset[n]);
        } else {
          const uint4 b = *reinterpret_cast<const uint4*>(codes + (n * Tile::kBlocks + j) * 512);
#pragma unroll
          for (int m = 0; m < kM; ++m) multiply<kFirst>(s[m][n], rows[m][j], b.x, b.y, offset[n]);
#pragma unroll
          for (int m = 0; m < kM; ++m) {
            if constexpr (Tile::kFloat) multiply<false>(s[m][n], rows[m][j] + 4, b.x, b.y, offset[n]);
            multiply<false>(s[m][n], rows[m][j] + (Tile::kFloat ? 0 : 4), b.z, b.w, offset[n]);
          }
        }
      }
    });
  }

  // Rows m * 16 + half * 8 + lane / 4 of a group of codes. top: of this thread's scores.
  template <int kFirstN8>
  __device__ __forceinline__ void record(const float (&s)[kM][kN8][4], int m, int half, float top, float reach,
                                         int code, int* lists) {
    const int t = threadIdx.x % 4;
    top = fmaxf(top, shuffle_xor<1>(top));
    top = fmaxf(top, shuffle_xor<2>(top));
    const float raised = fmaxf(threshold[m][half], top - reach - slack[m][half]);
    if (best[m][half] <= raised) count[m][half] = 0;
    best[m][half] = fmaxf(best[m][half], top);
    threshold[m][half] = raised;
    uint32_t found = 0;  // bit b: the score of code 2 t + b of the group is above the threshold
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) found |= s[m][kFirstN8 + n][2 * half + i] > raised ? 1u << (n * 8 + i) : 0u;
    int end = __popc(found);  // the codes found by this thread and by those before it in the quad
    const int one = __shfl_up_sync(kAllLanes, end, 1, 4);
    end += t >= 1 ? one : 0;
    const int two = __shfl_up_sync(kAllLanes, end, 2, 4);
    end += t >= 2 ? two : 0;
    int place = count[m][half] + end - __popc(found);
    count[m][half] += __shfl_sync(kAllLanes, end, 3, 4);
    __syncwarp();  // a list that was emptied is written again, perhaps by another lane than before
    for (; found != 0 && place < kVqListed; found &= found - 1, ++place)
      lists[(m * 16 + half * 8) * kVqListed + place] = code + 2 * t + __ffs(static_cast<int>(found)) - 1;
  }

  // code: the first of 8 kN8. group: its record of offsets. lists: the list of row lane / 4.
  __device__ __forceinline__ void update(const float (&s)[kM][kN8][4], const char* group, int code, int* lists) {
    unrolled<Tile::kGroupsAtOnce>([&](auto part) {
      float top[kM][2];
      bool hit = false;
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float most[4];
#pragma unroll
          for (int n = 0; n < 4; ++n) most[n] = fmaxf(s[m][part * 4 + n][2 * half], s[m][part * 4 + n][2 * half + 1]);
          top[m][half] = fmaxf(fmaxf(most[0], most[1]), fmaxf(most[2], most[3]));
          hit |= top[m][half] > threshold[m][half];
        }
      if (!__any_sync(kAllLanes, hit)) return;
      const float reach = *reinterpret_cast<const float*>(group + part * kVqGroupBytes + kVqReachAt);
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (__any_sync(kAllLanes, top[m][half] > threshold[m][half]))
            record<part * 4>(s, m, half, top[m][half], reach, code + part * kVqGroup, lists);
    });
  }
};

template <class T, int kBytes, int kM, bool kSliced>
__global__ void __launch_bounds__(kVqThreads, VqTile<T, kBytes, kM, kSliced>::kResident)
    vq_scores_kernel(VqScoreParams p) {
  using Tile = VqTile<T, kBytes, kM, kSliced>;
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * Tile::kRows + warp * Tile::kWarpRows;
  int code = static_cast<int>(blockIdx.y) * p.codes_per_split;
  const int end = min(code + p.codes_per_split, p.num_codes);
  const uint32_t base = shared_address(shared);
  int* lists = reinterpret_cast<int*>(shared + Tile::kLists) + warp * Tile::kWarpRows * kVqListed;

  CodeCopy<Tile> copy(p, code, end);
  copy.fetch(base, p.codes_stride, 0, p.chunks);
  cp_async_commit();

  VqRows<T, kBytes, kM, kSliced> rows;
  float squares[kM][2] = {};
  for (int slice = 0; slice < (kSliced ? p.slices : 1); ++slice) rows.load(p, first_row, slice, squares);
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float square = squares[m][half];
      square += shuffle_xor<1>(square);
      square += shuffle_xor<2>(square);
      const bool ordinary = square <= kVqLargestNorm / 16 && first_row + m * 16 + half * 8 + lane / 4 < p.num_rows;
      rows.threshold[m][half] = ordinary ? -INFINITY : INFINITY;
      rows.best[m][half] = -INFINITY;
      rows.slack[m][half] = fmaf(2 * p.margin, square, p.least);
      rows.count[m][half] = 0;
    }
  if (lane < Tile::kWarpRows) reinterpret_cast<int4*>(lists)[lane] = make_int4(0, 0, 0, 0);
  lists += lane / 4 * kVqListed;  // from here on the list of the thread's own row for m = half = 0

  const char* stage = shared;
  uint32_t fill = base + Tile::kStageBytes;
  const auto turn = [&] {
    const int move = static_cast<int>(fill - base) * 2 - Tile::kStageBytes;  // + or - one stage
    stage += move, fill -= move;
  };
  if constexpr (kSliced) {
    for (; code < end; code += Tile::kCodes) {
      float s[kM][Tile::kCodes / 8][4];
      for (int slice = 0; slice < p.slices; ++slice) {
        rows.load(p, first_row, slice, squares);
        cp_async_wait<0>();
        __syncthreads();
        const bool last = slice + 1 == p.slices;
        if (last) copy.advance(p.codes_stride);
        if (!last || code + Tile::kCodes < end) copy.fetch(fill, p.codes_stride, last ? 0 : slice + 1, p.chunks);
        cp_async_commit();
        const char* offsets = stage + Tile::kMatrixBytes + lane % 4 * 16;
        if (slice == 0) rows.begin(s, offsets);
        rows.template products<false>(s, stage + lane * 16, offsets);
        if (last) rows.update(s, stage + Tile::kMatrixBytes, code, lists);
        turn();
      }
    }
  } else {
    for (; code < end; code += Tile::kCodes) {
      cp_async_wait<0>();
      __syncthreads();
      copy.advance(p.codes_stride);
      if (code + Tile::kCodes < end) copy.fetch(fill, p.codes_stride, 0, p.chunks);
      cp_async_commit();
#pragma unroll 1
      for (int group = 0; group < Tile::kGroups; ++group) {
        const char* offsets = stage + Tile::kMatrixBytes + group * kVqGroupBytes;
        float s[kM][4][4];
        rows.template products<true>(s, stage + group * (kVqGroup * kBytes) + lane * (Tile::kFragment * 2),
                                     offsets + lane % 4 * 16);
        rows.update(s, offsets, code + group * kVqGroup, lists);
      }
      turn();
    }
  }

  __syncwarp();
  const int64_t split = static_cast<int64_t>(blockIdx.y) * p.num_rows;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first_row + m * 16 + half * 8 + lane / 4;
      if (lane % 4 == 0 && row < p.num_rows)
        p.tops[split + row] =
            make_float4(rows.threshold[m][half], rows.best[m][half], __int_as_float(rows.count[m][half]), 0.0f);
    }
  lists -= lane / 4 * kVqListed;
  if (lane < Tile::kWarpRows && first_row + lane < p.num_rows)
    p.candidates[split + first_row + lane] = reinterpret_cast<const int4*>(lists)[lane];
}

// ---- launching

template <class T, int kBytes, int kM, bool kSliced = false>
Status launch_vq_scores(const VqScoreParams& p, const VqPlan& plan, cudaStream_t stream) {
  using Tile = VqTile<T, kBytes, kM, kSliced>;
  static_assert(128 % Tile::kCodes == 0, "a split is a multiple of 128 codes");
  const dim3 grid(static_cast<unsigned>(plan.row_blocks), static_cast<unsigned>(plan.splits));
  return launch_kernel(vq_scores_kernel<T, kBytes, kM, kSliced>, "vq_scores_kernel", grid, kVqThreads,
                       Tile::kSharedBytes, stream, p);
}

// dim: as vq_encode_padded_dim() gives it.
template <class T>
Status launch_vq_scores(const VqScoreParams& p, const VqPlan& plan, int64_t dim, cudaStream_t stream) {
  constexpr int kSize = sizeof(T);
  if (dim > kVqSlicedDim) return launch_vq_scores<T, 128, 2, true>(p, plan, stream);
  switch (dim) {
    case 16:
      return launch_vq_scores<T, 16 * kSize, 2>(p, plan, stream);
    case 32:
      return launch_vq_scores<T, 32 * kSize, 2>(p, plan, stream);
    case 64:
      return launch_vq_scores<T, 64 * kSize, 2>(p, plan, stream);
    case 128:
      return launch_vq_scores<T, 128 * kSize, 2>(p, plan, stream);
    default:
      return launch_vq_scores<T, 256 * kSize, kSize == 4 ? 1 : 2>(p, plan, stream);
  }
}

}  // namespace showo
