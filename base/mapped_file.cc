#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <functional>
#include <list>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/safe_text.h"

namespace goldfinch {
namespace {

constexpr size_t kSamples = 64;
constexpr size_t kSampleBytes = 4096;

bool SameTime(const timespec& a, const timespec& b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

absl::Status Changed(const std::string& path, const std::string& how) {
  return absl::DataLossError(absl::StrCat(path, ": was changed while it was in use: ", how,
                                          ". Replace a file by renaming another one over it"));
}

// ---- What the handler of SIGBUS reads. It may interrupt anything, so that it takes no lock and no memory.

struct MappedRange {
  std::atomic<uintptr_t> begin = 0;  // 0: not in use; set last
  size_t bytes = 0;
  int file = -1;
  char path[512] = {};  // as SafeText
};

// Files beyond these are not named when reading them faults.
std::array<MappedRange, 2048> mapped_ranges;
std::mutex mapped_ranges_mutex;  // of those who write to it

void AddRange(std::string_view bytes, int file, const std::string& path) {
  const std::lock_guard<std::mutex> lock(mapped_ranges_mutex);
  for (MappedRange& range : mapped_ranges) {
    if (range.begin != 0) continue;
    range.bytes = bytes.size();
    range.file = file;
    const std::string printable = SafeText(path, sizeof(range.path) - 1);
    printable.copy(range.path, printable.size());
    range.path[printable.size()] = '\0';
    range.begin.store(reinterpret_cast<uintptr_t>(bytes.data()), std::memory_order_release);
    return;
  }
}

void RemoveRange(std::string_view bytes) {
  const std::lock_guard<std::mutex> lock(mapped_ranges_mutex);
  for (MappedRange& range : mapped_ranges) {
    if (range.begin == reinterpret_cast<uintptr_t>(bytes.data())) range.begin = 0;
  }
}

// A text that is put together without allocating.
class SignalSafeText {
 public:
  SignalSafeText& operator<<(const char* text) {
    while (*text != '\0' && size_ < sizeof(text_)) text_[size_++] = *text++;
    return *this;
  }
  SignalSafeText& operator<<(uint64_t number) {
    char digits[21] = {};
    char* first = digits + sizeof(digits) - 1;
    do {
      *--first = static_cast<char>('0' + number % 10);
      number /= 10;
    } while (number != 0);
    return *this << first;
  }
  void Write(int file) const {
    [[maybe_unused]] const ssize_t written = write(file, text_, size_);  // there is nobody to tell
  }

 private:
  char text_[1024];
  size_t size_ = 0;
};

void OnFault(int signal, siginfo_t* info, void* /*context*/) {
  // Other threads may fault at the same place; the process must not end before the line is written.
  static std::atomic_flag reported = ATOMIC_FLAG_INIT;
  if (reported.test_and_set()) {
    for (;;) pause();
  }
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const MappedRange& range : mapped_ranges) {
    const uintptr_t begin = range.begin.load(std::memory_order_acquire);
    if (info->si_code <= 0 || begin == 0 || address < begin || address - begin >= range.bytes) continue;
    SignalSafeText text;
    text << "goldfinch: " << range.path << ": cannot be read at byte " << address - begin << ": ";
    struct stat now = {};
    if (fstat(range.file, &now) == 0 && static_cast<uint64_t>(now.st_size) < range.bytes) {
      text << "it was cut short while it was in use, to " << static_cast<uint64_t>(now.st_size) << " bytes from "
           << range.bytes << ". Replace a file by renaming another one over it";
    } else {
      text << "its disk or the network to it has failed";
    }
    text << ". This process ends\n";
    text.Write(STDERR_FILENO);
    break;
  }
  // Reading again, on return, ends the process; a signal that another process has sent does not come again by itself.
  std::signal(signal, SIG_DFL);
  if (info->si_code <= 0) raise(signal);
}

}  // namespace

// What a mapping was made from.
struct MappedFile::Source {
  // Takes the descriptor.
  Source(std::string path, int file) : path(std::move(path)), file(file) {}
  ~Source() { close(file); }
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;

  absl::Status CheckUnchanged() const {
    struct stat now = {};
    if (fstat(file, &now) != 0) return absl::ErrnoToStatus(errno, path);
    if (now.st_size != size) return Changed(path, absl::StrCat("it has ", now.st_size, " bytes and had ", size));
    if (!SameTime(now.st_mtim, time)) return Changed(path, "it was written to");
    return absl::OkStatus();
  }

