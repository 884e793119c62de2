#include "base/fair_queue.h"

#include <utility>

#include "base/check.h"

namespace goldfinch {

FairQueue::FairQueue(int threads) {
  GF_CHECK_GT(threads, 0);
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
}

FairQueue::~FairQueue() { Stop(); }

void FairQueue::Post(const std::string& client, Task task) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (stop_) return;
  Client& one = clients_[client];
  one.tasks.push_back(std::move(task));
  if (one.running || one.tasks.size() > 1) return;
  turns_.push_back(client);
  changed_.notify_one();
}

void FairQueue::Stop() {
  std::map<std::string, Client> dropped;  // outlives the lock: what tasks own may post
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    dropped.swap(clients_);
    turns_.clear();
    changed_.notify_all();
  }
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void FairQueue::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stop_ || !turns_.empty(); });
    if (stop_) return;
    const std::string client = std::move(turns_.front());
    turns_.pop_front();
    Client& one = clients_.at(client);
    Task task = std::move(one.tasks.front());
    one.tasks.pop_front();
    one.running = true;
    lock.unlock();
    std::move(task)();
    task = nullptr;
    lock.lock();
    const auto after = clients_.find(client);
    if (after == clients_.end()) continue;  // it has been stopped
    after->second.running = false;
    if (after->second.tasks.empty()) {
      clients_.erase(after);
    } else {
      turns_.push_back(client);
      changed_.notify_one();
    }
  }
}

}  // namespace goldfinch
