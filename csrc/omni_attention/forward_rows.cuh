// How a thread block of the forward and decode kernels copies rows of q, k and v to shared memory.
#pragma once

#include <cuda_runtime.h>

#include "common/ptx.cuh"
#include "omni_attention/forward_mask.cuh"
#include "omni_attention/params.h"
#include "omni_attention/swizzle.cuh"

namespace showo {

constexpr int kForwardThreads = 128;

// kChunks neighbouring threads copy one row at a time: each thread copies every kChunks-th chunk of the row, from chunk
// `thread % kChunks` on. In one pass all threads together copy kRowsPerPass rows; the thread's row in the first pass is
// `thread / kChunks`.
template <int D>
struct RowCopy {
  static constexpr int kChunks = kSwizzledChunks<D>;
  static constexpr int kRowsPerPass = kForwardThreads / kChunks;

  // The thread's first chunk in the first pass over the rows of a head.
  __device__ __forceinline__ static const char* source(const void* base, const OmniStrides& strides, int64_t batch,
                                                       int64_t head) {
    return static_cast<const char*>(base) +
           2 * (batch * strides.batch + head * strides.head + threadIdx.x / kChunks * strides.row) +
           threadIdx.x % kChunks * 16;
  }

  // Where the first chunk that the thread copies goes, in bytes from the first row in shared memory.
  __device__ __forceinline__ static uint32_t place() {
    return swizzled<D>(threadIdx.x / kChunks, threadIdx.x % kChunks);
  }

  // Copies kRows rows, from row `first` on, of each of kHeads matrices; the matrices lie one behind the other in shared
  // memory. Rows from `end` on become zeros. to: the thread's own place in the first.
  template <int kRows, int kHeads>
  __device__ __forceinline__ static void copy(uint32_t to, const char* const (&sources)[kHeads],
                                              const int (&row_strides)[kHeads], int first, int end) {
    const int left = end - first - static_cast<int>(threadIdx.x) / kChunks;
    int keep[kRows / kRowsPerPass];
#pragma unroll
    for (int pass = 0; pass < kRows / kRowsPerPass; ++pass) keep[pass] = pass * kRowsPerPass < left;
    copy_passes(to, sources, row_strides, first, keep);
  }

  // Whether some row sees the column: from the thread's first row in the first pass over keys or values.
  __device__ __forceinline__ static const uint8_t* seen(const OmniInputs& in, int entry) {
    return reinterpret_cast<const uint8_t*>(in.seen_of(entry)) + threadIdx.x / kChunks;
  }

  // Copies the keys and values of a stage, as copy does. Columns that no row of the batch entry sees are not read.
  // Zeros take their place: their probabilities are zero, but zero times NaN is NaN. get_seen: returns the above; a
  // full stage does not ask for it.
  template <int kColumns, class GetSeen>
  __device__ __forceinline__ static void copy_seen(uint32_t to, const char* const (&sources)[2],
                                                   const int (&row_strides)[2], Stage stage, GetSeen&& get_seen) {
    int keep[kColumns / kRowsPerPass];
#pragma unroll
    for (int& x : keep) x = 1;
    if (!stage.full()) {
      const uint8_t* seen = get_seen() + stage.column();
      unrolled<kColumns / kRowsPerPass>([&](auto pass) { keep[pass] = load_byte_at<pass * kRowsPerPass>(seen); });
    }
    copy_passes(to, sources, row_strides, stage.column(), keep);
  }

  // `keep` of copy_passes: 0 for those of 32 rows, from first_row on, whose bit in `wanted` is not set.
  template <int kPasses>
  __device__ __forceinline__ static void leave_out(int (&keep)[kPasses], int first_row, uint32_t wanted) {
    const uint32_t own = wanted >> threadIdx.x / kChunks;
#pragma unroll
    for (int pass = 0; pass < 32 / kRowsPerPass; ++pass)
      if ((own & 1u << pass * kRowsPerPass) == 0) keep[first_row / kRowsPerPass + pass] = 0;
  }

  // As copy. keep: 0 for a pass in which the thread's row is not read; zeros take its place.
  template <int kPasses, int kHeads>
  __device__ __forceinline__ static void copy_passes(uint32_t to, const char* const (&sources)[kHeads],
                                                     const int (&row_strides)[kHeads], int first,
                                                     const int (&keep)[kPasses]) {
    unrolled<kHeads>([&](auto i) {
      const int row_stride = row_strides[i] * 2;  // 32 bits: one IMAD.WIDE an address
      const char* from = sources[i] + static_cast<int64_t>(first) * row_stride;
      unrolled<kPasses>([&](auto pass) {
        unrolled<D / 8 / kChunks>([&](auto j) {
          cp_async16_at<(i * kPasses + pass) * kRowsPerPass * (2 * D) + j * kChunks * 16>(
              to, from + static_cast<int64_t>(row_stride) * (pass * kRowsPerPass) + j * kChunks * 16,
              keep[pass] != 0 ? 16 : 0);
        });
      });
    });
  }
};

}  // namespace showo
