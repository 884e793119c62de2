// A fixed set of threads that share the iterations of a loop.
#ifndef GOLDFINCH_KERNELS_CPU_THREAD_POOL_H_
#define GOLDFINCH_KERNELS_CPU_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace goldfinch::cpu {

// One thread at a time may call ParallelFor; the calling thread takes part as thread 0. Idle threads spin briefly, then
// sleep, so that the many short loops of a decode step do not pay for waking them. Allocates nothing after construction.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task, thread) once for every task in [0, tasks), thread in [0, threads()). Returns when all are done.
  // Tasks are handed out in order, one at a time.
  void ParallelFor(int64_t tasks, absl::FunctionRef<void(int64_t task, int thread)> body);

 private:
  void Work(int thread);
  void RunTasks(int thread);

  std::vector<std::thread> workers_;
  absl::FunctionRef<void(int64_t, int)>* body_ = nullptr;
  int64_t tasks_ = 0;
  std::atomic<int64_t> next_task_{0};
  alignas(64) std::atomic<uint32_t> epoch_{0};  // bumped once a loop; workers wait for it to change
  alignas(64) std::atomic<int> busy_{0};        // workers still in the loop
  std::atomic<bool> stop_{false};
};

}  // namespace goldfinch::cpu

#endif  // GOLDFINCH_KERNELS_CPU_THREAD_POOL_H_
