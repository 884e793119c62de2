// A lock by which one process at a time has a folder.
#ifndef GOLDFINCH_COORDINATOR_STORE_FOLDER_LOCK_H_
#define GOLDFINCH_COORDINATOR_STORE_FOLDER_LOCK_H_

#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "coordinator/store/files.h"

namespace goldfinch {

// Holds the lock of a folder until it is destroyed, or until the process ends in whatever way.
class FolderLock {
 public:
  // FAILED_PRECONDITION, which names the folder and the process, if another process holds the lock. FileError's errors
  // if the file `lock` cannot be made in the folder.
  static absl::StatusOr<FolderLock> Take(const std::string& folder);

 private:
  explicit FolderLock(OpenFile file) : file_(std::move(file)) {}

  OpenFile file_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STORE_FOLDER_LOCK_H_
