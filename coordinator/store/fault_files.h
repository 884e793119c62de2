// A file system on which a test's fault happens: at one of the calls that change something.
#ifndef GOLDFINCH_COORDINATOR_STORE_FAULT_FILES_H_
#define GOLDFINCH_COORDINATOR_STORE_FAULT_FILES_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/store/files.h"

namespace goldfinch {

enum class Fault {
  kNone,
  kError,           // the call fails
  kKill,            // the process ends, in the middle of the call if it writes
  kLoseData,        // the machine ends, and with it all content that was not synced; names stay
  kLoseNames,       // the same with all changes of names since their folder was synced; content stays
  kLoseEverything,  // both
};

// Not thread-safe.
class FaultFiles : public Files {
 public:
  static constexpr int kExitCode = 9;  // of the process, after all faults but kError

  // The fault happens at the call with this number, from 0 on.
  FaultFiles(Fault fault, int call, int error = 0) : fault_(fault), call_(call), error_(error) {}

  int calls() const { return calls_; }
  // The fault, now.
  [[noreturn]] void End();

  absl::StatusOr<OpenFile> Create(const std::string& path) override;
  absl::StatusOr<OpenFile> OpenToWrite(const std::string& path) override;
  absl::Status Reserve(const OpenFile& file, int64_t bytes) override;
  absl::Status Write(const OpenFile& file, int64_t offset, std::string_view bytes) override;
  absl::Status Truncate(const OpenFile& file, int64_t bytes) override;
  absl::Status SyncData(const OpenFile& file) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status Remove(const std::string& path) override;
  absl::Status SyncFolder(const std::string& path) override;

 private:
  // Before a call that changes something. An error if it fails; does not return if it is the end.
  absl::Status Before(const std::string& path, const std::function<void()>& half = nullptr);

  Fault fault_;
  const int call_;
  const int error_;
  int calls_ = 0;
  std::map<std::string, std::string> synced_;    // what of each file that was written is on the disk
  std::vector<std::function<void()>> unsynced_;  // take back changes of names, the last one last
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STORE_FAULT_FILES_H_
