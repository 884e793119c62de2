#include "coordinator/store/folder_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/safe_text.h"

namespace goldfinch {
namespace {

// "process 123", as the holder wrote it.
std::string Holder(int fd) {
  char text[32] = {};
  const ssize_t bytes = pread(fd, text, sizeof(text), 0);
  int64_t pid = 0;
  if (bytes <= 0 || !absl::SimpleAtoi(std::string(text, bytes), &pid)) return "another process";
  return absl::StrCat("process ", pid);
}

}  // namespace

absl::StatusOr<FolderLock> FolderLock::Take(const std::string& folder) {
  const std::string path = folder + "/lock";
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, S_IRUSR | S_IWUSR);
  if (fd < 0) return FileError(errno, path, "opened");
  OpenFile file(fd, path);
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return FileError(errno, path, "locked");
    return absl::FailedPreconditionError(
        absl::StrCat(SafeText(folder), ": is in use by ", Holder(fd), "; a folder of contexts belongs to one process"));
  }
  const std::string pid = absl::StrCat(getpid(), "\n");
  // Only for messages: on a full disk the lock holds without it.
  if (ftruncate(fd, 0) != 0 || pwrite(fd, pid.data(), pid.size(), 0) < 0) return FolderLock(std::move(file));
  return FolderLock(std::move(file));
}

}  // namespace goldfinch
