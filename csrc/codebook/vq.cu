// Nearest codebook entry, and lookup with its gradient, on the GPU. All of it is deterministic.
//
// vq_encode: a block of 256 threads owns kTile rows of z and walks over the codebook in tiles of kTile codes; rows and
// codes meet in shared memory, kDepth channels at a time, transposed so that a thread reads its 4 rows and its 4 codes
// as one float4 each. Sums of (z - c)^2 are formed directly in fp32, in rising order of channels: no cancellation, and
// the same rounding for every tile. Each thread keeps the best (distance, index) of its 4 rows over its own codes; the
// 16 threads that share rows are half a warp and meet by shuffles at the end. Ties: lowest index.
//
// codebook_lookup: one warp per row, in words as wide as the addresses allow.
// Its gradient: positions come sorted by id, so that one warp sums the rows of one entry in a fixed order.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "codebook/params.h"
#include "common/cuda_check.h"
#include "common/launch.h"

namespace showo {
namespace {

constexpr int kTile = 64;   // rows of z, and codes, per tile
constexpr int kDepth = 16;  // channels in shared memory at a time
constexpr int kPerThread = 4;
constexpr int kThreadsPerSide = kTile / kPerThread;
constexpr int kEncodeThreads = kThreadsPerSide * kThreadsPerSide;
constexpr int kRowStride = kTile + 4;  // keeps float4 alignment; four channels later is another bank group
constexpr int kWarpsPerBlock = 4;

__device__ inline float as_float(float x) { return x; }
__device__ inline float as_float(__half x) { return __half2float(x); }
__device__ inline float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void store(float* out, float x) { *out = x; }
__device__ inline void store(__half* out, float x) { *out = __float2half_rn(x); }
__device__ inline void store(__nv_bfloat16* out, float x) { *out = __float2bfloat16_rn(x); }

// Copies channels [d0, d0 + kDepth) of kTile rows into shared memory, transposed; `outside` stands for missing rows,
// and missing channels are 0 on both sides, so that they add nothing.
template <class T>
__device__ inline void load_tile(float (&shared)[kDepth][kRowStride], const T* source, int64_t stride, int64_t first,
                                 int64_t count, int64_t d0, int64_t dim, float outside) {
  for (int i = threadIdx.x; i < kTile * kDepth; i += kEncodeThreads) {
    const int row = i / kDepth;
    const int d = i % kDepth;
    float value = first + row < count ? 0.0f : outside;
    if (first + row < count && d0 + d < dim) value = as_float(source[(first + row) * stride + d0 + d]);
    shared[d][row] = value;
  }
}

__device__ inline bool is_better(float distance, int index, float other_distance, int other_index) {
  return distance < other_distance || (distance == other_distance && index < other_index);
}

template <class T>
__global__ void __launch_bounds__(kEncodeThreads, 2) vq_encode_kernel(VqEncodeParams p) {
  __shared__ alignas(16) float z_tile[kDepth][kRowStride];
  __shared__ alignas(16) float code_tile[kDepth][kRowStride];
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTile;
  const int row_group = threadIdx.x / kThreadsPerSide;   // my rows: row_group * 4 + 0..3
  const int code_group = threadIdx.x % kThreadsPerSide;  // my codes of each tile: code_group * 4 + 0..3
  const float infinity = __int_as_float(0x7f800000);
  const float nan = __int_as_float(0x7fc00000);

  float best[kPerThread];
  int best_code[kPerThread];
#pragma unroll
  for (int r = 0; r < kPerThread; ++r) {
    best[r] = infinity;
    best_code[r] = 0;
  }

  for (int64_t first_code = 0; first_code < p.num_codes; first_code += kTile) {
    float sum[kPerThread][kPerThread] = {};
    for (int64_t d0 = 0; d0 < p.dim; d0 += kDepth) {
      __syncthreads();  // the previous tiles have been read
      load_tile(z_tile, static_cast<const T*>(p.z), p.z_stride, first_row, p.num_rows, d0, p.dim, 0.0f);
      // A missing code is NaN: its distance never wins.
      load_tile(code_tile, static_cast<const T*>(p.codebook), p.codebook_stride, first_code, p.num_codes, d0, p.dim,
                nan);
      __syncthreads();
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        const float4 z = *reinterpret_cast<const float4*>(&z_tile[d][row_group * kPerThread]);
        const float4 c = *reinterpret_cast<const float4*>(&code_tile[d][code_group * kPerThread]);
        const float z_value[kPerThread] = {z.x, z.y, z.z, z.w};
        const float c_value[kPerThread] = {c.x, c.y, c.z, c.w};
#pragma unroll
        for (int r = 0; r < kPerThread; ++r) {
#pragma unroll
          for (int k = 0; k < kPerThread; ++k) {
            const float difference = z_value[r] - c_value[k];
            sum[r][k] = fmaf(difference, difference, sum[r][k]);
          }
        }
      }
    }
    // Codes rise with k and with the tile, so "less than" alone keeps the lowest index of a tie.
#pragma unroll
    for (int r = 0; r < kPerThread; ++r) {
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) {
        if (sum[r][k] < best[r]) {
          best[r] = sum[r][k];
          best_code[r] = static_cast<int>(first_code) + code_group * kPerThread + k;
        }
      }
    }
  }

#pragma unroll
  for (int r = 0; r < kPerThread; ++r) {
#pragma unroll
    for (int step = kThreadsPerSide / 2; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, best[r], step);
      const int other_code = __shfl_xor_sync(0xffffffffu, best_code[r], step);
      if (is_better(other, other_code, best[r], best_code[r])) {
        best[r] = other;
        best_code[r] = other_code;
      }
    }
    const int64_t row = first_row + row_group * kPerThread + r;
    if (code_group == 0 && row < p.num_rows) p.ids[row] = best_code[r];
  }
}

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

template <class T>
Status launch_encode(const VqEncodeParams& p, cudaStream_t stream) {
  const int64_t blocks = ceil_div(p.num_rows, kTile);
  SHOWO_CHECK_ARGUMENT(blocks <= kMaxGridX, "vq_encode: %lld rows are too many for one launch",
                       static_cast<long long>(p.num_rows));
  vq_encode_kernel<T><<<static_cast<unsigned>(blocks), kEncodeThreads, 0, stream>>>(p);
  return check_launch("vq_encode_kernel");
}

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

Status vq_encode_cuda(const VqEncodeParams& p, void* stream) {
  SHOWO_CHECK_ARGUMENT(p.num_codes >= 1 && p.num_codes < 0x7fffffff,
                       "codebook has %lld entries, expected 1 to 2^31 - 2", static_cast<long long>(p.num_codes));
  SHOWO_CHECK_ARGUMENT(p.dim >= 1, "codebook has entries of %lld numbers, expected at least 1",
                       static_cast<long long>(p.dim));
  if (p.num_rows <= 0) return ok_status();
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case DType::kF32:
      return launch_encode<float>(p, s);
    case DType::kF16:
      return launch_encode<__half>(p, s);
    case DType::kBF16:
      return launch_encode<__nv_bfloat16>(p, s);
    default:
      return invalid_argument("vq_encode: no kernel for dtype %s", dtype_name(p.dtype));
  }
}

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
