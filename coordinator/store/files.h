// What the store asks of a file system. Tests put another one in its place, which fails or ends where they want.
#ifndef GOLDFINCH_COORDINATOR_STORE_FILES_H_
#define GOLDFINCH_COORDINATOR_STORE_FILES_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace goldfinch {

// An open file, closed when it goes.
class OpenFile {
 public:
  OpenFile() = default;
  OpenFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  OpenFile(OpenFile&& other) noexcept : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}
  OpenFile& operator=(OpenFile&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(path_, other.path_);
    return *this;
  }
  ~OpenFile();

  int fd() const { return fd_; }
  // The path by which it was opened: it may have been renamed since.
  const std::string& path() const { return path_; }

 private:
  int fd_ = -1;
  std::string path_;
};

// "PATH: cannot be DONE: why", by the number of the error: NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED (also of a
// read-only file system), RESOURCE_EXHAUSTED (no space, a quota, too many open files), else DATA_LOSS.
absl::Status FileError(int error, const std::string& path, const char* done);

// Thread-safe. Every call may block. Errors are FileError's.
class Files {
 public:
  virtual ~Files() = default;

  // The one that is the disk. It lives as long as the process.
  static Files* System();

  // A new file that only this user may read.
  virtual absl::StatusOr<OpenFile> Create(const std::string& path);
  virtual absl::StatusOr<OpenFile> OpenToRead(const std::string& path);
  virtual absl::StatusOr<OpenFile> OpenToWrite(const std::string& path);
  // Takes the room for a file of that size, where the file system can do so.
  virtual absl::Status Reserve(const OpenFile& file, int64_t bytes);
  virtual absl::Status Write(const OpenFile& file, int64_t offset, std::string_view bytes);
  // DATA_LOSS, too, if the file ends before.
  virtual absl::Status Read(const OpenFile& file, int64_t offset, absl::Span<char> bytes);
  virtual absl::Status Truncate(const OpenFile& file, int64_t bytes);
  // Returns when content and size are on the disk.
  virtual absl::Status SyncData(const OpenFile& file);
  virtual absl::Status Rename(const std::string& from, const std::string& to);
  virtual absl::Status Remove(const std::string& path);
  // Returns when the names in the folder are on the disk.
  virtual absl::Status SyncFolder(const std::string& path);
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STORE_FILES_H_
