// vq_encode's pieces on the GPU: what the preparation, the scores and the decision tell each other.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "codebook/params.h"
#include "codebook/vq_plan.h"
#include "common/launch.h"

namespace showo {

constexpr int kVqListed = 4;  // candidates that are remembered of a row and a split

// Squared norms above this are left to the exact pass: products and sums of what is below cannot overflow.
constexpr float kVqLargestNorm = 0x1p120f;

// A of the bound in vq_scores.cuh.
constexpr float vq_encode_margin(int64_t dim, int64_t padded_dim, DType dtype) {
  const double d = static_cast<double>(dim), padded = static_cast<double>(padded_dim);
  return static_cast<float>((dtype == DType::kF32 ? 7 * padded + d + 160 : 2.5 * padded + d + 32) * 0x1p-24);
}

// Whether A covers the errors that vq_scores.cuh derives, and 2% for the roundings of the thresholds. No test of ids
// can tell, since errors hardly ever come near to their bounds.
constexpr bool vq_encode_margin_suffices(int64_t dim, int64_t padded_dim, DType dtype) {
  const bool wide = dtype == DType::kF32;
  const double steps = static_cast<double>(padded_dim) / 16;
  const double products = 36 * steps * (wide ? 3 : 1), halves = wide ? 96 : 0;
  const double offset = steps + 8, distance = static_cast<double>(dim) + 2;
  return vq_encode_margin(dim, padded_dim, dtype) >= 1.02 * (products + halves + offset + distance) * 0x1p-24;
}
static_assert(vq_encode_margin_suffices(1, 16, DType::kF16) && vq_encode_margin_suffices(256, 256, DType::kF16) &&
              vq_encode_margin_suffices(1 << 18, 1 << 18, DType::kF16));
static_assert(vq_encode_margin_suffices(1, 16, DType::kF32) && vq_encode_margin_suffices(256, 256, DType::kF32) &&
              vq_encode_margin_suffices(1 << 18, 1 << 18, DType::kF32));

// 16, 32, 64, 128, 256, and above that whole slices.
constexpr int64_t vq_encode_padded_dim(int64_t dim, DType dtype) {
  const int64_t slice = dtype == DType::kF32 ? 32 : 64;
  if (dim > kVqSlicedDim) return ceil_div(dim, slice) * slice;
  int64_t padded = 16;
  while (padded < dim) padded *= 2;
  return padded;
}

struct VqScoreParams {
  const char* z;
  const char* codes;    // the codebook, or for fp32 its halves (vq.cu)
  const char* offsets;  // [groups][kVqGroupBytes]
  float4* tops;         // [splits, num_rows]: threshold, best score, number of candidates (bits of an int32), 0
  int4* candidates;     // [splits, num_rows]: the first of them

  int64_t num_rows;
  int64_t z_stride;  // in bytes
  int64_t codes_stride;
  int num_codes;
  int codes_per_split;
  int chunks;  // 16-byte chunks of a row
  int slices;
  float margin;  // A
  float least;   // the part of a row's slack that does not shrink with the numbers
};

// One file per dtype, so that they compile side by side.
Status vq_scores_f16(const VqScoreParams& params, const VqPlan& plan, int64_t dim, cudaStream_t stream);
Status vq_scores_bf16(const VqScoreParams& params, const VqPlan& plan, int64_t dim, cudaStream_t stream);
Status vq_scores_f32(const VqScoreParams& params, const VqPlan& plan, int64_t dim, cudaStream_t stream);

}  // namespace showo
