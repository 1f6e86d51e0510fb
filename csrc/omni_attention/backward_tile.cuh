// What the tensor-core kernels of omni_attention's backward share: rows in shared memory, the walk over the visited
// blocks of a mask, its bits, and the products. Offsets are template arguments wherever they are constants: they then
// sit in the address field of the instruction.
#pragma once

#include "common/ptx.cuh"
#include "omni_attention/mask.h"
#include "omni_attention/params.h"
#include "omni_attention/swizzle.cuh"

namespace showo {

constexpr float kLog2E = 1.4426950408889634f;

// Per 64 query rows the kernels read one run of numbers that the first kernel has prepared: -lse log2(e) (fp32: -lse),
// then -delta with every pair of rows twice, (d0, d1, d0, d1): an mma accumulator starts with one 16-byte load of it.
constexpr int kStatsLse = 0, kStatsDelta = 64, kStats = kOmniBackwardStats;

// A copy of x whose origin the compiler does not see: what is computed from it is computed here, not kept for long.
template <class X>
__device__ __forceinline__ X opaque(X x) {
  asm volatile("" : "+r"(x));
  return x;
}

template <int kOffset>
__device__ __forceinline__ void store_shared_zeros_at(uint32_t address) {
  asm volatile("st.shared.v4.u32 [%0+%2], {%1, %1, %1, %1};" ::"r"(address), "r"(0), "n"(kOffset) : "memory");
}

// Rows of D 16-bit numbers in shared memory, laid out by swizzled<D>().
template <int D>
struct Rows {
  static constexpr int kBytes = 2 * D, kChunks = D / 8, kGroup = kSwizzledChunks<D>;

  // Copies of kCount rows by kThreads threads: a thread's first row and chunk.
  __device__ static int copy_row() { return threadIdx.x / kGroup; }
  __device__ static int copy_chunk() { return threadIdx.x % kGroup; }

  // Starts the copy of kCount rows, of which `count` exist; the others become zeros. `to`, kTo bytes further on, and
  // `from` are the thread's own places: swizzled<D>(copy_row(), copy_chunk()), and that row and chunk of the matrix.
  template <int kCount, int kThreads, int kTo>
  __device__ __forceinline__ static void copy(uint32_t to, const char* from, int64_t row_bytes, int count) {
    constexpr int kStep = kThreads / kGroup;
    static_assert(kCount % kStep == 0, "all threads copy the same number of chunks");
    const int left = count - copy_row();
    unrolled<kCount / kStep>([&](auto i) {
      unrolled<kChunks / kGroup>([&](auto c) {
        cp_async16_at<kTo + i * kStep * kBytes + c * kGroup * 16, c * kGroup * 16>(to, from, i * kStep < left ? 16 : 0);
      });
      from += kStep * row_bytes;
    });
  }

  // Zeros for those of 64 rows whose bit in `keep` is not set, in two matrices, the second kApart bytes behind the
  // first. Nothing is kept in registers for it.
  template <int kThreads, int kFirst, int kApart>
  __device__ __forceinline__ static void erase(uint32_t shared, uint64_t keep) {
    constexpr int kStep = kThreads / kGroup;
    const int thread = opaque(static_cast<int>(threadIdx.x));
    const uint64_t gone = ~keep >> (thread / kGroup);
    const uint32_t to = shared + swizzled<D>(thread / kGroup, thread % kGroup);
    unrolled<64 / kStep>([&](auto i) {
      if ((gone >> (i * kStep) & 1) == 0) return;
      unrolled<kChunks / kGroup>([&](auto c) {
        constexpr int kAt = kFirst + i * kStep * kBytes + c * kGroup * 16;
        store_shared_zeros_at<kAt>(to);
        store_shared_zeros_at<kAt + kApart>(to);
      });
    });
  }
};

// One stop of a BlockWalk: the number of the block along the lines, and whether the block is full on every line.
struct Visit {
  int block;
  bool full;
};

// Walks over the 64 x 64 blocks that one thread block visits: along kLines neighbouring lines of the block table, which
// are columns of the table (dk, dv) or a row of it (dq). A block is visited unless it is empty on every line. Every
// warp walks by itself and reads the states of 32 blocks at a time, one block a lane.
template <int kLines>
class BlockWalk {
 public:
  // A line has `count` states, `step` apart; `lines` lines exist, line_step apart. Blocks from number `whole` on have
  // query rows that do not exist. The table calls such a block full if the rows that exist see all of it, but the walk
  // calls it partial: kernels then skip the sub-tiles of the rows that do not exist.
  __device__ BlockWalk(const uint8_t* states, uint32_t step, uint32_t line_step, int count, int lines, int whole)
      : states_(states), step_(step), line_step_(line_step), count_(count), lines_(lines), whole_(whole) {}

  __device__ bool next(Visit* visit) {
    while (any_ == 0) {
      base_ += 32;
      if (base_ >= count_) return false;
      fetch();
    }
    const int bit = __ffs(any_) - 1;
    any_ &= any_ - 1;
    visit->block = base_ + bit;
    visit->full = full_ >> bit & 1;
    return true;
  }

