// Keeps a second process away from a folder.
#ifndef GOLDFINCH_COORDINATOR_STORE_FOLDER_LOCK_H_
#define GOLDFINCH_COORDINATOR_STORE_FOLDER_LOCK_H_

#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "coordinator/store/files.h"

namespace goldfinch {

// Holds the lock of a folder until it goes, or until the process ends in whatever way.
class FolderLock {
 public:
  // FAILED_PRECONDITION if the lock is held; it names the folder and the process that holds it. Else FileError's, if
  // the file `lock` cannot be made in the folder.
  static absl::StatusOr<FolderLock> Take(const std::string& folder);

 private:
  explicit FolderLock(OpenFile file) : file_(std::move(file)) {}

  OpenFile file_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STORE_FOLDER_LOCK_H_
