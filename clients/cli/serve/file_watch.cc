#include "clients/cli/serve/file_watch.h"

#include <chrono>
#include <utility>

#include "base/mapped_file.h"

namespace goldfinch {

FileWatch::FileWatch(double period_seconds, std::function<void(const absl::Status& status)> on_change)
    : period_seconds_(period_seconds), on_change_(std::move(on_change)), thread_([this] { Run(); }) {}

FileWatch::~FileWatch() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void FileWatch::Run() {
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      const std::chrono::duration<double> period(period_seconds_);
      if (wake_.wait_for(lock, period, [this] { return stopping_; })) return;
    }
    if (const absl::Status status = MappedFile::CheckAllUnchanged(); !status.ok()) return on_change_(status);
  }
}

}  // namespace goldfinch
