// The CPU launchers: checks, tasks, threads.
#include <algorithm>
#include <cstdlib>
#include <new>
#include <vector>

#include "common/dispatch.h"
#include "common/parallel.h"
#include "omni_attention/cpu_plan.h"
#include "omni_attention/head_dim.h"
#include "omni_attention/mask.h"

namespace showo {

SHOWO_DISPATCH_ISA(const OmniCpuKernels&, omni_cpu_kernels, (), ())

namespace {

// Memory of a thread, kept between calls: packed keys and values of one head, and a few blocks.
class Scratch {
 public:
  ~Scratch() { std::free(memory_); }

  void* get(int64_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = (bytes + 63) / 64 * 64;
      memory_ = std::aligned_alloc(64, size_);
      if (memory_ == nullptr) {
        size_ = 0;
        throw std::bad_alloc();
      }
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  int64_t size_ = 0;
};

Scratch& thread_scratch() {
  static thread_local Scratch scratch;
  return scratch;
}

Status check(const OmniInputs& in) {
  SHOWO_RETURN_IF_ERROR(dispatch_wide_head_dim(in.head_dim, [](auto) { return ok_status(); }));
  if (in.dtype != DType::kF32 && in.dtype != DType::kF16 && in.dtype != DType::kBF16)
    return unsupported("omni_attention: dtype %s is not one of float32, float16, bfloat16", dtype_name(in.dtype));
  SHOWO_CHECK_ARGUMENT(in.batch >= 0 && in.q_length >= 0 && in.kv_length >= 0 && in.num_intervals >= 1,
                       "omni_attention: negative size");
  SHOWO_CHECK_ARGUMENT(in.kv_heads >= 1 && in.heads % in.kv_heads == 0,
                       "omni_attention: %lld query heads are no multiple of %lld kv heads",
                       static_cast<long long>(in.heads), static_cast<long long>(in.kv_heads));
  return ok_status();
}

// Cuts each kv head's items into at most `per_head` tasks of about equal work, and puts the heaviest tasks first. With
// `keep_empty` a kv head has exactly `per_head` tasks, some of which may have no item: the backward needs these, since
// a task also writes the zeros of its summand.
std::vector<OmniTask> make_tasks(const OmniInputs& in, const OmniPlan& plan, int64_t per_head, bool keep_empty) {
  struct Weighted {
    OmniTask task;
    int64_t work;
  };
  const int64_t group = in.heads / in.kv_heads, items = group * plan.num_q_blocks;
  std::vector<Weighted> weighted;
  for (int64_t b = 0; b < in.batch; ++b) {
    std::vector<int64_t> work(items);
    int64_t total = 0;
    for (int64_t item = 0; item < items; ++item) {
      const uint8_t* state = plan.row_of_blocks(b, item % plan.num_q_blocks);
      work[item] = 1;
      for (int64_t kv = 0; kv < plan.num_kv_blocks; ++kv) work[item] += state[kv] != kEmpty;
      total += work[item];
    }
    int64_t item = 0, done = 0;
    for (int64_t i = 0; i < per_head; ++i) {
      const int64_t first = item, before = done, goal = total * (i + 1) / per_head;
      while (item < items && (i == per_head - 1 || done < goal)) done += work[item++];
      if (item == first && !keep_empty) continue;
      for (int64_t h = 0; h < in.kv_heads; ++h) weighted.push_back({OmniTask{b, h, first, item, i}, done - before});
    }
  }
  std::stable_sort(weighted.begin(), weighted.end(),
                   [](const Weighted& x, const Weighted& y) { return x.work > y.work; });
  std::vector<OmniTask> tasks;
  tasks.reserve(weighted.size());
  for (const Weighted& w : weighted) tasks.push_back(w.task);
  return tasks;
}

template <class Params>
Status run(const Params& params, int64_t tasks_per_head, bool keep_empty, int num_threads,
           void (*kernel)(const Params&, const OmniPlan&, const OmniTask&, void*), int64_t scratch_bytes,
           int64_t q_block) {
  const OmniInputs& in = params.in;
  OmniPlan plan{};
  plan.q_block = q_block;
  plan.num_q_blocks = (in.q_length + q_block - 1) / q_block;
  plan.num_kv_blocks = (in.kv_length + kKvBlock - 1) / kKvBlock;
  plan.state = in.block_states;
  plan.batch_stride = in.block_states_batch_stride;
  SHOWO_CHECK_ARGUMENT(plan.state != nullptr || in.batch * plan.num_q_blocks * plan.num_kv_blocks == 0,
                       "omni_attention: the mask's block table is missing");
  const std::vector<OmniTask> tasks = make_tasks(in, plan, tasks_per_head, keep_empty);
  parallel_for(static_cast<int64_t>(tasks.size()), num_threads,
               [&](int64_t i) { kernel(params, plan, tasks[i], thread_scratch().get(scratch_bytes)); });
  return ok_status();
}

}  // namespace

Status omni_attention_forward_cpu(const OmniForwardParams& params, int num_threads) {
  SHOWO_RETURN_IF_ERROR(check(params.in));
  const OmniCpuKernels& kernels = omni_cpu_kernels();
  // Whole heads where there are enough of them to keep the threads busy, since a task shares one copy of k and v.
  const int64_t heads = std::max<int64_t>(1, params.in.batch * params.in.kv_heads);
  const int64_t per_head = (4 * int64_t{std::max(1, num_threads)} + heads - 1) / heads;
  return run(params, per_head, false, num_threads, kernels.forward, kernels.forward_scratch(params), kernels.q_block);
}

int64_t omni_attention_backward_summands(int64_t batch, int64_t heads, int64_t kv_heads, int64_t q_length) {
  constexpr int64_t kTasksWanted = 32, kRowsOfBlock = 48;
  if (batch <= 0 || heads <= 0 || kv_heads <= 0) return 1;
  const int64_t items = heads / kv_heads * ((q_length + kRowsOfBlock - 1) / kRowsOfBlock);
  const int64_t wanted = (kTasksWanted + batch * kv_heads - 1) / (batch * kv_heads);
  return std::max<int64_t>(1, std::min(wanted, items));
}

Status omni_attention_backward_cpu(const OmniBackwardParams& params, int num_threads) {
  SHOWO_RETURN_IF_ERROR(check(params.in));
  const OmniInputs& in = params.in;
  const int64_t expected = omni_attention_backward_summands(in.batch, in.heads, in.kv_heads, in.q_length);
  SHOWO_CHECK_ARGUMENT(params.summands == expected,
                       "omni_attention_backward: dk and dv have %lld summands, expected %lld",
                       static_cast<long long>(params.summands), static_cast<long long>(expected));
  const OmniCpuKernels& kernels = omni_cpu_kernels();
  return run(params, params.summands, true, num_threads, kernels.backward, kernels.backward_scratch(params),
             kernels.q_block);
}

}  // namespace showo
