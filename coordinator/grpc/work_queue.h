// Threads for what must not run on the coordinator's thread or on gRPC's.
#ifndef GOLDFINCH_COORDINATOR_GRPC_WORK_QUEUE_H_
#define GOLDFINCH_COORDINATOR_GRPC_WORK_QUEUE_H_

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"

namespace goldfinch {

// Runs tasks, begun in the order in which they were posted. Thread-safe; tasks may post.
class WorkQueue {
 public:
  using Task = absl::AnyInvocable<void()>;

  explicit WorkQueue(int threads);
  // Runs what has been posted, but drops what is not due yet.
  ~WorkQueue();
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  void Post(Task task);
  void PostAfter(double seconds, Task task);

 private:
  using Clock = std::chrono::steady_clock;

  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;                        // guarded by mutex_
  std::multimap<Clock::time_point, Task> later_;  // guarded by mutex_
  bool stop_ = false;                             // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_WORK_QUEUE_H_
