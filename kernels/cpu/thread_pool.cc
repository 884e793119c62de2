#include "kernels/cpu/thread_pool.h"

#include <immintrin.h>

#include <chrono>

#include "base/check.h"

namespace goldfinch::cpu {
namespace {

// About 50 microseconds: longer than the gaps between the ops of a step, but not long enough to waste much time.
constexpr int kSpins = 2000;

int WorkersOf(int threads) {
  GF_CHECK_GE(threads, 1);
  return threads - 1;
}

int64_t NowNanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

ThreadPool::ThreadPool(int threads) { Start(threads); }

ThreadPool::~ThreadPool() { Stop(); }

void ThreadPool::Resize(int threads) {
  if (threads == this->threads()) return;
  Stop();
  Start(threads);
}

void ThreadPool::Start(int threads) {
  stop_.store(false);
  waiting_ns_ = 0;
  workers_ = std::vector<Worker>(WorkersOf(threads));
  for (int thread = 1; thread < threads; ++thread) {
    workers_[thread - 1].thread = std::thread([this, thread] { Work(thread); });
  }
}

void ThreadPool::Stop() {
  stop_.store(true);
  loops_.fetch_add(1);
  loops_.notify_all();
  for (Worker& worker : workers_) worker.thread.join();
}

void ThreadPool::ParallelFor(int64_t tasks, absl::FunctionRef<void(int64_t task, int thread)> body, int64_t task_work) {
  if (workers_.empty() || tasks <= 1 || tasks * task_work < kWorthSharing) {
    for (int64_t task = 0; task < tasks; ++task) {
      // Between shared loops no other thread writes the counter.
      next_task_.store(next_task_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
      body(task, 0);
    }
    return;
  }
  body_ = &body;
  tasks_ = tasks;
  next_task_.store(0, std::memory_order_relaxed);
  joined_.store(1, std::memory_order_release);
  loops_.fetch_add(1, std::memory_order_release);
  loops_.notify_all();
  RunTasks(0);
  // `body` is on this stack: no thread may join from here on, and those that have joined must leave.
  uint32_t joined = joined_.fetch_sub(1, std::memory_order_acq_rel) - 1;
  if (joined == 0) return;
  const int64_t start = NowNanoseconds();
  for (int spin = 0; spin < kSpins && joined != 0; ++spin) {
    _mm_pause();
    joined = joined_.load(std::memory_order_acquire);
  }
  while (joined != 0) {
    joined_.wait(joined, std::memory_order_acquire);
    joined = joined_.load(std::memory_order_acquire);
  }
  waiting_ns_ += NowNanoseconds() - start;
}

ThreadPool::Times ThreadPool::times() const {
  Times times{.waiting_ns = waiting_ns_};
  for (const Worker& worker : workers_) times.working_ns += worker.working_ns;
  return times;
}

void ThreadPool::RunTasks(int thread) {
  for (;;) {
    const int64_t task = next_task_.fetch_add(1, std::memory_order_relaxed);
    if (task >= tasks_) return;
    (*body_)(task, thread);
  }
}

// Joins the loop that runs; returns false if it is closed.
bool ThreadPool::Join() {
  uint32_t joined = joined_.load(std::memory_order_relaxed);
  while ((joined & 1) != 0) {
    if (joined_.compare_exchange_weak(joined, joined + 2, std::memory_order_acquire, std::memory_order_relaxed))
      return true;
  }
  return false;
}

void ThreadPool::Leave() {
  if (joined_.fetch_sub(2, std::memory_order_acq_rel) == 2) joined_.notify_one();
}

void ThreadPool::Work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    for (int spin = 0; spin < kSpins && loops_.load(std::memory_order_acquire) == seen; ++spin) _mm_pause();
    loops_.wait(seen, std::memory_order_acquire);
    seen = loops_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    if (!Join()) continue;
    const int64_t start = NowNanoseconds();
    RunTasks(thread);
    workers_[thread - 1].working_ns += NowNanoseconds() - start;
    Leave();
  }
}

}  // namespace goldfinch::cpu
