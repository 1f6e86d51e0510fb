// omni_attention backward: the checks, and the two small kernels around the products of backward_*.cu.
//
// omni_backward_stats_kernel: -(sum_d dout out - dlse), and -lse (fp16, bf16: in units of log2) for 64 rows per thread
// block. Eight lanes share a row, 16 bytes each at a time. Reads out, dout, lse and dlse once, writes 3 numbers per
// row. Rows without columns get -lse = -inf, those beyond the last one the lowest finite number, and both delta = 0:
// their probabilities are 0.
//
// omni_backward_convert_kernel: the fp32 sums of dq, in the fragment order of backward_dkdv.cu, times scale, to rows in
// q's dtype. A warp has two even or two odd rows: its lanes read 32 neighbouring bytes in pairs, and write whole rows.
// Reads the sums once, writes dq once.
#include <cuda_runtime.h>

#include <cfloat>

#include "common/cuda_check.h"
#include "common/launch.h"
#include "omni_attention/backward_kernels.h"
#include "omni_attention/backward_tile.cuh"
#include "omni_attention/checks.h"

namespace showo {
namespace {

constexpr int kThreads = 128;

__device__ inline void load8(const float* from, float (&x)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    const float4 part = *reinterpret_cast<const float4*>(from + i);
    x[i] = part.x, x[i + 1] = part.y, x[i + 2] = part.z, x[i + 3] = part.w;
  }
}
template <class T>
__device__ inline void load8(const T* from, float (&x)[8]) {
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  const T* part = reinterpret_cast<const T*>(&raw);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = static_cast<float>(part[i]);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    omni_backward_stats_kernel(const __grid_constant__ OmniBackwardCudaParams p) {
  constexpr float kUnits = std::is_same<T, float>::value ? 1.0f : kLog2E;
  __shared__ float sums[kQBlock];
  const OmniInputs& in = p.in;
  const int64_t q_blocks = ceil_div(in.q_length, kQBlock);
  const int64_t head_index = blockIdx.x / q_blocks, block = blockIdx.x % q_blocks;  // batch * heads + head
  const int64_t batch = head_index / in.heads, head = head_index % in.heads;
  const T* out = static_cast<const T*>(p.out) + batch * p.out_strides.batch + head * p.out_strides.head;
  const T* dout = static_cast<const T*>(p.dout) + batch * p.dout_strides.batch + head * p.dout_strides.head;
  for (int local = threadIdx.x / 8; local < kQBlock; local += kThreads / 8) {
    const int64_t row = block * kQBlock + local;
    float sum = 0;
    if (row < in.q_length) {
      for (int64_t d = threadIdx.x % 8 * 8; d < in.head_dim; d += 64) {
        float x[8], y[8];
        load8(out + row * p.out_strides.row + d, x);
        load8(dout + row * p.dout_strides.row + d, y);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fmaf(x[i], y[i], sum);
      }
    }
#pragma unroll
    for (int i = 1; i < 8; i *= 2) sum += __shfl_xor_sync(kAllLanes, sum, i);
    if (threadIdx.x % 8 == 0) sums[local] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= kQBlock) return;
  const int local = threadIdx.x;
  const int64_t row = block * kQBlock + local, at = head_index * in.q_length + row;
  float minus_lse = -FLT_MAX, delta = 0.0f;
  if (row < in.q_length) {
    const float lse = p.lse[at];
    const bool empty = lse == -INFINITY;
    minus_lse = empty ? -INFINITY : -lse * kUnits;
    if (!empty) delta = p.dlse != nullptr ? sums[local] - p.dlse[at] : sums[local];
  }
  float* const stats = p.stats + static_cast<int64_t>(blockIdx.x) * kStats;
  stats[kStatsLse + local] = minus_lse;
  const float other = __shfl_xor_sync(kAllLanes, delta, 1);  // each row of a pair stores (d0, d1)
  *reinterpret_cast<float2*>(stats + kStatsDelta + 2 * local) =
      local % 2 == 0 ? make_float2(-delta, -other) : make_float2(-other, -delta);
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads)
    omni_backward_convert_kernel(const float* sums, T* dq, int64_t q_length, float scale) {
  const int64_t q_blocks = ceil_div(q_length, kQBlock);
  const int64_t head_index = blockIdx.x / q_blocks, block = blockIdx.x % q_blocks;
  const float* tile = sums + static_cast<int64_t>(blockIdx.x) * (64 * D);
  for (int i = threadIdx.x; i < 64 * D / 8; i += kThreads) {
    const int rest = i / 2, chunk = rest % (D / 8), row = rest / (D / 8) * 2 + i % 2;
    // Row 16 w + 8 h + g of the block: registers 2 h, 2 h + 1 of lanes 4 g .. 4 g + 3.
    const float* from = tile + ((row / 16 * (D / 8) + chunk) * 4 + row / 8 % 2 * 2) * 32 + row % 8 * 4;
    const float4 even = *reinterpret_cast<const float4*>(from), odd = *reinterpret_cast<const float4*>(from + 32);
    uint4 result;
    result.x = pack<T>(even.x * scale, odd.x * scale);
    result.y = pack<T>(even.y * scale, odd.y * scale);
    result.z = pack<T>(even.z * scale, odd.z * scale);
    result.w = pack<T>(even.w * scale, odd.w * scale);
    if (block * kQBlock + row < q_length)
      store_global16(dq + (head_index * q_length + block * kQBlock + row) * D + chunk * 8, result);
  }
}

Status check(const OmniBackwardCudaParams& p) {
  const OmniInputs& in = p.in;
  SHOWO_RETURN_IF_ERROR(check_head_dim(in.head_dim));
  SHOWO_RETURN_IF_ERROR(check_inputs(in));
  SHOWO_RETURN_IF_ERROR(check_rows("out", p.out, p.out_strides, in.dtype));
  SHOWO_RETURN_IF_ERROR(check_rows("dout", p.dout, p.dout_strides, in.dtype));
  SHOWO_CHECK_ARGUMENT(in.block_states != nullptr && in.seen != nullptr && p.stats != nullptr,
                       "omni_attention: no block table or workspace");
  const int64_t q_tiles = in.batch * in.heads * ceil_div(in.q_length, kQBlock);
  SHOWO_CHECK_ARGUMENT(q_tiles <= kMaxGridX && ceil_div(in.kv_length, kKvBlock) <= kMaxGridY &&
                           ceil_div(in.q_length, kQBlock) <= kMaxGridY,
                       "omni_attention: batch %lld with %lld rows and %lld columns is too large for one launch",
                       static_cast<long long>(in.batch), static_cast<long long>(in.q_length),
                       static_cast<long long>(in.kv_length));
  return ok_status();
}

template <class T>
Status stats(const OmniBackwardCudaParams& p, cudaStream_t stream) {
  const int64_t tiles = p.in.batch * p.in.heads * ceil_div(p.in.q_length, kQBlock);
  omni_backward_stats_kernel<T><<<static_cast<unsigned>(tiles), kThreads, 0, stream>>>(p);
  return check_launch("omni_backward_stats_kernel");
}

Status convert(const OmniBackwardCudaParams& p, cudaStream_t stream) {
  const int64_t tiles = p.in.batch * p.in.heads * ceil_div(p.in.q_length, kQBlock);
  return dispatch_16bit(p.in, [&](auto type, auto size) {
    using T = typename decltype(type)::Type;
    omni_backward_convert_kernel<T, decltype(size)::value><<<static_cast<unsigned>(tiles), kThreads, 0, stream>>>(
        p.dq_sums, static_cast<T*>(p.dq), p.in.q_length, p.in.scale);
    return check_launch("omni_backward_convert_kernel");
  });
}

}  // namespace

Status omni_attention_backward_cuda(const OmniBackwardCudaParams& p, void* stream_pointer) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  const OmniInputs& in = p.in;
  if (in.batch <= 0 || in.heads <= 0 || in.q_length <= 0 || in.kv_length <= 0) return ok_status();
  SHOWO_RETURN_IF_ERROR(check(p));
  switch (in.dtype) {
    case DType::kF32:
      SHOWO_RETURN_IF_ERROR(stats<float>(p, stream));
      return omni_backward_fp32(p, stream);
    case DType::kF16:
      SHOWO_RETURN_IF_ERROR(stats<__half>(p, stream));
      break;
    case DType::kBF16:
      SHOWO_RETURN_IF_ERROR(stats<__nv_bfloat16>(p, stream));
      break;
    default:
      return unsupported("omni_attention: dtype %s is not one of float32, float16, bfloat16", dtype_name(in.dtype));
  }
  SHOWO_RETURN_IF_ERROR(omni_backward_dkdv(p, stream));
  return p.dq_sums != nullptr ? convert(p, stream) : omni_backward_dq(p, stream);
}

}  // namespace showo
