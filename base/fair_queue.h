// Threads that clients share, for work that waits for a disk.
#ifndef GOLDFINCH_BASE_FAIR_QUEUE_H_
#define GOLDFINCH_BASE_FAIR_QUEUE_H_

#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"

namespace goldfinch {

// Runs tasks. At most one task of a client runs at a time, in the order in which they were posted, and clients take
// turns: so a client whose tasks are slow, or many, holds up nobody but itself, as long as there are more threads than
// such clients. Thread-safe; tasks may post tasks.
class FairQueue {
 public:
  using Task = absl::AnyInvocable<void()>;

  explicit FairQueue(int threads);
  // Stops.
  ~FairQueue();
  FairQueue(const FairQueue&) = delete;
  FairQueue& operator=(const FairQueue&) = delete;

  // After Stop, the task is dropped at once.
  void Post(const std::string& client, Task task);
  // Drops what has not begun, and waits for the tasks that run. Not to be called by a task.
  void Stop();

 private:
  struct Client {
    std::deque<Task> tasks;  // that have not begun
    bool running = false;
  };

  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, Client> clients_;  // guarded by mutex_; those with a task
  std::deque<std::string> turns_;          // guarded by mutex_; those with a task of which none runs
  bool stop_ = false;                      // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_FAIR_QUEUE_H_
