// The file system as the store uses it. Tests replace it by one that fails, or ends the process, where they want.
#ifndef GOLDFINCH_COORDINATOR_STORE_FILES_H_
#define GOLDFINCH_COORDINATOR_STORE_FILES_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace goldfinch {

struct FileContent;  // memory_files.cc

// An open file, on disk (a descriptor) or in memory. It is closed by the destructor.
class OpenFile {
 public:
  OpenFile() = default;
  OpenFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  OpenFile(std::shared_ptr<FileContent> content, std::string path)
      : content_(std::move(content)), path_(std::move(path)) {}
  OpenFile(OpenFile&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), content_(std::move(other.content_)), path_(std::move(other.path_)) {}
  OpenFile& operator=(OpenFile&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(content_, other.content_);
    std::swap(path_, other.path_);
    return *this;
  }
  ~OpenFile();

  int fd() const { return fd_; }
  const std::shared_ptr<FileContent>& content() const { return content_; }
  // The path by which it was opened: it may have been renamed since.
  const std::string& path() const { return path_; }

 private:
  int fd_ = -1;
  std::shared_ptr<FileContent> content_;
  std::string path_;
};

// "PATH: cannot be DONE: why", by the number of the error: NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED (also of a
// read-only file system), RESOURCE_EXHAUSTED (no space, a quota, too many open files), else INTERNAL: a disk that
// fails. Only NOT_FOUND says anything of what is in the file; of all others it may be as it was.
absl::Status FileError(int error, const std::string& path, const char* done);
// DATA_LOSS: the file ends after `bytes` bytes, before it should.
absl::Status EndsAt(const std::string& path, int64_t bytes);

// The time now, as FileState has it.
int64_t UnixSeconds();

struct FileState {
  int64_t bytes = 0;
  int64_t used_unix_seconds = 0;     // when it was written, or what SetUsed said
  int64_t changed_unix_seconds = 0;  // when anything of it changed, its name too
};

// Thread-safe. Every call may block. Errors are FileError's.
class Files {
 public:
  virtual ~Files() = default;

  // The disk. It lives as long as the process.
  static Files* System();

  // Whether other processes have the same files.
  virtual bool shared() const { return true; }

  // A new file that only this user may read.
  virtual absl::StatusOr<OpenFile> Create(const std::string& path);
  virtual absl::StatusOr<OpenFile> OpenToRead(const std::string& path);
  virtual absl::StatusOr<OpenFile> OpenToWrite(const std::string& path);
  // Reserves the room for a file of that size, where the file system can do so.
  virtual absl::Status Reserve(const OpenFile& file, int64_t bytes);
  virtual absl::Status Write(const OpenFile& file, int64_t offset, std::string_view bytes);
  // DATA_LOSS if the file ends before these bytes do.
  virtual absl::Status Read(const OpenFile& file, int64_t offset, absl::Span<char> bytes);
  virtual absl::Status Truncate(const OpenFile& file, int64_t bytes);
  // Returns when content and size are on the disk.
  virtual absl::Status SyncData(const OpenFile& file);
  virtual absl::Status Rename(const std::string& from, const std::string& to);
  virtual absl::Status Remove(const std::string& path);
  // Returns when the names in the folder are on the disk.
  virtual absl::Status SyncFolder(const std::string& path);
  // Makes a folder that only this user may read, unless it exists; the one above it must exist.
  virtual absl::Status MakeFolder(const std::string& path);
  // The names of the plain files in a folder.
  virtual absl::StatusOr<std::vector<std::string>> NamesIn(const std::string& folder);
  virtual absl::StatusOr<FileState> StateOf(const OpenFile& file);
  // Notes when a file was used, if the file system can do so.
  virtual void SetUsed(const std::string& path, int64_t unix_seconds);
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STORE_FILES_H_
