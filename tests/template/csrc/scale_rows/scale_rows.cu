// scale_rows on the GPU: one warp a row, so that every access of a warp is one run. Reads its inputs once and writes
// its results once. A row's sum is added in a fixed order, so that it is the same in every run.
#include <cuda_runtime.h>

#include "common/cuda_check.h"
#include "common/floats.cuh"
#include "common/launch.h"
#include "common/ptx.cuh"
#include "scale_rows/params.h"

namespace showo {
namespace {

constexpr int kWarps = 4;  // of a block

__device__ inline int64_t row_of_warp() { return static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; }

template <class T>
__global__ void __launch_bounds__(32 * kWarps) scale_rows_forward_kernel(ScaleRowsParams p) {
  const int64_t row = row_of_warp();
  if (row >= p.rows) return;
  const float scale = as_float(static_cast<const T*>(p.scale)[row]);
  const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
  T* y = static_cast<T*>(p.y) + row * p.columns;
  for (int64_t c = threadIdx.x % 32; c < p.columns; c += 32) store(y + c, as_float(x[c]) * scale);
}

template <class T>
__global__ void __launch_bounds__(32 * kWarps) scale_rows_backward_kernel(ScaleRowsParams p) {
  const int64_t row = row_of_warp();
  if (row >= p.rows) return;
  const float scale = as_float(static_cast<const T*>(p.scale)[row]);
  const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
  const T* dy = static_cast<const T*>(p.dy) + row * p.dy_stride;
  T* dx = static_cast<T*>(p.dx) + row * p.columns;
  float sum = 0.0f;
  for (int64_t c = threadIdx.x % 32; c < p.columns; c += 32) {
    const float gradient = as_float(dy[c]);
    store(dx + c, gradient * scale);
    sum += gradient * as_float(x[c]);
  }
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
  if (threadIdx.x % 32 == 0) store(static_cast<T*>(p.dscale) + row, sum);
}

// -------------------------------------------------------------------------------------------------------- launchers

using Kernel = void (*)(ScaleRowsParams p);

Status run(const ScaleRowsParams& p, void* stream, const char* name, Kernel f32, Kernel f16, Kernel bf16) {
  SHOWO_CHECK_ARGUMENT(p.dtype == DType::kF32 || p.dtype == DType::kF16 || p.dtype == DType::kBF16,
                       "scale_rows: no kernel for dtype %s", dtype_name(p.dtype));
  if (p.rows <= 0) return ok_status();
  const int64_t blocks = ceil_div(p.rows, kWarps);
  SHOWO_CHECK_ARGUMENT(blocks <= kMaxGridX, "x has %lld rows, expected at most %lld in one launch",
                       static_cast<long long>(p.rows), static_cast<long long>(kMaxGridX * kWarps));
  const Kernel kernel = p.dtype == DType::kF32 ? f32 : p.dtype == DType::kF16 ? f16 : bf16;
  kernel<<<static_cast<unsigned>(blocks), 32 * kWarps, 0, static_cast<cudaStream_t>(stream)>>>(p);
  return check_launch(name);
}

}  // namespace

Status scale_rows_forward_cuda(const ScaleRowsParams& p, void* stream) {
  return run(p, stream, "scale_rows_forward_kernel", scale_rows_forward_kernel<float>,
             scale_rows_forward_kernel<__half>, scale_rows_forward_kernel<__nv_bfloat16>);
}

Status scale_rows_backward_cuda(const ScaleRowsParams& p, void* stream) {
  return run(p, stream, "scale_rows_backward_kernel", scale_rows_backward_kernel<float>,
             scale_rows_backward_kernel<__half>, scale_rows_backward_kernel<__nv_bfloat16>);
}

}  // namespace showo
