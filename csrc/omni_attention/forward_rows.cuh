// How a thread block of the forward and decode kernels copies rows of q, k and v to shared memory.
#pragma once

#include <cuda_runtime.h>

#include "common/ptx.cuh"
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

  // Copies kRows rows, from row `first` on, of each of kHeads matrices; the matrices lie one behind the other from
  // `shared` on. Rows from `end` on become zeros.
  template <int kRows, int kHeads>
  __device__ __forceinline__ static void copy(uint32_t shared, const char* const (&sources)[kHeads],
                                              const int (&row_strides)[kHeads], int first, int end) {
    const int left = end - first - static_cast<int>(threadIdx.x) / kChunks;
    int bytes[kRows / kRowsPerPass];
#pragma unroll
    for (int pass = 0; pass < kRows / kRowsPerPass; ++pass) bytes[pass] = pass * kRowsPerPass < left ? 16 : 0;
    copy_passes(shared, sources, row_strides, first, bytes);
  }

  // `bytes` of copy_passes: 0 for those of 32 rows, from first_row on, whose bit in `wanted` is not set.
  template <int kPasses>
  __device__ __forceinline__ static void leave_out(int (&bytes)[kPasses], int first_row, uint32_t wanted) {
    const uint32_t own = wanted >> threadIdx.x / kChunks;
#pragma unroll
    for (int pass = 0; pass < 32 / kRowsPerPass; ++pass)
      if ((own & 1u << pass * kRowsPerPass) == 0) bytes[first_row / kRowsPerPass + pass] = 0;
  }

  // As copy. bytes: how many of a chunk's 16 are read in each pass; the others become zeros.
  template <int kPasses, int kHeads>
  __device__ __forceinline__ static void copy_passes(uint32_t shared, const char* const (&sources)[kHeads],
                                                     const int (&row_strides)[kHeads], int first,
                                                     const int (&bytes)[kPasses]) {
    const uint32_t to = shared + swizzled<D>(threadIdx.x / kChunks, threadIdx.x % kChunks);
    unrolled<kHeads>([&](auto i) {
      const int row_stride = row_strides[i] * 2;  // 32 bits: one IMAD.WIDE an address
      const char* from = sources[i] + static_cast<int64_t>(first) * row_stride;
      unrolled<kPasses>([&](auto pass) {
        unrolled<D / 8 / kChunks>([&](auto j) {
          cp_async16_at<(i * kPasses + pass) * kRowsPerPass * (2 * D) + j * kChunks * 16>(
              to, from + static_cast<int64_t>(row_stride) * (pass * kRowsPerPass) + j * kChunks * 16, bytes[pass]);
        });
      });
    });
  }
};

}  // namespace showo
