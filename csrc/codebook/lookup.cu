// The entries of ids, and the gradient of that, on the GPU. Deterministic.
//
// codebook_lookup: one warp per row, in words as wide as the addresses allow. Reads ids and the rows that they name and
// writes the result once.
// Its gradient: positions come sorted by id, so that one warp sums the rows of one entry in a fixed order; a row of the
// gradient is read once, every entry written once.
#include <cuda_runtime.h>

#include "codebook/floats.cuh"
#include "codebook/params.h"
#include "common/cuda_check.h"
#include "common/launch.h"

namespace showo {
namespace {

constexpr int kWarpsPerBlock = 4;

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
__global__ void __launch_bounds__(kWarpsPerBlock * 32)
    codebook_lookup_forward_kernel(CodebookLookupParams p, int64_t words, int64_t codebook_stride) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / 32;
  if (row >= p.num_rows) return;
  const int64_t id = p.ids[row];
  const bool valid = id >= 0 && id < p.num_codes;
  const Word* from = static_cast<const Word*>(p.codebook) + (valid ? id * codebook_stride : 0);
  Word* to = static_cast<Word*>(p.out) + row * words;
  for (int64_t i = threadIdx.x % 32; i < words; i += 32) to[i] = valid ? from[i] : all_ones<Word>();
}

template <class T>
__global__ void __launch_bounds__(kWarpsPerBlock * 32) codebook_lookup_backward_kernel(CodebookLookupParams p) {
  const int64_t code = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / 32;
  if (code >= p.num_codes) return;
  const int64_t begin = p.starts[code];
  const int64_t end = p.starts[code + 1];
  const T* grad = static_cast<const T*>(p.grad);
  T* out = static_cast<T*>(p.grad_codebook) + code * p.dim;
  for (int64_t d = threadIdx.x % 32; d < p.dim; d += 32) {
    float sum = 0.0f;
    for (int64_t i = begin; i < end; ++i) sum += as_float(grad[p.order[i] * p.grad_stride + d]);
    store(out + d, sum);
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
      <<<blocks, kWarpsPerBlock * 32, 0, stream>>>(p, p.dim / per_word, p.codebook_stride / per_word);
  return check_launch("codebook_lookup_forward_kernel");
}

template <class T>
Status launch_lookup_backward(const CodebookLookupParams& p, cudaStream_t stream) {
  const int64_t blocks = ceil_div(p.num_codes, kWarpsPerBlock);
  SHOWO_CHECK_ARGUMENT(blocks <= kMaxGridX, "codebook_lookup: %lld entries are too many for one launch",
                       static_cast<long long>(p.num_codes));
  codebook_lookup_backward_kernel<T><<<static_cast<unsigned>(blocks), kWarpsPerBlock * 32, 0, stream>>>(p);
  return check_launch("codebook_lookup_backward_kernel");
}

}  // namespace

Status codebook_lookup_forward_cuda(const CodebookLookupParams& p, void* stream) {
  if (p.num_rows <= 0 || p.dim <= 0) return ok_status();
  const int64_t blocks = ceil_div(p.num_rows, kWarpsPerBlock);
  SHOWO_CHECK_ARGUMENT(blocks <= kMaxGridX, "codebook_lookup: %lld rows are too many for one launch",
                       static_cast<long long>(p.num_rows));
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
