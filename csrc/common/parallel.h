// A small persistent thread pool. Not OpenMP: torch ships its own copy of that runtime, and two in one process
// fight over the cores.
#pragma once

#include <cstdint>
#include <type_traits>

namespace showo {

using TaskFunction = void (*)(void* context, int64_t task);

// Calls function(context, task) for every task in [0, num_tasks) on at most num_threads threads, the calling one
// included, and returns when all are done. Tasks are handed out one at a time in rising order, so make each large
// enough (tens of microseconds) and put the long ones first.
//   - The first exception stops the handing out and is rethrown here.
//   - Nested calls, and calls while another thread is inside, run on the calling thread alone.
//   - A pool that cannot grow (the system gives no more threads) runs with the threads it has, serially at worst.
//   - More than 256 threads are used only where the machine has more processors.
//   - After fork() the child gets a fresh pool.
void parallel_run(int64_t num_tasks, int num_threads, TaskFunction function, void* context);

template <class Function>
static inline void parallel_for(int64_t num_tasks, int num_threads, Function&& function) {
  auto* context = const_cast<void*>(static_cast<const void*>(&function));
  using Callable = typename std::remove_reference<Function>::type;
  parallel_run(
      num_tasks, num_threads, [](void* self, int64_t task) { (*static_cast<Callable*>(self))(task); }, context);
}

}  // namespace showo