 private:
  __device__ void fetch() {
    const int block = base_ + static_cast<int>(threadIdx.x % 32);
    const uint8_t* state_at = states_ + static_cast<uint64_t>(static_cast<uint32_t>(block)) * step_;
    full_ = kAllLanes;
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      const int state = block < count_ && i < lines_ ? state_at[i * static_cast<uint64_t>(line_step_)] : kEmpty;
      any_ |= __ballot_sync(kAllLanes, state != kEmpty);
      full_ &= __ballot_sync(kAllLanes, state == kFull && block < whole_);
    }
  }

  const uint8_t* states_;
  uint32_t step_, line_step_;
  int count_, lines_, whole_, base_ = -32;
  uint32_t any_ = 0, full_;
};

// The columns of a block, from first_column on, that a row sees; rows and columns that do not exist see nothing.
__device__ inline uint64_t seen_columns(const OmniInputs& in, int64_t batch, int64_t row, int64_t first_column) {
  if (row >= in.q_length || first_column >= in.kv_length) return 0;
  const int32_t* intervals = in.intervals + batch * in.intervals_batch_stride + row * in.intervals_row_stride;
  return row_bits(intervals, in.num_intervals, first_column) & low_bits(in.kv_length - first_column);
}

// ---- what takes no part: columns that no row sees, rows without columns. Zeros stand for them, whatever they hold:
// their probabilities are zero, but zero times NaN is NaN.

// The columns of a block that some row of the batch entry sees; those that do not exist count, being zeros already. By
// a whole warp.
__device__ inline uint64_t columns_of_all_rows(const OmniInputs& in, int64_t batch, int kv_block) {
  const int64_t first_column = static_cast<int64_t>(kv_block) * kKvBlock;
  if (first_column >= in.kv_length) return ~uint64_t{0};
  const bool* seen = in.seen_of(in.block_states_batch_stride == 0 ? 0 : static_cast<int>(batch)) + first_column;
  const uint64_t high = __ballot_sync(kAllLanes, seen[threadIdx.x % 32 + 32]);
  return high << 32 | __ballot_sync(kAllLanes, seen[threadIdx.x % 32]) | ~low_bits(in.kv_length - first_column);
}

// Which of 64 rows have columns, or do not exist, from what the first kernel made of their lse. By a whole warp.
__device__ __forceinline__ uint64_t rows_with_columns(const float* minus_lse) {
  const float* own = minus_lse + threadIdx.x % 32;
  const bool first = own[0] != -INFINITY, second = own[32] != -INFINITY;
  if (__all_sync(kAllLanes, first && second)) return ~uint64_t{0};
  const uint64_t high = __ballot_sync(kAllLanes, second);
  return high << 32 | __ballot_sync(kAllLanes, first);
}

// Which pairs of a block the mask allows, in shared memory: for every 16 columns, 16 bits per query row. The stride
// lets a warp read 16 rows of 64 columns without bank conflicts.
struct MaskBits {
  static constexpr int kStride = 64 * 2 + 32, kBytes = 4 * kStride;

  __device__ static void store(unsigned char* to, int row, uint64_t bits) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      *reinterpret_cast<uint16_t*>(to + i * kStride + 2 * row) = static_cast<uint16_t>(bits >> (16 * i));
  }

  // The columns that some of the rows sees. By a whole warp; a lane reads the bits of two rows at once.
  __device__ static uint64_t columns(const unsigned char* from) {
    uint64_t columns = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t* rows = reinterpret_cast<const uint32_t*>(from + i * kStride);
      const uint32_t pair = __reduce_or_sync(kAllLanes, rows[threadIdx.x % 32]);
      columns |= static_cast<uint64_t>((pair | pair >> 16) & 0xffff) << (16 * i);
    }
    return columns;
  }
};

// Four 16 x 16 sub-tiles at once: eight neighbouring lanes each give the bits of one.
struct SubTiles {
  uint32_t some, all;

  __device__ explicit SubTiles(uint32_t bits)
      : some(__ballot_sync(kAllLanes, bits != 0)), all(__ballot_sync(kAllLanes, bits == ~uint32_t{0})) {}
  __device__ bool visited(int i) const { return (some & (0xffu << (8 * i))) != 0; }
  __device__ bool full(int i) const { return (~all & (0xffu << (8 * i))) == 0; }
};

template <int kOffset>
__device__ __forceinline__ float4 load_shared4_at(uint32_t address) {
  float4 x;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4+%5];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(address), "n"(kOffset));
  return x;
}
template <int kOffset>
__device__ __forceinline__ float2 load_shared2_at(uint32_t address) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2+%3];" : "=f"(x.x), "=f"(x.y) : "r"(address), "n"(kOffset));
  return x;
}
template <int kOffset>
__device__ __forceinline__ uint32_t load_shared_word_at(uint32_t address) {
  uint32_t x;
  asm volatile("ld.shared.u32 %0, [%1+%2];" : "=r"(x) : "r"(address), "n"(kOffset));
  return x;
}
template <int kOffset>
__device__ __forceinline__ uint32_t load_shared_half_at(uint32_t address) {
  uint32_t x;
  asm volatile("ld.shared.u16 %0, [%1+%2];" : "=r"(x) : "r"(address), "n"(kOffset));
  return x;
}
template <int kOffset>
__device__ __forceinline__ void store_shared_word_at(uint32_t address, uint32_t x) {
  asm volatile("st.shared.u32 [%0+%2], %1;" ::"r"(address), "r"(x), "n"(kOffset) : "memory");
}

