// vq_encode's pieces on the GPU: what the preparation, the scores and the decision tell each other.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "codebook/params.h"
#include "common/launch.h"

namespace showo {

constexpr int kVqGroup = 32;        // codes that share one record of offsets
constexpr int kVqGroupBytes = 288;  // of the record: 16 float4 (o, o', o, o') for two codes each, the reach, padding
constexpr int kVqReachAt = 256;     // where the reach lies in it
constexpr int kVqListed = 4;        // candidates that are remembered of a row and a split

// Squared norms above this are left to the exact pass: products and sums of what is below cannot overflow.
constexpr float kVqLargestNorm = 0x1p120f;

// The grid of the scores.
struct VqPlan {
  int64_t rows_per_block;
  int64_t row_blocks;
  int64_t splits;  // thread blocks that share the codes of a row
  int64_t codes_per_split;
  int64_t groups;  // records of offsets
};

constexpr int64_t kVqSlicedDim = 256;  // longer rows are worked on in slices

// Two thread blocks for each of an A100's 108 multiprocessors, unless a split would get fewer than 512 codes.
constexpr VqPlan vq_encode_plan(int64_t num_rows, int64_t num_codes, int64_t dim, DType dtype) {
  VqPlan plan{};
  plan.rows_per_block = dtype == DType::kF32 && dim > 128 && dim <= kVqSlicedDim ? 64 : 128;
  plan.row_blocks = ceil_div(num_rows, plan.rows_per_block);
  const int64_t wanted = plan.row_blocks > 0 ? ceil_div(216, plan.row_blocks) : 1;
  const int64_t most = ceil_div(num_codes, 512);
  const int64_t tiles = ceil_div(num_codes, 128);
  plan.codes_per_split = ceil_div(tiles, wanted < most ? wanted : most) * 128;
  plan.splits = ceil_div(num_codes, plan.codes_per_split);
  plan.groups = tiles * (128 / kVqGroup);
  return plan;
}

// A of the bound in vq_scores.cuh.
constexpr float vq_encode_margin(int64_t dim, int64_t padded_dim, DType dtype) {
  const double d = static_cast<double>(dim), padded = static_cast<double>(padded_dim);
  return static_cast<float>((dtype == DType::kF32 ? 7 * padded + d + 160 : 2.5 * padded + d + 32) * 0x1p-24);
}

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
