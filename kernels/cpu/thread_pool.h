// A fixed set of threads that share the iterations of a loop.
#ifndef GOLDFINCH_KERNELS_CPU_THREAD_POOL_H_
#define GOLDFINCH_KERNELS_CPU_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace goldfinch::cpu {

// One thread at a time may call ParallelFor; the calling thread takes part as thread 0. Idle threads spin briefly
// before they sleep, so that the many short loops of a decode step do not pay for waking them. A loop never waits for a
// thread that has not joined it: if the cores are busy with other things, the caller does the work alone. Allocates
// nothing after construction.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  // Ends the threads and starts as many as these. Must not be called while a loop runs; times() begins anew.
  void Resize(int threads);

  // Times of the threads so far. In a period t, all threads together were idle for
  // (threads() - 1) * t - working_ns + waiting_ns.
  struct Times {
    int64_t working_ns = 0;  // of all threads but the caller, in tasks
    int64_t waiting_ns = 0;  // of the caller, until the others ended their last tasks
  };
  // Must not be called while a loop runs.
  Times times() const;

  // A number that changes as long as loops run. Any thread may call it.
  uint64_t progress() const {
    return (uint64_t{loops_.load(std::memory_order_relaxed)} << 32) +
           static_cast<uint64_t>(next_task_.load(std::memory_order_relaxed));
  }

  // Calls body(task, thread) once for every task in [0, tasks), thread in [0, threads()). Returns when all are done.
  // Tasks are handed out in order, one at a time. `task_work` is roughly how many multiply-adds a task takes: a loop of
  // little work is not shared, because sharing would take longer.
  void ParallelFor(int64_t tasks, absl::FunctionRef<void(int64_t task, int thread)> body,
                   int64_t task_work = kWorthSharing);

 private:
  static constexpr int64_t kWorthSharing = int64_t{1} << 16;  // a microsecond or two

  struct alignas(64) Worker {
    std::thread thread;
    int64_t working_ns = 0;  // written within a loop, read between loops
  };

  void Start(int threads);
  void Stop();
  void Work(int thread);
  void RunTasks(int thread);
  bool Join();
  void Leave();

  std::vector<Worker> workers_;
  int64_t waiting_ns_ = 0;
  // The loop that runs; read by threads that have joined it.
  absl::FunctionRef<void(int64_t, int)>* body_ = nullptr;
  int64_t tasks_ = 0;
  std::atomic<int64_t> next_task_{0};
  alignas(64) std::atomic<uint32_t> loops_{0};   // loops started so far; workers wait for it to change
  alignas(64) std::atomic<uint32_t> joined_{0};  // 2 * workers in the loop, plus 1 while more may join
  std::atomic<bool> stop_{false};
};

}  // namespace goldfinch::cpu

#endif  // GOLDFINCH_KERNELS_CPU_THREAD_POOL_H_