// A lane's addresses for ldmatrix within a matrix of Rows<D>. Chunks are permuted by XOR, so each group of chunks that
// differ in bits of that permutation has an address of its own; everything else is a constant to add.
template <int D, int kChunksPerStep>
struct LaneRows {
  static constexpr int kCount = Rows<D>::kGroup / kChunksPerStep;
  uint32_t base[kCount];

  __device__ explicit LaneRows(uint32_t first) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) base[i] = first ^ (i * kChunksPerStep * 16);
  }
  // Step i of kChunksPerStep chunks, kOffset bytes (whole groups of eight rows) further on.
  template <int i, int kOffset>
  __device__ __forceinline__ void load(uint32_t (&r)[4]) const {
    ldmatrix_x4_at<i / kCount * Rows<D>::kGroup * 16 + kOffset>(r, base[i % kCount]);
  }
  template <int i, int kOffset>
  __device__ __forceinline__ void load_transposed(uint32_t (&r)[4]) const {
    ldmatrix_x4_trans_at<i / kCount * Rows<D>::kGroup * 16 + kOffset>(r, base[i % kCount]);
  }
};

// s[n] (+)= a b^T for 16 rows of a, whose fragments are in registers (kept, or loaded again from own), and 8 kTiles
// rows of b. kFresh: s starts from zero.
// Lane i's address in b is that of (row i % 8, chunk i / 8), in own that of (row i % 16, chunk i / 16).
template <class T, int D, bool kFresh, int kOwnOffset, int kOffset, bool kKept, int kTiles>
__device__ __forceinline__ void scores(float (&s)[kTiles][4], const uint32_t (&kept)[kKept ? D / 16 : 1][4],
                                       const LaneRows<D, 2>& own, const LaneRows<D, 4>& b) {
  unrolled<D / 32>([&](auto k) {
    uint32_t a[2][4];
    unrolled<2>([&](auto i) {
      if constexpr (kKept) {
#pragma unroll
        for (int j = 0; j < 4; ++j) a[i][j] = kept[2 * k + i][j];
      } else {
        own.template load<2 * k + i, kOwnOffset>(a[i]);
      }
    });
    unrolled<kTiles>([&](auto n) {
      uint32_t r[4];
      b.template load<k, kOffset + n * 8 * Rows<D>::kBytes>(r);
      if constexpr (kFresh && k == 0) {
        mma_m16n8k16_first<T>(s[n], a[0], r[0], r[1]);
      } else {
        mma_m16n8k16<T>(s[n], a[0], r[0], r[1]);
      }
      mma_m16n8k16<T>(s[n], a[1], r[2], r[3]);
    });
  });
}

// sum[j] (+)= a b for 16 rows of b, and kTiles times 8 of its columns. Lane i's address in b is that of
// (row i % 16, chunk i / 16) at the first of these columns.
template <class T, int D, bool kFresh, int kOffset, int kTiles>
__device__ __forceinline__ void accumulate(float (&sum)[kTiles][4], const uint32_t (&a)[4], const LaneRows<D, 2>& b) {
  unrolled<kTiles / 2>([&](auto j) {
    uint32_t r[4];
    b.template load_transposed<j, kOffset>(r);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (kFresh) {
        mma_m16n8k16_first<T>(sum[2 * j + i], a, r[2 * i], r[2 * i + 1]);
      } else {
        mma_m16n8k16<T>(sum[2 * j + i], a, r[2 * i], r[2 * i + 1]);
      }
    }
  });
}

// A warp's 16 x D sums, times `factor`, to rows first .. of a contiguous matrix with `length` rows. They pass through
// the warp's own 16 rows at `scratch` so that memory sees whole rows.
template <class T, int D>
__device__ inline void store_sums(const float (&sum)[D / 8][4], float factor, uint32_t scratch, T* to, int64_t first,
                                  int64_t length) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < D / 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      store_shared_word_at<0>(scratch + swizzled<D>(lane / 4 + 8 * half, j) + lane % 4 * 4,
                              pack<T>(sum[j][2 * half] * factor, sum[j][2 * half + 1] * factor));
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < D / 16; ++i) {
    const int chunk = i * 32 + lane, row = chunk / Rows<D>::kChunks, column = chunk % Rows<D>::kChunks;
    if (first + row < length) {
      const float4 x = load_shared4_at<0>(scratch + swizzled<D>(row, column));
      store_global16(to + (first + row) * D + column * 8, reinterpret_cast<const uint4&>(x));
    }
  }
  __syncwarp();
}

}  // namespace showo
