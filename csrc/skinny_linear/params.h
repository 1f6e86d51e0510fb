// skinny_linear: a linear layer for a few rows of x, which reads the weights once. The parameter struct and the
// launcher. There is no kernel for CUDA: torch's own products are used there.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/status.h"

namespace showo {

// y[r, o] = scale[o] * (the sum over i of x[r, i] * weight[o, i]) + bias[o], formed in float and rounded once.
// Without scale or bias, 1 and 0 stand for them.
struct SkinnyLinearParams {
  const void* x;              // [rows, in_features] in dtype
  const void* weight;         // [out_features, in_features] in dtype, where weight_int8 is null
  const int8_t* weight_int8;  // the same in int8, or null
  const float* scale;         // [out_features], contiguous, or null
  const void* bias;           // [out_features] in dtype, contiguous, or null
  void* y;                    // [rows, out_features], contiguous
  float* workspace;           // [rows, in_features]

  int64_t rows;
  int64_t in_features;
  int64_t out_features;
  int64_t x_stride;       // in elements, between rows of x; within a row elements are contiguous
  int64_t weight_stride;  // the same of the weights
  DType dtype;            // of x, weight, bias and y: f32, f16 or bf16
};

Status skinny_linear_cpu(const SkinnyLinearParams& params, int num_threads);

}  // namespace showo
