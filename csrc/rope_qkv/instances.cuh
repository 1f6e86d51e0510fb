// From parameters to the kernel for their dtype, head size and alignment. Host side.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "common/launch.h"
#include "rope_qkv/params.h"

namespace showo {
namespace {

// Whether rows, heads and the two halves of a rotation fall into whole vectors of `v` elements.
bool fits_vectors(const RopeQkvParams& p, int v) {
  const uintptr_t bytes = v * element_size(p.dtype);
  bool fits = p.rotary_dim / 2 % v == 0 && is_aligned(p.dqkv, bytes) && is_aligned(p.bias, 16) &&
              is_aligned(p.dbias, 16) && is_aligned(p.cos, 16) && is_aligned(p.sin, 16);
  for (const RopeRows& in : p.in) {
    fits = fits && is_aligned(in.data, bytes) && in.batch_stride % v == 0 && in.row_stride % v == 0;
  }
  for (const RopeHeads& out : p.out) {
    fits = fits && is_aligned(out.data, bytes) && out.batch_stride % v == 0 && out.head_stride % v == 0 &&
           out.row_stride % v == 0;
  }
  return fits;
}

// How a call is cut into thread blocks, `rows` rows of some heads each.
struct Cut {
  dim3 grid;
  int rows;
};

// Calls Launch<T, D, V>::run(params, cut, stream).
template <template <class, int, int> class Launch, class T, int D>
Status dispatch_vectors(const RopeQkvParams& p, const Cut& cut, cudaStream_t stream) {
  // 96 is three times a power of two: a lane holds three vectors, so they are smaller.
  constexpr int V = D == 96 ? 4 : 16 / sizeof(T);
  if (fits_vectors(p, V)) return Launch<T, D, V>::run(p, cut, stream);
  return Launch<T, D, 1>::run(p, cut, stream);
}

template <template <class, int, int> class Launch, class T>
Status dispatch_dim(const RopeQkvParams& p, const Cut& cut, cudaStream_t stream) {
  switch (p.head_dim) {
    case 32:
      return dispatch_vectors<Launch, T, 32>(p, cut, stream);
    case 64:
      return dispatch_vectors<Launch, T, 64>(p, cut, stream);
    case 96:
      return dispatch_vectors<Launch, T, 96>(p, cut, stream);
    case 128:
      return dispatch_vectors<Launch, T, 128>(p, cut, stream);
    default:
      return invalid_argument("rope_qkv: no kernel for head_dim %lld", static_cast<long long>(p.head_dim));
  }
}

template <template <class, int, int> class Launch>
Status dispatch(const RopeQkvParams& p, void* stream) {
  const int64_t num_rows = p.batch * p.length;
  const int64_t total_heads = p.heads + 2 * p.kv_heads;
  if (num_rows <= 0 || total_heads <= 0) return ok_status();
  SHOWO_CHECK_ARGUMENT(p.length < int64_t{1} << 31 && rope_qkv_splits(total_heads) <= kMaxGridY &&
                           rope_qkv_chunk_rows(num_rows, total_heads) < int64_t{1} << 31,
                       "rope_qkv: %lld samples of %lld rows of %lld heads are too many for one launch",
                       static_cast<long long>(p.batch), static_cast<long long>(p.length),
                       static_cast<long long>(total_heads));
  SHOWO_CHECK_ARGUMENT(p.rotary_dim >= 0 && p.rotary_dim <= p.head_dim && p.rotary_dim % 2 == 0,
                       "rope_qkv: rotary_dim %lld is not an even number up to head_dim %lld",
                       static_cast<long long>(p.rotary_dim), static_cast<long long>(p.head_dim));
  const Cut cut{dim3(static_cast<unsigned>(rope_qkv_chunks(num_rows, total_heads)),
                     static_cast<unsigned>(rope_qkv_splits(total_heads))),
                static_cast<int>(rope_qkv_chunk_rows(num_rows, total_heads))};
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case DType::kF32:
      return dispatch_dim<Launch, float>(p, cut, s);
    case DType::kF16:
      return dispatch_dim<Launch, __half>(p, cut, s);
    case DType::kBF16:
      return dispatch_dim<Launch, __nv_bfloat16>(p, cut, s);
    default:
      return invalid_argument("rope_qkv: no kernel for dtype %s", dtype_name(p.dtype));
  }
}

}  // namespace
}  // namespace showo
