// The codebook's entries by id, and the gradient of this lookup, on the GPU. Deterministic.
//
// codebook_lookup: a block of 128 threads per 32 rows, whose ids go through shared memory; the result is written as one
// run, in words as wide as the addresses allow. Reads ids and the rows that they name and writes the result once.
// Its gradient: positions come sorted by id, so that one warp sums the rows of one entry in a fixed order. The warp
// reads 32 positions at a time, a lane each, and the gradient in 16 bytes a lane where it can; every entry is written
// once.
#include <cuda_runtime.h>

#include "codebook/params.h"
#include "common/cuda_check.h"
#include "common/floats.cuh"
#include "common/launch.h"

namespace showo {
namespace {

constexpr int kThreads = 128;
constexpr int kWarpsPerBlock = kThreads / 32;
constexpr int kRowsPerBlock = 32;

// Word is a plain integer type; all its bits set is NaN in every floating type that fits into it.
template <class Word>
__device__ inline Word all_ones();
template <>
__device__ inline uint4 all_ones<uint4>() {
  return make_uint4(~0u, ~0u, ~0u, ~0u);
}
template <>
__device__ inline uint32_t all_ones<uint32_t>() {
  return ~0u;
}
template <>
__device__ inline uint16_t all_ones<uint16_t>() {
  return 0xffff;
}

// Lengths and strides in words.
template <class Word>
__global__ void __launch_bounds__(kThreads)
    codebook_lookup_forward_kernel(CodebookLookupParams p, int words, int64_t codebook_stride) {
  __shared__ int64_t ids[kRowsPerBlock];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock;
  const int rows = static_cast<int>(p.num_rows - first < kRowsPerBlock ? p.num_rows - first : kRowsPerBlock);
  if (static_cast<int>(threadIdx.x) < rows) ids[threadIdx.x] = p.ids[first + threadIdx.x];
  __syncthreads();
  const int row_step = kThreads / words, word_step = kThreads % words;
  int row = static_cast<int>(threadIdx.x) / words, word = static_cast<int>(threadIdx.x) % words;
  Word* out = static_cast<Word*>(p.out) + first * words + threadIdx.x;
  for (; row < rows; out += kThreads) {
    const int64_t id = ids[row];
    const bool valid = id >= 0 && id < p.num_codes;
    *out = valid ? static_cast<const Word*>(p.codebook)[id * codebook_stride + word] : all_ones<Word>();
    row += row_step;
    word += word_step;
    if (word >= words) ++row, word -= words;
  }
}

// kCount neighbouring elements, in one access.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Elements {
  T element[kCount];
};

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) codebook_lookup_backward_kernel(CodebookLookupParams p) {
  using Pack = Elements<T, kCount>;
  const int lane = threadIdx.x % 32;
  const int64_t code = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / 32;
  if (code >= p.num_codes) return;
  const int64_t bound = lane < 2 ? p.starts[code + lane] : 0;
  const int64_t begin = __shfl_sync(kAllLanes, bound, 0), end = __shfl_sync(kAllLanes, bound, 1);
  for (int64_t d0 = 0; d0 < p.dim; d0 += 32 * kCount) {
    const int64_t d = d0 + lane * kCount;
    const T* grad = static_cast<const T*>(p.grad) + d;
    float sum[kCount] = {};
    for (int64_t batch = begin; batch < end; batch += 32) {
      const int count = static_cast<int>(end - batch < 32 ? end - batch : 32);
      const int64_t mine = lane < count ? p.order[batch + lane] : 0;
      for (int i = 0; i < count; ++i) {
        const int64_t row = __shfl_sync(kAllLanes, mine, i);
        if (d >= p.dim) continue;
        const Pack pack = *reinterpret_cast<const Pack*>(grad + row * p.grad_stride);
#pragma unroll
        for (int e = 0; e < kCount; ++e) sum[e] += as_float(pack.element[e]);
      }
    }
    if (d >= p.dim) continue;
    Pack result;
#pragma unroll
    for (int e = 0; e < kCount; ++e) store(&result.element[e], sum[e]);
    *reinterpret_cast<Pack*>(static_cast<T*>(p.grad_codebook) + code * p.dim + d) = result;
  }
}

// -------------------------------------------------------------------------------------------------------- launchers

template <class Word>
bool rows_divide_into(const CodebookLookupParams& p) {
  const int64_t per_word = static_cast<int64_t>(sizeof(Word)) / element_size(p.dtype);
  return per_word >= 1 && p.dim % per_word == 0 && p.codebook_stride % per_word == 0 &&
         is_aligned(p.codebook, sizeof(Word)) && is_aligned(p.out, sizeof(Word));
}

template <class Word>
Status launch_lookup(const CodebookLookupParams& p, unsigned blocks, cudaStream_t stream) {
  const int64_t per_word = static_cast<int64_t>(sizeof(Word)) / element_size(p.dtype);
  codebook_lookup_forward_kernel<Word>
      <<<blocks, kThreads, 0, stream>>>(p, static_cast<int>(p.dim / per_word), p.codebook_stride / per_word);
  return check_launch("codebook_lookup_forward_kernel");
}

template <class T>
Status launch_lookup_backward(const CodebookLookupParams& p, cudaStream_t stream) {
  const int64_t blocks = ceil_div(p.num_codes, kWarpsPerBlock);
  SHOWO_CHECK_ARGUMENT(blocks <= kMaxGridX, "codebook_lookup: %lld entries are too many for one launch",
                       static_cast<long long>(p.num_codes));
  constexpr int kCount = 16 / sizeof(T);
  if (p.dim % kCount == 0 && p.grad_stride % kCount == 0 && is_aligned(p.grad, 16) && is_aligned(p.grad_codebook, 16)) {
    codebook_lookup_backward_kernel<T, kCount><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p);
  } else {
    codebook_lookup_backward_kernel<T, 1><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p);
  }
  return check_launch("codebook_lookup_backward_kernel");
}

}  // namespace

Status codebook_lookup_forward_cuda(const CodebookLookupParams& p, void* stream) {
  if (p.num_rows <= 0 || p.dim <= 0) return ok_status();
  const int64_t blocks = ceil_div(p.num_rows, kRowsPerBlock);
  SHOWO_CHECK_ARGUMENT(blocks <= kMaxGridX && p.dim < 0x7fffff00,
                       "codebook_lookup: %lld rows of %lld numbers are too many for one launch",
                       static_cast<long long>(p.num_rows), static_cast<long long>(p.dim));
  SHOWO_CHECK_ARGUMENT(p.dtype == DType::kF32 || p.dtype == DType::kF16 || p.dtype == DType::kBF16,
                       "codebook_lookup: no kernel for dtype %s", dtype_name(p.dtype));
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  const unsigned grid = static_cast<unsigned>(blocks);
  if (rows_divide_into<uint4>(p)) return launch_lookup<uint4>(p, grid, s);
  if (rows_divide_into<uint32_t>(p)) return launch_lookup<uint32_t>(p, grid, s);
  return launch_lookup<uint16_t>(p, grid, s);
}

Status codebook_lookup_backward_cuda(const CodebookLookupParams& p, void* stream) {
  if (p.num_codes <= 0 || p.dim <= 0) return ok_status();
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case DType::kF32:
      return launch_lookup_backward<float>(p, s);
    case DType::kF16:
      return launch_lookup_backward<__half>(p, s);
    case DType::kBF16:
      return launch_lookup_backward<__nv_bfloat16>(p, s);
    default:
      return invalid_argument("codebook_lookup: no kernel for dtype %s", dtype_name(p.dtype));
  }
}

}  // namespace showo
