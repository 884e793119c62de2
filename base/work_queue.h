// Threads for work that would hold up the coordinator's thread or a door's.
#ifndef GOLDFINCH_BASE_WORK_QUEUE_H_
#define GOLDFINCH_BASE_WORK_QUEUE_H_

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"

namespace goldfinch {

// Runs tasks; they begin in the order in which they were posted. Thread-safe; tasks may post tasks.
class WorkQueue {
 public:
  using Task = absl::AnyInvocable<void()>;

  explicit WorkQueue(int threads);
  // Runs all tasks that have been posted, and drops those of PostAfter that are not due yet.
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

#endif  // GOLDFINCH_BASE_WORK_QUEUE_H_
