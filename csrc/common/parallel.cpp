#include "common/parallel.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace showo {
namespace {

struct Job {
  Job(TaskFunction f, void* c, int64_t n) : function(f), context(c), num_tasks(n) {}
  TaskFunction function;
  void* context;
  int64_t num_tasks;
  std::atomic<int64_t> next{0};
  std::exception_ptr error;  // guarded by the pool's mutex
};

// A small machine may be given more threads than it has processors, on purpose, but only so many: each costs a stack.
// Asked once: the answer is read from files, which takes longer than a small kernel.
int most_threads() {
  static const int most = std::max(256, static_cast<int>(std::thread::hardware_concurrency()));
  return most;
}

thread_local bool inside_parallel_run = false;

// Marks the calling thread as inside a parallel run while this object lives, also when an exception ends the run.
struct InsideParallelRun {
  InsideParallelRun() { inside_parallel_run = true; }
  ~InsideParallelRun() { inside_parallel_run = false; }
  InsideParallelRun(const InsideParallelRun&) = delete;
};

class Pool {
 public:
  // Returns false when another thread is using the pool.
  bool run(Job* job, int num_threads) {
    std::unique_lock<std::mutex> region(region_, std::try_to_lock);
    if (!region.owns_lock()) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      grow(num_threads - 1);
      job_ = job;
      free_places_ = std::min(num_threads - 1, num_workers_);
    }
    wake_.notify_all();
    drain(job);
    // Workers that did not wake up in time are not waited for: the place is simply closed.
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    free_places_ = 0;
    done_.wait(lock, [this] { return num_inside_ == 0; });
    return true;
  }

 private:
  // Makes the pool as large as `num_workers`, or as the system allows now: the next run tries again.
  void grow(int num_workers) {
    try {
      for (; num_workers_ < num_workers; ++num_workers_) std::thread([this] { work(); }).detach();
    } catch (const std::system_error&) {
      // No more threads are to be had. The calling thread does what the workers that exist leave over.
    }
  }

  void work() {
    const InsideParallelRun inside;
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return free_places_ > 0; });
      --free_places_;
      ++num_inside_;
      Job* job = job_;
      lock.unlock();
      drain(job);
      lock.lock();
      if (--num_inside_ == 0) done_.notify_one();
    }
  }

  void drain(Job* job) {
    while (true) {
      const int64_t task = job->next.fetch_add(1, std::memory_order_relaxed);
      if (task >= job->num_tasks) return;
      try {
        job->function(job->context, task);
      } catch (...) {
        job->next.store(job->num_tasks, std::memory_order_relaxed);
        std::lock_guard<std::mutex> lock(mutex_);
        if (!job->error) job->error = std::current_exception();
      }
    }
  }

  std::mutex region_;  // held during one parallel run
  std::mutex mutex_;   // guards what follows
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int free_places_ = 0;
  int num_inside_ = 0;
  int num_workers_ = 0;
};

// The pool is never destroyed, since its threads may outlive static destructors; after fork() the parent's pool is
// abandoned, because its threads do not exist in the child and its locks may be held.
Pool& pool() {
  static std::mutex creation;
  static std::atomic<Pool*> current{nullptr};
  static std::atomic<pid_t> owner{0};
  const pid_t pid = getpid();
  if (owner.load(std::memory_order_acquire) != pid) {
    std::lock_guard<std::mutex> lock(creation);
    if (owner.load(std::memory_order_relaxed) != pid) {
      current.store(new Pool, std::memory_order_relaxed);
      owner.store(pid, std::memory_order_release);
    }
  }
  return *current.load(std::memory_order_relaxed);
}

void run_serially(int64_t num_tasks, TaskFunction function, void* context) {
  for (int64_t task = 0; task < num_tasks; ++task) function(context, task);
}

}  // namespace

void parallel_run(int64_t num_tasks, int num_threads, TaskFunction function, void* context) {
  num_threads = std::min(num_threads, most_threads());
  if (num_tasks < num_threads) num_threads = static_cast<int>(num_tasks);
  if (num_threads <= 1 || inside_parallel_run) return run_serially(num_tasks, function, context);
  const InsideParallelRun inside;
  Job job(function, context, num_tasks);
  if (!pool().run(&job, num_threads)) return run_serially(num_tasks, function, context);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace showo