  // For one thread at a time.
  absl::Status CheckSamples() {
    std::vector<size_t> now;
    std::vector<char> bytes(kSampleBytes);
    const int64_t last = std::max<int64_t>(0, size - static_cast<int64_t>(kSampleBytes));
    for (size_t i = 0; i < kSamples; ++i) {
      // Read and not looked at in the mapping: a file that is cut short meanwhile must not end the process here.
      const auto offset = static_cast<int64_t>(static_cast<double>(last) * static_cast<double>(i) / (kSamples - 1));
      const ssize_t count = pread(file, bytes.data(), bytes.size(), offset);
      if (count < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot be read at byte ", offset));
      now.push_back(std::hash<std::string_view>()({bytes.data(), static_cast<size_t>(count)}));
    }
    if (samples.empty()) samples = now;
    return now == samples ? absl::OkStatus() : Changed(path, "its bytes are not those that were read");
  }

  // All that are mapped. Never destroyed: files may be unmapped at the very end.
  struct Registry {
    std::mutex mutex;
    std::list<std::weak_ptr<Source>> sources;
  };
  static Registry& Mapped() {
    static Registry* const mapped = new Registry;
    return *mapped;
  }

  const std::string path;
  const int file;
  int64_t size = 0;
  timespec time = {};           // of the last change before it was opened
  std::vector<size_t> samples;  // hashes; empty before the first look
};

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  // Non-blocking, so that a pipe without a writer is an error and not a hang.
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return absl::ErrnoToStatus(errno, path);
  auto source = std::make_shared<Source>(path, file);
  struct stat info;
  if (fstat(file, &info) != 0) return absl::ErrnoToStatus(errno, path);
  if (S_ISDIR(info.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, ": is a directory, not a file"));
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, ": is not a regular file"));
  if (info.st_size == 0) return absl::InvalidArgumentError(absl::StrCat(path, ": is empty"));
  const size_t size = static_cast<size_t>(info.st_size);
  void* address = mmap(nullptr, size, PROT_READ, MAP_SHARED, file, 0);
  if (address == MAP_FAILED) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot map ", size, " bytes"));
  source->size = info.st_size;
  source->time = info.st_mtim;
  return MappedFile(std::string_view(static_cast<const char*>(address), size), std::move(source));
}

MappedFile::MappedFile(std::string_view bytes, std::shared_ptr<Source> source)
    : bytes_(bytes), source_(std::move(source)) {
  AddRange(bytes_, source_->file, source_->path);
  Source::Registry& mapped = Source::Mapped();
  const std::lock_guard<std::mutex> lock(mapped.mutex);
  mapped.sources.emplace_back(source_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : bytes_(std::exchange(other.bytes_, {})), source_(std::move(other.source_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  std::swap(source_, other.source_);
  return *this;
}

MappedFile::~MappedFile() {
  if (bytes_.empty()) return;
  RemoveRange(bytes_);
  munmap(const_cast<char*>(bytes_.data()), bytes_.size());
}

absl::Status MappedFile::CheckUnchanged() const {
  GF_CHECK(source_ != nullptr) << "the file was moved from";
  return source_->CheckUnchanged();
}

absl::Status MappedFile::CheckAllUnchanged() {
  std::vector<std::shared_ptr<Source>> sources;
  {
    Source::Registry& mapped = Source::Mapped();
    const std::lock_guard<std::mutex> lock(mapped.mutex);
    mapped.sources.remove_if([](const std::weak_ptr<Source>& source) { return source.expired(); });
    for (const std::weak_ptr<Source>& source : mapped.sources) {
      if (auto one = source.lock()) sources.push_back(std::move(one));
    }
  }
  static std::mutex looking;  // guards the samples
  const std::lock_guard<std::mutex> lock(looking);
  for (const std::shared_ptr<Source>& source : sources) {
    if (absl::Status status = source->CheckUnchanged(); !status.ok()) return status;
    if (absl::Status status = source->CheckSamples(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

void MappedFile::ReportFaults() {
  struct sigaction action = {};
  action.sa_sigaction = OnFault;
  action.sa_flags = SA_SIGINFO;
  GF_CHECK_EQ(sigaction(SIGBUS, &action, nullptr), 0);
}

namespace {

// Gives the advice for every page that holds a byte of `part`.
void Advise(std::string_view part, int advice) {
  static const uintptr_t page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(part.data()) / page_bytes * page_bytes;
  const uintptr_t end = reinterpret_cast<uintptr_t>(part.data()) + part.size();
  madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

}  // namespace

void MappedFile::WillNeed(std::string_view part) { Advise(part, MADV_WILLNEED); }

void MappedFile::DontNeed(std::string_view part) { Advise(part, MADV_DONTNEED); }

}  // namespace goldfinch
