// C entry points around csrc/common, for test_common.py.
#include <stdexcept>

#include "common/dtype.h"
#include "common/parallel.h"

using namespace showo;

extern "C" {

void half_to_float(const uint16_t* in, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = to_float(Half{in[i]});
}

void bfloat16_to_float(const uint16_t* in, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = to_float(BFloat16{in[i]});
}

void float_to_half(const float* in, uint16_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store_float(reinterpret_cast<Half*>(out + i), in[i]);
}

void float_to_bfloat16(const float* in, uint16_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store_float(reinterpret_cast<BFloat16*>(out + i), in[i]);
}

// Adds one to counts[task] for every task; `inner` nested tasks each do so instead where it is positive.
void count_tasks(int64_t* counts, int64_t num_tasks, int num_threads, int64_t inner) {
  parallel_for(num_tasks, num_threads, [&](int64_t task) {
    if (inner <= 0) {
      counts[task] += 1;
    } else {
      parallel_for(inner, num_threads, [&](int64_t) { counts[task] += 1; });
    }
  });
}

// Task `bad` throws. Returns 1 if that exception came out, 0 if none did, 2 if another one.
int throw_in_task(int64_t num_tasks, int num_threads, int64_t bad) {
  try {
    parallel_for(num_tasks, num_threads, [&](int64_t task) {
      if (task == bad) throw std::runtime_error("bad task");
    });
  } catch (const std::runtime_error&) {
    return 1;
  } catch (...) {
    return 2;
  }
  return 0;
}
}
