#include "coordinator/store/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "base/safe_text.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

absl::StatusOr<OpenFile> Open(const std::string& path, int flags, const char* done) {
  const int fd = open(path.c_str(), flags | O_CLOEXEC, S_IRUSR | S_IWUSR);
  if (fd < 0) return FileError(errno, path, done);
  return OpenFile(fd, path);
}

}  // namespace

int64_t UnixSeconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

absl::Status FileError(int error, const std::string& path, const char* done) {
  const std::string message = absl::StrCat(SafeText(path), ": cannot be ", done, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
      return absl::NotFoundError(message);
    case EEXIST:
      return absl::AlreadyExistsError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::Status EndsAt(const std::string& path, int64_t bytes) {
  return absl::DataLossError(absl::StrCat(SafeText(path), ": ends at byte ", bytes));
}

OpenFile::~OpenFile() {
  if (fd_ >= 0) close(fd_);
}

Files* Files::System() {
  static Files files;
  return &files;
}

absl::StatusOr<OpenFile> Files::Create(const std::string& path) {
  return Open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, "created");
}

absl::StatusOr<OpenFile> Files::OpenToRead(const std::string& path) {
  return Open(path, O_RDONLY | O_NOFOLLOW, "read");
}

absl::StatusOr<OpenFile> Files::OpenToWrite(const std::string& path) {
  return Open(path, O_RDWR | O_NOFOLLOW, "written");
}

absl::Status Files::Reserve(const OpenFile& file, int64_t bytes) {
  if (bytes == 0 || fallocate(file.fd(), 0, 0, bytes) == 0) return absl::OkStatus();
  if (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINTR) return absl::OkStatus();
  return FileError(errno, file.path(), "written");
}

absl::Status Files::Write(const OpenFile& file, int64_t offset, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = pwrite(file.fd(), bytes.data(), bytes.size(), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return FileError(written < 0 ? errno : ENOSPC, file.path(), "written");
    bytes.remove_prefix(written);
    offset += written;
  }
  return absl::OkStatus();
}

absl::Status Files::Read(const OpenFile& file, int64_t offset, absl::Span<char> bytes) {
  while (!bytes.empty()) {
    const ssize_t got = pread(file.fd(), bytes.data(), bytes.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FileError(errno, file.path(), "read");
    if (got == 0) return EndsAt(file.path(), offset);
    bytes.remove_prefix(got);
    offset += got;
  }
  return absl::OkStatus();
}

absl::Status Files::Truncate(const OpenFile& file, int64_t bytes) {
  return ftruncate(file.fd(), bytes) == 0 ? absl::OkStatus() : FileError(errno, file.path(), "cut");
}

absl::Status Files::SyncData(const OpenFile& file) {
  return fdatasync(file.fd()) == 0 ? absl::OkStatus() : FileError(errno, file.path(), "written to the disk");
}

absl::Status Files::Rename(const std::string& from, const std::string& to) {
  return rename(from.c_str(), to.c_str()) == 0 ? absl::OkStatus() : FileError(errno, from, "renamed");
}

absl::Status Files::Remove(const std::string& path) {
  return unlink(path.c_str()) == 0 ? absl::OkStatus() : FileError(errno, path, "removed");
}

absl::Status Files::SyncFolder(const std::string& path) {
  auto folder = Open(path, O_RDONLY | O_DIRECTORY, "written to the disk");
  if (!folder.ok()) return folder.status();
  return fsync(folder->fd()) == 0 ? absl::OkStatus() : FileError(errno, path, "written to the disk");
}

absl::Status Files::MakeFolder(const std::string& path) {
  if (mkdir(path.c_str(), S_IRWXU) == 0 || errno == EEXIST) return absl::OkStatus();
  return FileError(errno, path, "made");
}

absl::StatusOr<std::vector<std::string>> Files::NamesIn(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator entry(folder, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    std::error_code unknown;
    if (entry->is_regular_file(unknown) && !entry->is_symlink(unknown)) names.push_back(entry->path().filename());
  }
  if (error) return FileError(error.value(), folder, "read");
  return names;
}

absl::StatusOr<FileState> Files::StateOf(const OpenFile& file) {
  struct stat now = {};
  if (fstat(file.fd(), &now) != 0) return FileError(errno, file.path(), "read");
  return FileState{now.st_size, now.st_mtim.tv_sec, now.st_ctim.tv_sec};
}

void Files::SetUsed(const std::string& path, int64_t unix_seconds) {
  const timespec times[2] = {{0, UTIME_OMIT}, {unix_seconds, 0}};
  if (utimensat(AT_FDCWD, path.c_str(), times, AT_SYMLINK_NOFOLLOW) != 0) {
    spdlog::debug("{}: its time cannot be set", SafeText(path));
  }
}

}  // namespace goldfinch
