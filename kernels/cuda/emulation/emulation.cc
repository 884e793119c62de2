#include "kernels/cuda/emulation/emulation.h"

#include <sys/mman.h>

#include <algorithm>
#include <boost/context/fiber.hpp>
#include <boost/context/preallocated.hpp>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <utility>
#include <vector>

#include "base/check.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define GF_EMULATION_ASAN 1
#else
#define GF_EMULATION_ASAN 0
#endif

namespace goldfinch::emulation {
namespace {

namespace context = boost::context;

constexpr int kLanes = 32;
constexpr unsigned kThreadsMax = 1024;
constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kPage = 4096;

// Stacks live as long as the process; fiber i always has stack i. Each block starts its threads anew.
char* StackOf(unsigned thread) {
  static char* const stacks = [] {
    void* memory = mmap(nullptr, kThreadsMax * kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    GF_CHECK(memory != MAP_FAILED);
    return static_cast<char*>(memory);
  }();
  return stacks + thread * kStackBytes;
}

// Gives a fiber a stack that exists already, and does not free it.
struct BorrowedStack {
  context::stack_context allocate() { return {}; }
  void deallocate(context::stack_context&) {}
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  size_t zeros;
};

// A thread that waits at the barrier goes on when the number of rounds has grown.
struct Barrier {
  int arrived = 0;
  uint64_t rounds = 0;
};

struct Warp {
  Barrier barrier;
  const char* operation = "";
  int turn = 0;
  char exchange[2][kLanes][kExchangeBytes];
};

struct Thread {
  Index index;
  int lane = 0;
  Warp* warp = nullptr;
  const Barrier* waits_at = nullptr;
  uint64_t waits_round = 0;
  int exchanges = 0;
  bool done = false;
  std::vector<std::vector<Copy>> copies = {{}};  // groups of copies; the last one is not committed
  context::fiber fiber;
  context::fiber* scheduler = nullptr;  // what continues when this fiber waits; on its stack
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barrier;
  int alive = 0;
  std::vector<char> shared;
  char* shared_aligned = nullptr;
};

Block* block = nullptr;
Thread* current = nullptr;
uint64_t random_state = 1;

uint32_t Random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<uint32_t>(random_state >> 32);
}

#if GF_EMULATION_ASAN
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
#endif

// Switches from a thread to the scheduler. With `ends` the thread is not resumed.
void LeaveThread(bool ends) {
#if GF_EMULATION_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(ends ? nullptr : &fake, scheduler_stack, scheduler_stack_bytes);
#endif
  if (ends) return;
  context::fiber& scheduler = *current->scheduler;
  scheduler = std::move(scheduler).resume();
#if GF_EMULATION_ASAN
  __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

void Pass(Barrier& barrier) {
  barrier.arrived = 0;
  ++barrier.rounds;
}

void WaitAt(Barrier& barrier, int expected) {
  if (++barrier.arrived == expected) {
    Pass(barrier);
    return;
  }
  current->waits_at = &barrier;
  current->waits_round = barrier.rounds;
  LeaveThread(false);
  current->waits_at = nullptr;
}

void ResumeThread(Thread& thread, unsigned number) {
  current = &thread;
  index = &thread.index;
#if GF_EMULATION_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, StackOf(number), kStackBytes);
#else
  (void)number;
#endif
  thread.fiber = std::move(thread.fiber).resume();
#if GF_EMULATION_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void StartThread(Thread& thread, unsigned number, const std::function<void()>& kernel) {
  char* const stack = StackOf(number);
  context::stack_context stack_context;
  stack_context.size = kStackBytes;
  stack_context.sp = stack + kStackBytes;
  thread.fiber =
      context::fiber(std::allocator_arg, context::preallocated(stack + kStackBytes, kStackBytes, stack_context),
                     BorrowedStack(), [&thread, &kernel](context::fiber&& from) {
#if GF_EMULATION_ASAN
                       __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
                       thread.scheduler = &from;
                       kernel();
                       thread.done = true;
                       --block->alive;
                       LeaveThread(true);
                       return std::move(from);
                     });
}

void CheckProgress(bool progress) {
  if (progress) return;
  for (const Thread& thread : block->threads) {
    if (thread.done) continue;
    const bool at_block = thread.waits_at == &block->barrier;
    GF_CHECK(false) << "thread (" << thread.index.thread.x << ", " << thread.index.thread.y << ") of block ("
                    << thread.index.block.x << ", " << thread.index.block.y << ") waits for ever at "
                    << (at_block ? "__syncthreads" : thread.warp->operation) << ", with " << thread.waits_at->arrived
                    << " threads";
  }
}

// Runs every lane of the warp that is able to, in some order, up to where it waits next. Returns false if none is.
bool StepWarp(unsigned warp) {
  bool progress = false;
  const unsigned first = Random() % kLanes, stride = Random() % kLanes | 1;  // odd, so that all are visited
  for (unsigned i = 0; i < kLanes; ++i) {
    const unsigned number = warp * kLanes + (first + i * stride) % kLanes;
    Thread& thread = block->threads[number];
    if (thread.done || (thread.waits_at != nullptr && thread.waits_at->rounds == thread.waits_round)) continue;
    progress = true;
    ResumeThread(thread, number);
    // Nobody waits for lanes that have ended.
    if (thread.done && block->alive > 0 && block->barrier.arrived == block->alive) Pass(block->barrier);
  }
  return progress;
}

void RunBlock(const std::function<void()>& kernel) {
  const auto count = static_cast<unsigned>(block->threads.size());
  for (unsigned i = 0; i < count; ++i) StartThread(block->threads[i], i, kernel);
  block->alive = static_cast<int>(count);
  const auto warps = static_cast<unsigned>(block->warps.size());
  std::vector<unsigned> order(warps);
  std::iota(order.begin(), order.end(), 0);
  while (block->alive > 0) {
    bool progress = false;
    for (unsigned i = warps; i > 1; --i) std::swap(order[i - 1], order[Random() % i]);
    // Warps run side by side, or one runs as far ahead of the others as barriers let it.
    const bool ahead = Random() % 4 != 0;
    for (const unsigned warp : order) {
      while (StepWarp(warp)) {
        progress = true;
        if (!ahead) break;
      }
    }
    CheckProgress(progress);
  }
}

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
bool open = false;
std::recursive_mutex& AccessMutex() {
  static auto& mutex = *new std::recursive_mutex;
  return mutex;
}

void Protect(int protection) {
  for (const auto& [memory, bytes] : Mappings()) GF_CHECK_EQ(mprotect(memory, bytes, protection), 0);
}

}  // namespace

const Index* index = nullptr;

void Run(const Dim3& grid, const Dim3& block_dim, size_t shared_bytes, const std::function<void()>& kernel) {
  const unsigned count = block_dim.x * block_dim.y * block_dim.z;
  GF_CHECK(count >= 1 && count <= kThreadsMax && count % kLanes == 0) << count << " threads in a block";
  GF_CHECK_LE(shared_bytes, 227u << 10);
  Block running;
  running.shared.resize(shared_bytes + 128);
  running.shared_aligned =
      reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(running.shared.data()) + 127) / 128 * 128);
  running.warps.resize(count / kLanes);
  block = &running;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        std::memset(running.shared.data(), 0xFF, running.shared.size());
        running.threads = std::vector<Thread>(count);
        for (unsigned i = 0; i < count; ++i) {
          Thread& thread = running.threads[i];
          thread.index = {{i % block_dim.x, i / block_dim.x % block_dim.y, i / block_dim.x / block_dim.y},
                          {x, y, z},
                          block_dim,
                          grid};
          thread.lane = static_cast<int>(i % kLanes);
          thread.warp = &running.warps[i / kLanes];
        }
        RunBlock(kernel);
      }
    }
  }
  block = nullptr;
  current = nullptr;
  index = nullptr;
}

