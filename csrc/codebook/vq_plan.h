// vq_encode's grid on the GPU, and with it the sizes of its workspaces: known in builds without CUDA too.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/launch.h"

namespace showo {

constexpr int kVqGroup = 32;        // codes that share one record of offsets
constexpr int kVqGroupBytes = 288;  // of the record: 16 float4 (o, o', o, o') for two codes each, the reach, padding
constexpr int kVqReachAt = 256;     // where the reach lies in it

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

}  // namespace showo
