#include "coordinator/store/fault_files.h"

#include <unistd.h>

#include <filesystem>

#include "base/status.h"
#include "coordinator/store/store_test_util.h"

namespace goldfinch {

absl::Status FaultFiles::Before(const std::string& path, const std::function<void()>& half) {
  const int call = calls_++;
  if (fault_ == Fault::kNone || call != call_) return absl::OkStatus();
  if (fault_ == Fault::kError) return FileError(error_, path, "used");
  if (half) half();
  End();
}

void FaultFiles::End() {
  if (fault_ == Fault::kLoseData || fault_ == Fault::kLoseEverything) {
    for (const auto& [path, content] : synced_) {
      if (std::filesystem::exists(path)) WriteTestFile(path, content);
    }
  }
  if (fault_ == Fault::kLoseNames || fault_ == Fault::kLoseEverything) {
    while (!unsynced_.empty()) {
      unsynced_.back()();
      unsynced_.pop_back();
    }
  }
  _exit(kExitCode);
}

absl::StatusOr<OpenFile> FaultFiles::Create(const std::string& path) {
  GF_RETURN_IF_ERROR(Before(path));
  auto file = Files::Create(path);
  synced_[path] = "";
  unsynced_.push_back([path] { std::filesystem::remove(path); });
  return file;
}

absl::StatusOr<OpenFile> FaultFiles::OpenToWrite(const std::string& path) {
  GF_RETURN_IF_ERROR(Before(path));
  synced_[path] = ReadTestFile(path);
  return Files::OpenToWrite(path);
}

absl::Status FaultFiles::Reserve(const OpenFile& file, int64_t bytes) {
  GF_RETURN_IF_ERROR(Before(file.path()));
  return Files::Reserve(file, bytes);
}

absl::Status FaultFiles::Write(const OpenFile& file, int64_t offset, std::string_view bytes) {
  const auto half = [&] { (void)Files::Write(file, offset, bytes.substr(0, bytes.size() / 2)); };
  GF_RETURN_IF_ERROR(Before(file.path(), half));
  return Files::Write(file, offset, bytes);
}

absl::Status FaultFiles::Truncate(const OpenFile& file, int64_t bytes) {
  GF_RETURN_IF_ERROR(Before(file.path()));
  return Files::Truncate(file, bytes);
}

absl::Status FaultFiles::SyncData(const OpenFile& file) {
  GF_RETURN_IF_ERROR(Before(file.path()));
  synced_[file.path()] = ReadTestFile(file.path());
  return Files::SyncData(file);
}

absl::Status FaultFiles::Rename(const std::string& from, const std::string& to) {
  GF_RETURN_IF_ERROR(Before(from));
  const bool replaces = std::filesystem::exists(to);
  const std::string replaced = replaces ? ReadTestFile(to) : "";
  GF_RETURN_IF_ERROR(Files::Rename(from, to));
  if (synced_.contains(from)) synced_[to] = synced_[from];
  synced_.erase(from);
  unsynced_.push_back([=] {
    std::filesystem::rename(to, from);
    if (replaces) WriteTestFile(to, replaced);
  });
  return absl::OkStatus();
}

absl::Status FaultFiles::Remove(const std::string& path) {
  GF_RETURN_IF_ERROR(Before(path));
  const std::string content = std::filesystem::exists(path) ? ReadTestFile(path) : "";
  GF_RETURN_IF_ERROR(Files::Remove(path));
  synced_.erase(path);
  unsynced_.push_back([=] { WriteTestFile(path, content); });
  return absl::OkStatus();
}

absl::Status FaultFiles::SyncFolder(const std::string& path) {
  GF_RETURN_IF_ERROR(Before(path));
  unsynced_.clear();
  return Files::SyncFolder(path);
}

}  // namespace goldfinch
