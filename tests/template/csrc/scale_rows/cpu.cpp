// scale_rows on the CPU. A task is a run of rows. The loop over a row's products is plain, and the compiler vectorises
// it; it may not reorder a sum, so that one is written with vectors.
#include "common/dispatch.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "scale_rows/params.h"

namespace showo {
namespace SHOWO_ISA {
namespace {

constexpr int64_t kTaskElements = 1 << 15;  // of x: tens of microseconds

template <class T>
void multiply(T* out, const T* in, const void* scale, int64_t row, int64_t columns) {
  const float factor = to_float(static_cast<const T*>(scale)[row]);
  for (int64_t c = 0; c < columns; ++c) store_float(out + c, to_float(in[c]) * factor);
}

template <class T>
float dot(const T* a, const T* b, int64_t columns) {
  VecF total{};
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) total += load(a + c) * load(b + c);
  float result = sum(total);
  for (; c < columns; ++c) result += to_float(a[c]) * to_float(b[c]);
  return result;
}

template <class T>
void forward_row(const ScaleRowsParams& p, int64_t row) {
  const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
  multiply(static_cast<T*>(p.y) + row * p.columns, x, p.scale, row, p.columns);
}

template <class T>
void backward_row(const ScaleRowsParams& p, int64_t row) {
  const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
  const T* dy = static_cast<const T*>(p.dy) + row * p.dy_stride;
  multiply(static_cast<T*>(p.dx) + row * p.columns, dy, p.scale, row, p.columns);
  store_float(static_cast<T*>(p.dscale) + row, dot(dy, x, p.columns));
}

using Kernel = void (*)(const ScaleRowsParams& p, int64_t row);

Status run(const ScaleRowsParams& p, int num_threads, Kernel f32, Kernel f16, Kernel bf16) {
  SHOWO_CHECK_ARGUMENT(p.dtype == DType::kF32 || p.dtype == DType::kF16 || p.dtype == DType::kBF16,
                       "scale_rows: no kernel for dtype %s", dtype_name(p.dtype));
  const Kernel kernel = p.dtype == DType::kF32 ? f32 : p.dtype == DType::kF16 ? f16 : bf16;
  const int64_t rows_per_task = kTaskElements / (p.columns + 1) + 1;
  parallel_for((p.rows + rows_per_task - 1) / rows_per_task, num_threads, [&](int64_t task) {
    const int64_t end = (task + 1) * rows_per_task < p.rows ? (task + 1) * rows_per_task : p.rows;
    for (int64_t row = task * rows_per_task; row < end; ++row) kernel(p, row);
  });
  return ok_status();
}

}  // namespace

Status scale_rows_forward_cpu(const ScaleRowsParams& p, int num_threads) {
  return run(p, num_threads, forward_row<float>, forward_row<Half>, forward_row<BFloat16>);
}

Status scale_rows_backward_cpu(const ScaleRowsParams& p, int num_threads) {
  return run(p, num_threads, backward_row<float>, backward_row<Half>, backward_row<BFloat16>);
}

}  // namespace SHOWO_ISA

SHOWO_CPU_LAUNCHER(scale_rows_forward_cpu, ScaleRowsParams)
SHOWO_CPU_LAUNCHER(scale_rows_backward_cpu, ScaleRowsParams)

}  // namespace showo
