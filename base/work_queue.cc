#include "base/work_queue.h"

#include <utility>

namespace goldfinch {

WorkQueue::WorkQueue(int threads) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
}

WorkQueue::~WorkQueue() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

// Post and PostAfter notify with the lock held: as soon as it is released, the task may run and end the queue's owner,
// and changed_ with it.
void WorkQueue::Post(Task task) {
  const std::lock_guard<std::mutex> lock(mutex_);
  tasks_.push_back(std::move(task));
  changed_.notify_one();
}

void WorkQueue::PostAfter(double seconds, Task task) {
  const auto due = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  const std::lock_guard<std::mutex> lock(mutex_);
  later_.emplace(due, std::move(task));
  changed_.notify_one();
}

void WorkQueue::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    const auto now = Clock::now();
    while (!later_.empty() && later_.begin()->first <= now) {
      tasks_.push_back(std::move(later_.begin()->second));
      later_.erase(later_.begin());
    }
    if (!tasks_.empty()) {
      {
        Task task = std::move(tasks_.front());
        tasks_.pop_front();
        lock.unlock();
        task();
      }  // what the task holds is released without the lock, too
      lock.lock();
    } else if (stop_) {
      return;
    } else if (later_.empty()) {
      changed_.wait(lock);
    } else {
      // A copy of the time, because another thread may take the entry meanwhile.
      const Clock::time_point due = later_.begin()->first;
      changed_.wait_until(lock, due);
    }
  }
}

}  // namespace goldfinch
