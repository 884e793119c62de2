// Notices that a file which this process has mapped, such as that of the model, is changed.
#ifndef GOLDFINCH_CLIENTS_CLI_SERVE_FILE_WATCH_H_
#define GOLDFINCH_CLIENTS_CLI_SERVE_FILE_WATCH_H_

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/status/status.h"

namespace goldfinch {

constexpr double kFileWatchSeconds = 1;  // the period of the commands that serve

// Looks at all mapped files, as MappedFile::CheckAllUnchanged does, now and then from a thread of its own. It reads a
// few hundred kilobytes of each.
class FileWatch {
 public:
  // `on_change` is called at most once, on the thread of the watch, with what CheckAllUnchanged said.
  FileWatch(double period_seconds, std::function<void(const absl::Status& status)> on_change);
  // `on_change` is not called any more once this returns.
  ~FileWatch();
  FileWatch(const FileWatch&) = delete;
  FileWatch& operator=(const FileWatch&) = delete;

 private:
  void Run();

  const double period_seconds_;
  const std::function<void(const absl::Status& status)> on_change_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_SERVE_FILE_WATCH_H_
