#include "coordinator/store/memory_files.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/status.h"

namespace goldfinch {
namespace {

// What is given back at once when a file shrinks or goes, whatever the allocator keeps of it.
constexpr int64_t kBlockBytes = int64_t{256} << 10;

class Block {
 public:
  // Null memory: there is none left.
  Block() {
    void* const memory = mmap(nullptr, kBlockBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memory_ = memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
  }
  Block(Block&& other) noexcept : memory_(std::exchange(other.memory_, nullptr)) {}
  Block& operator=(Block&& other) noexcept {
    std::swap(memory_, other.memory_);
    return *this;
  }
  ~Block() {
    if (memory_ != nullptr) munmap(memory_, kBlockBytes);
  }
  char* memory() const { return memory_; }

 private:
  char* memory_ = nullptr;
};

}  // namespace

struct FileContent {
  std::mutex mutex;
  std::vector<Block> blocks;  // guarded by mutex
  int64_t bytes = 0;          // guarded by mutex
  int64_t used = 0;           // guarded by mutex; in Unix seconds

  // Needs mutex. Bytes that were not written are zeros.
  absl::Status GrowTo(int64_t to, const std::string& path) {
    while (static_cast<int64_t>(blocks.size()) * kBlockBytes < to) {
      Block block;
      if (block.memory() == nullptr) return FileError(ENOMEM, path, "written");
      blocks.push_back(std::move(block));
    }
    bytes = std::max(bytes, to);
    return absl::OkStatus();
  }
  // Needs mutex; for bytes that are there. Calls copy(memory, bytes) for each run.
  template <typename Copy>
  void ForRuns(int64_t offset, int64_t size, Copy copy) {
    while (size > 0) {
      const int64_t begin = offset % kBlockBytes, run = std::min(size, kBlockBytes - begin);
      copy(blocks[static_cast<size_t>(offset / kBlockBytes)].memory() + begin, run);
      offset += run;
      size -= run;
    }
  }
};

absl::StatusOr<OpenFile> MemoryFiles::Create(const std::string& path) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto [found, created] = files_.try_emplace(path);
  if (!created) return FileError(EEXIST, path, "created");
  found->second = std::make_shared<FileContent>();
  found->second->used = UnixSeconds();
  return OpenFile(found->second, path);
}

absl::StatusOr<OpenFile> MemoryFiles::Open(const std::string& path, const char* done) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = files_.find(path);
  if (found == files_.end()) return FileError(ENOENT, path, done);
  return OpenFile(found->second, path);
}

absl::StatusOr<OpenFile> MemoryFiles::OpenToRead(const std::string& path) { return Open(path, "read"); }
absl::StatusOr<OpenFile> MemoryFiles::OpenToWrite(const std::string& path) { return Open(path, "written"); }

absl::Status MemoryFiles::Reserve(const OpenFile& file, int64_t bytes) {
  FileContent& content = *file.content();
  const std::lock_guard<std::mutex> lock(content.mutex);
  return content.GrowTo(bytes, file.path());
}

absl::Status MemoryFiles::Write(const OpenFile& file, int64_t offset, std::string_view bytes) {
  FileContent& content = *file.content();
  const std::lock_guard<std::mutex> lock(content.mutex);
  GF_RETURN_IF_ERROR(content.GrowTo(offset + static_cast<int64_t>(bytes.size()), file.path()));
  content.ForRuns(offset, static_cast<int64_t>(bytes.size()), [&](char* memory, int64_t size) {
    std::memcpy(memory, bytes.data(), static_cast<size_t>(size));
    bytes.remove_prefix(static_cast<size_t>(size));
  });
  return absl::OkStatus();
}

absl::Status MemoryFiles::Read(const OpenFile& file, int64_t offset, absl::Span<char> bytes) {
  FileContent& content = *file.content();
  const std::lock_guard<std::mutex> lock(content.mutex);
  if (static_cast<int64_t>(bytes.size()) > content.bytes - offset) return EndsAt(file.path(), content.bytes);
  content.ForRuns(offset, static_cast<int64_t>(bytes.size()), [&](const char* memory, int64_t size) {
    std::memcpy(bytes.data(), memory, static_cast<size_t>(size));
    bytes.remove_prefix(static_cast<size_t>(size));
  });
  return absl::OkStatus();
}

absl::Status MemoryFiles::Truncate(const OpenFile& file, int64_t bytes) {
  FileContent& content = *file.content();
  const std::lock_guard<std::mutex> lock(content.mutex);
  if (bytes > content.bytes) return content.GrowTo(bytes, file.path());
  content.bytes = bytes;
  const int64_t blocks = (bytes + kBlockBytes - 1) / kBlockBytes;
  content.blocks.erase(content.blocks.begin() + blocks, content.blocks.end());
  // What the file grows by later is zeros.
  if (bytes % kBlockBytes > 0) {
    std::memset(content.blocks.back().memory() + bytes % kBlockBytes, 0,
                static_cast<size_t>(kBlockBytes - bytes % kBlockBytes));
  }
  return absl::OkStatus();
}

absl::Status MemoryFiles::SyncData(const OpenFile& /*file*/) { return absl::OkStatus(); }

absl::Status MemoryFiles::Rename(const std::string& from, const std::string& to) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = files_.find(from);
  if (found == files_.end()) return FileError(ENOENT, from, "renamed");
  std::shared_ptr<FileContent> content = std::move(found->second);
  files_.erase(found);
  files_[to] = std::move(content);
  return absl::OkStatus();
}

absl::Status MemoryFiles::Remove(const std::string& path) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return files_.erase(path) > 0 ? absl::OkStatus() : FileError(ENOENT, path, "removed");
}

absl::Status MemoryFiles::SyncFolder(const std::string& /*path*/) { return absl::OkStatus(); }
absl::Status MemoryFiles::MakeFolder(const std::string& /*path*/) { return absl::OkStatus(); }

absl::StatusOr<std::vector<std::string>> MemoryFiles::NamesIn(const std::string& folder) {
  const std::string prefix = folder + "/";
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::string> names;
  for (const auto& [path, content] : files_) {
    if (path.compare(0, prefix.size(), prefix) != 0) continue;
    std::string name = path.substr(prefix.size());
    if (name.find('/') == std::string::npos) names.push_back(std::move(name));
  }
  return names;
}

absl::StatusOr<FileState> MemoryFiles::StateOf(const OpenFile& file) {
  FileContent& content = *file.content();
  const std::lock_guard<std::mutex> lock(content.mutex);
  return FileState{content.bytes, content.used, content.used};
}

void MemoryFiles::SetUsed(const std::string& path, int64_t unix_seconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = files_.find(path);
  if (found == files_.end()) return;
  const std::lock_guard<std::mutex> content_lock(found->second->mutex);
  found->second->used = unix_seconds;
}

}  // namespace goldfinch
