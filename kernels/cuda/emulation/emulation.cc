#include "kernels/cuda/emulation/emulation.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/emulation/block.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define GF_EMULATION_ASAN 1
#else
#define GF_EMULATION_ASAN 0
#endif

namespace goldfinch::emulation {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kSharedAlignment = 128;

// An asynchronous copy that has not happened yet.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  size_t zeros;
  uint64_t group;
};

// The asynchronous copies of one thread. Groups are numbered in the order in which they are committed.
struct AsyncCopies {
  std::vector<Copy> waiting;  // oldest first
  uint64_t committed = 0;
};

AsyncCopies& CopiesOf(unsigned thread) {
  static auto& copies = *new std::vector<AsyncCopies>(kThreadsMax);
  return copies[thread];
}

char* shared = nullptr;

#if GF_EMULATION_ASAN
// What the sanitizer keeps for the host and for the fibers, and where the host's stack is.
void* host_frames = nullptr;
void* fiber_frames = nullptr;
const void* host_stack = nullptr;
size_t host_stack_bytes = 0;
#endif

// --- Device memory ---------------------------------------------------------------------------------------------------

// By the address that the caller has.
std::map<void*, size_t>& Mappings() {
  static auto& mappings = *new std::map<void*, size_t>;
  return mappings;
}
int accesses = 0;
// Each allocation takes a system call to close and one to open, which is slow for whole models.
constexpr size_t kAlwaysClosed = 100;
constexpr uint32_t kSeldom = 64;
uint32_t left_open = 0;
bool open = false;
std::recursive_mutex& AccessMutex() {
  static auto& mutex = *new std::recursive_mutex;
  return mutex;
}

void Protect(int protection) {
  for (const auto& [memory, bytes] : Mappings()) GF_CHECK_EQ(mprotect(memory, bytes, protection), 0);
}

}  // namespace

void Run(const Dim3& grid, const Dim3& block_dim, size_t shared_bytes, const std::function<void()>& kernel) {
  const unsigned count = block_dim.x * block_dim.y * block_dim.z;
  GF_CHECK(count >= 1 && count <= kThreadsMax && count % kLanes == 0) << count << " threads in a block";
  GF_CHECK_LE(shared_bytes, 227u << 10);
  std::vector<char> memory(shared_bytes + kSharedAlignment);
  shared = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.data()) + kSharedAlignment - 1) /
                                   kSharedAlignment * kSharedAlignment);
  const auto call = [](const void* function) { (*static_cast<const std::function<void()>*>(function))(); };
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        std::memset(memory.data(), 0xFF, memory.size());
        for (unsigned i = 0; i < count; ++i) CopiesOf(i).waiting.clear();
        RunBlock({x, y, z}, block_dim, grid, call, &kernel);
      }
    }
  }
  shared = nullptr;
}

void* Shared() { return shared; }

void CopyAsync(void* to, const void* from, size_t bytes, size_t zeros) {
  AsyncCopies& copies = CopiesOf(CurrentThread());
  copies.waiting.push_back({to, from, bytes, zeros, copies.committed});
}
void CopyAsyncCommit() { ++CopiesOf(CurrentThread()).committed; }
void CopyAsyncWait(size_t newest) {
  AsyncCopies& copies = CopiesOf(CurrentThread());
  size_t done = 0;
  for (; done < copies.waiting.size() && copies.waiting[done].group + newest < copies.committed; ++done) {
    const Copy& copy = copies.waiting[done];
    if (copy.bytes > 0) std::memcpy(copy.to, copy.from, copy.bytes);
    std::memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.zeros);
  }
  copies.waiting.erase(copies.waiting.begin(), copies.waiting.begin() + static_cast<std::ptrdiff_t>(done));
}

// --- For block.cc ----------------------------------------------------------------------------------------------------

void* MapStacks(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  GF_CHECK(memory != MAP_FAILED);
  return memory;
}

// The sanitizer takes all fibers for one, because their stacks lie side by side.
#if GF_EMULATION_ASAN
void BeforeFibers(const void* stacks, size_t bytes) { __sanitizer_start_switch_fiber(&host_frames, stacks, bytes); }
void FibersBegin() { __sanitizer_finish_switch_fiber(fiber_frames, &host_stack, &host_stack_bytes); }
void FibersEnd() { __sanitizer_start_switch_fiber(&fiber_frames, host_stack, host_stack_bytes); }
void AfterFibers() { __sanitizer_finish_switch_fiber(host_frames, nullptr, nullptr); }
#else
void BeforeFibers(const void* /*stacks*/, size_t /*bytes*/) {}
void FibersBegin() {}
void FibersEnd() {}
void AfterFibers() {}
#endif

void FailDivergence(const char* operation, const char* other) {
  GF_CHECK(false) << "lanes of one warp meet in " << operation << " and " << other;
  std::abort();
}

void FailDeadlock(const Index& thread, const char* operation, int arrived) {
  GF_CHECK(false) << "thread (" << thread.thread.x << ", " << thread.thread.y << ") of block (" << thread.block.x
                  << ", " << thread.block.y << ") waits for ever at " << operation << ", with " << arrived
                  << " threads";
  std::abort();
}

void* Allocate(size_t bytes) {
  const std::lock_guard<std::recursive_mutex> lock(AccessMutex());
#if GF_EMULATION_ASAN
  constexpr size_t kMost = size_t{1} << 36;  // the sanitizer reports an error for requests beyond this
  void* memory = nullptr;
  if (bytes > kMost || posix_memalign(&memory, 256, std::max<size_t>(bytes, 1)) != 0) return nullptr;
  return std::memset(memory, 0, std::max<size_t>(bytes, 1));
#else
  const size_t pages = std::max<size_t>(1, (bytes + kPage - 1) / kPage) * kPage;
  // There is a page on either side that nobody may touch; the memory ends where the upper one begins.
  void* memory = mmap(nullptr, pages + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  void* const first = static_cast<char*>(memory) + kPage;
  Mappings()[first] = pages;
  GF_CHECK_EQ(mprotect(first, pages, open ? PROT_READ | PROT_WRITE : PROT_NONE), 0);
  return static_cast<char*>(first) + (pages - bytes) / 256 * 256;
#endif
}

void Free(void* memory) {
  const std::lock_guard<std::recursive_mutex> lock(AccessMutex());
#if GF_EMULATION_ASAN
  std::free(memory);
#else
  const auto mapping = std::prev(Mappings().upper_bound(memory));
  GF_CHECK_EQ(munmap(static_cast<char*>(mapping->first) - kPage, mapping->second + 2 * kPage), 0);
  Mappings().erase(mapping);
#endif
}

Access::Access() {
  AccessMutex().lock();
  if (accesses++ == 0 && !open) {
    Protect(PROT_READ | PROT_WRITE);
    open = true;
  }
}
Access::~Access() {
  if (--accesses == 0 && (Mappings().size() <= kAlwaysClosed || ++left_open % kSeldom == 0)) {
    Protect(PROT_NONE);
    open = false;
  }
  AccessMutex().unlock();
}

}  // namespace goldfinch::emulation