void* Shared() { return block->shared_aligned; }

void BlockBarrier() { WaitAt(block->barrier, block->alive); }

void WarpBarrier() {
  current->warp->operation = "__syncwarp";
  WaitAt(current->warp->barrier, kLanes);
}

const char* Exchange(const char* operation, const void* given, size_t bytes) {
  GF_CHECK_LE(bytes, kExchangeBytes);
  Warp& warp = *current->warp;
  if (warp.barrier.arrived == 0) warp.operation = operation;
  GF_CHECK(std::strcmp(warp.operation, operation) == 0)
      << "lanes of one warp meet in " << warp.operation << " and " << operation;
  auto& places = warp.exchange[current->exchanges++ % 2];
  std::memcpy(places[current->lane], given, bytes);
  WaitAt(warp.barrier, kLanes);
  return places[0];
}

int Lane() { return current->lane; }

void CopyAsync(void* to, const void* from, size_t bytes, size_t zeros) {
  current->copies.back().push_back({to, from, bytes, zeros});
}
void CopyAsyncCommit() { current->copies.emplace_back(); }
void CopyAsyncWait(size_t newest) {
  auto& copies = current->copies;
  while (copies.size() - 1 > newest) {
    for (const Copy& copy : copies.front()) {
      if (copy.bytes > 0) std::memcpy(copy.to, copy.from, copy.bytes);
      std::memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.zeros);
    }
    copies.erase(copies.begin());
  }
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
  if (--accesses == 0 && (Mappings().size() <= kAlwaysClosed || Random() % kSeldom == 0)) {
    Protect(PROT_NONE);
    open = false;
  }
  AccessMutex().unlock();
}

}  // namespace goldfinch::emulation
