// What the CPU kernels are told about the work: which blocks to visit, and which (batch, head, rows) make a task.
#pragma once

#include <cstdint>

#include "omni_attention/mask.h"
#include "omni_attention/params.h"

namespace showo {

// One task: query blocks [first_item, last_item) of one kv head, counted over the heads that read it:
// item = head_in_group * num_q_blocks + q_block.
struct OmniTask {
  int64_t batch, kv_head, first_item, last_item;
  int64_t summand;  // of dk and dv, which the task fills (backward only)
};

// The block table (block_table.cpp), shared by all heads of a sample.
struct OmniPlan {
  int64_t q_block, num_q_blocks, num_kv_blocks;
  const uint8_t* state;  // [B, num_q_blocks, num_kv_blocks] BlockState
  int64_t batch_stride;  // of state: 0 where one mask serves the whole batch

  const uint8_t* row_of_blocks(int64_t batch, int64_t q_block_index) const {
    return state + batch * batch_stride + q_block_index * num_kv_blocks;
  }
};

// The kernels of one instruction set. Scratch sizes are in bytes, scratch is aligned to 64.
struct OmniCpuKernels {
  int64_t q_block;
  int64_t (*forward_scratch)(const OmniForwardParams&);
  int64_t (*backward_scratch)(const OmniBackwardParams&);
  void (*forward)(const OmniForwardParams&, const OmniPlan&, const OmniTask&, void* scratch);
  void (*backward)(const OmniBackwardParams&, const OmniPlan&, const OmniTask&, void* scratch);
};

// Defined once per instruction set in cpu_forward.cpp; the common one (dispatch.cpp) picks.
const OmniCpuKernels& omni_cpu_kernels();

}  // namespace showo
