#include "kernels/cpu/thread_pool.h"

#include <immintrin.h>

#include "base/check.h"

namespace goldfinch::cpu {
namespace {

// About 50 microseconds: longer than the gaps between the ops of a step, shorter than anyone would mind.
constexpr int kSpins = 2000;

}  // namespace

ThreadPool::ThreadPool(int threads) {
  GF_CHECK_GE(threads, 1);
  for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { Work(thread); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::ParallelFor(int64_t tasks, absl::FunctionRef<void(int64_t task, int thread)> body) {
  if (workers_.empty() || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
  body_ = &body;
  tasks_ = tasks;
  next_task_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  RunTasks(0);
  // Every worker has to leave the loop, even one that found no task: `body` lives on this stack.
  while (int busy = busy_.load(std::memory_order_acquire)) {
    for (int spin = 0; spin < kSpins && busy != 0; ++spin) {
      _mm_pause();
      busy = busy_.load(std::memory_order_acquire);
    }
    if (busy != 0) busy_.wait(busy, std::memory_order_acquire);
  }
}

void ThreadPool::RunTasks(int thread) {
  for (;;) {
    const int64_t task = next_task_.fetch_add(1, std::memory_order_relaxed);
    if (task >= tasks_) return;
    (*body_)(task, thread);
  }
}

void ThreadPool::Work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    for (int spin = 0; spin < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++spin) _mm_pause();
    epoch_.wait(seen, std::memory_order_acquire);
    ++seen;
    if (stop_.load()) return;
    RunTasks(thread);
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
  }
}

}  // namespace goldfinch::cpu
