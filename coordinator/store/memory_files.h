// Files in memory, for a store that outlives workers but not its own process.
#ifndef GOLDFINCH_COORDINATOR_STORE_MEMORY_FILES_H_
#define GOLDFINCH_COORDINATOR_STORE_MEMORY_FILES_H_

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/store/files.h"

namespace goldfinch {

// Its files are gone when it is destroyed. A file takes whole blocks of memory as soon as its room is reserved, so a
// limit of the bytes of all files, as SegmentStore has one, limits the memory. RESOURCE_EXHAUSTED if there is no
// memory.
class MemoryFiles : public Files {
 public:
  bool shared() const override { return false; }

  absl::StatusOr<OpenFile> Create(const std::string& path) override;
  absl::StatusOr<OpenFile> OpenToRead(const std::string& path) override;
  absl::StatusOr<OpenFile> OpenToWrite(const std::string& path) override;
  absl::Status Reserve(const OpenFile& file, int64_t bytes) override;
  absl::Status Write(const OpenFile& file, int64_t offset, std::string_view bytes) override;
  absl::Status Read(const OpenFile& file, int64_t offset, absl::Span<char> bytes) override;
  absl::Status Truncate(const OpenFile& file, int64_t bytes) override;
  absl::Status SyncData(const OpenFile& file) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status Remove(const std::string& path) override;
  absl::Status SyncFolder(const std::string& path) override;
  absl::Status MakeFolder(const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> NamesIn(const std::string& folder) override;
  absl::StatusOr<FileState> StateOf(const OpenFile& file) override;
  void SetUsed(const std::string& path, int64_t unix_seconds) override;

 private:
  absl::StatusOr<OpenFile> Open(const std::string& path, const char* done);

  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<FileContent>> files_;  // guarded by mutex_; by path
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STORE_MEMORY_FILES_H_
