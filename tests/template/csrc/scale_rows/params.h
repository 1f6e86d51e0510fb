// scale_rows: every row of a matrix times a number of its own. The parameter struct and the launchers.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/status.h"

namespace showo {

// y[r, c] = x[r, c] * scale[r]. Its gradients are dx[r, c] = dy[r, c] * scale[r] and dscale[r] = the sum over c of
// dy[r, c] * x[r, c]. Products and sums are formed in float, and a result is rounded once.
struct ScaleRowsParams {
  const void* x;      // [rows, columns]
  const void* scale;  // [rows], contiguous
  void* y;            // [rows, columns], contiguous, written by forward
  const void* dy;     // [rows, columns], read by backward
  void* dx;           // [rows, columns], contiguous, written by backward
  void* dscale;       // [rows], written by backward

  int64_t rows;
  int64_t columns;
  int64_t x_stride;  // in elements, between rows; within a row elements are contiguous
  int64_t dy_stride;
  DType dtype;  // of all tensors: f32, f16 or bf16
};

Status scale_rows_forward_cpu(const ScaleRowsParams& params, int num_threads);
Status scale_rows_backward_cpu(const ScaleRowsParams& params, int num_threads);

// These enqueue on `stream` (a cudaStream_t) and return.
Status scale_rows_forward_cuda(const ScaleRowsParams& params, void* stream);
Status scale_rows_backward_cuda(const ScaleRowsParams& params, void* stream);

}  // namespace showo
