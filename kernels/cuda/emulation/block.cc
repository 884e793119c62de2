#include "kernels/cuda/emulation/block.h"

#include <boost/context/fiber.hpp>
#include <boost/context/preallocated.hpp>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

namespace goldfinch::emulation {
namespace {

namespace context = boost::context;

constexpr unsigned kWarpsMax = kThreadsMax / kLanes;
constexpr uint32_t kAllLanes = ~uint32_t{0};
constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kStacksBytes = kThreadsMax * kStackBytes;

struct Thread;

// A stack and what is suspended on it. The host, which calls RunBlock, counts as a fiber on its own stack.
struct Fiber {
  context::fiber suspended;
  Thread* starts = nullptr;  // the thread that a free fiber runs next
};

enum class WaitsAt { kWarp, kBlock };

struct Warp {
  int arrived = 0;  // lanes that wait in the current operation
  const char* operation = "";
  uint32_t alive = 0;  // a bit for each lane
  uint32_t ready = 0;  // the lanes of `alive` that do not wait
  char exchange[2][kLanes][kExchangeBytes];
};

struct Thread {
  Index index;
  unsigned number = 0;
  unsigned lane = 0;
  Warp* warp = nullptr;
  WaitsAt waits_at = WaitsAt::kWarp;
  unsigned exchanges = 0;
  Fiber* fiber = nullptr;  // null until the thread has begun
};

// Gives a fiber a stack that exists already, and does not free it.
struct BorrowedStack {
  context::stack_context allocate() { return {}; }
  void deallocate(context::stack_context&) {}
};

// The block that runs; there is one at a time.
struct Block {
  Thread threads[kThreadsMax];
  Warp warps[kWarpsMax];
  unsigned warp_count = 0;
  int alive = 0;
  int arrived = 0;  // threads that wait at the block's barrier
  void (*kernel)(const void*) = nullptr;
  const void* argument = nullptr;

  // State of the scheduler, which goes in rounds over all warps, and in sweeps over the lanes of one.
  unsigned order[kWarpsMax];
  unsigned position = 0;        // in `order`
  bool ahead = false;           // whether a warp is swept again for as long as one of its lanes can run
  bool round_progress = false;  // whether a thread has run in this round
  bool sweep_progress = false;
  unsigned swept = 0;  // number of lanes that this sweep has visited
  unsigned first = 0;
  unsigned stride = 1;
};

Block block;
Thread* current = nullptr;

Fiber* const host = new Fiber;
Fiber* running = host;
Fiber* left = nullptr;  // the fiber that was running before
// Fibers and their stacks live as long as the process. A fiber is free if no thread is suspended on it.
Fiber* const fibers = new Fiber[kThreadsMax];
unsigned fiber_count = 0;
Fiber* free_fibers[kThreadsMax];
unsigned free_count = 0;

uint64_t random_state = 1;

uint32_t Random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<uint32_t>(random_state >> 32);
}

// --- Who runs next --------------------------------------------------------------------------------------------------

void BeginSweep() {
  block.swept = 0;
  block.sweep_progress = false;
  block.first = Random() % kLanes;
  block.stride = Random() % kLanes | 1;  // odd, so that all are visited
}

void BeginRound() {
  for (unsigned i = block.warp_count; i > 1; --i) std::swap(block.order[i - 1], block.order[Random() % i]);
  // Warps run side by side, or one runs as far ahead of the others as barriers let it.
  block.ahead = Random() % 4 != 0;
  block.position = 0;
  block.round_progress = false;
  BeginSweep();
}

// Returns the next thread that can run, in some order, or null if none can.
Thread* NextThread() {
  for (;;) {
    const unsigned number = block.order[block.position];
    const Warp& warp = block.warps[number];
    if (block.alive == 0) return nullptr;
    while (warp.ready != 0 && block.swept < kLanes) {
      const unsigned lane = (block.first + block.swept++ * block.stride) % kLanes;
      if ((warp.ready >> lane & 1) == 0) continue;
      block.sweep_progress = block.round_progress = true;
      return &block.threads[number * kLanes + lane];
    }
    if (block.ahead && block.sweep_progress && warp.ready != 0) {
      BeginSweep();
      continue;
    }
    if (++block.position < block.warp_count) {
      BeginSweep();
      continue;
    }
    if (!block.round_progress) return nullptr;
    BeginRound();
  }
}

// --- Fibers ---------------------------------------------------------------------------------------------------------

void SwitchTo(Fiber& fiber) {
  left = running;
  running = &fiber;
  if (&fiber == host) FibersEnd();
  context::fiber from = std::move(fiber.suspended).resume();
  left->suspended = std::move(from);
  if (left == host) FibersBegin();
}

Fiber& MakeFiber();

// Switches to the thread, or to the host if it is null.
void SwitchToThread(Thread* thread) {
  if (thread == nullptr) return SwitchTo(*host);
  if (thread->fiber != nullptr) {
    current = thread;
    index = &thread->index;
    return SwitchTo(*thread->fiber);
  }
  Fiber& fiber = free_count > 0 ? *free_fibers[--free_count] : MakeFiber();
  fiber.starts = thread;
  SwitchTo(fiber);
}

void PassBlockBarrier() {
  block.arrived = 0;
  for (unsigned i = 0; i < block.warp_count; ++i) block.warps[i].ready = block.warps[i].alive;
}

void RunThread(Thread& thread, Fiber& fiber) {
  current = &thread;
  index = &thread.index;
  thread.fiber = &fiber;
  block.kernel(block.argument);
  Warp& warp = *thread.warp;
  warp.alive &= ~(uint32_t{1} << thread.lane);
  warp.ready &= warp.alive;
  // Nobody waits for threads that have ended.
  if (--block.alive > 0 && block.arrived == block.alive) PassBlockBarrier();
}

// Runs threads one after the other for as long as none of them is suspended on another fiber.
[[noreturn]] void RunFiber(Fiber& fiber) {
  for (;;) {
    Thread* thread = fiber.starts;
    do {
      RunThread(*thread, fiber);
      thread = NextThread();
    } while (thread != nullptr && thread->fiber == nullptr);
    free_fibers[free_count++] = &fiber;
    SwitchToThread(thread);
  }
}

char* Stacks() {
  static char* const stacks = static_cast<char*>(MapStacks(kStacksBytes));
  return stacks;
}

Fiber& MakeFiber() {
  Fiber& fiber = fibers[fiber_count++];
  context::stack_context stack;
  stack.size = kStackBytes;
  stack.sp = Stacks() + fiber_count * kStackBytes;
  fiber.suspended = context::fiber(std::allocator_arg, context::preallocated(stack.sp, stack.size, stack),
                                   BorrowedStack(), [&fiber](context::fiber&& from) -> context::fiber {
                                     left->suspended = std::move(from);
                                     if (left == host) FibersBegin();
                                     RunFiber(fiber);
                                   });
  return fiber;
}

void Wait(WaitsAt waits_at) {
  current->waits_at = waits_at;
  current->warp->ready &= ~(uint32_t{1} << current->lane);
  SwitchToThread(NextThread());
}

// Returns whether the lane is the last one to arrive. Then all lanes can go on.
bool ArriveInWarp(Warp& warp) {
  if (++warp.arrived < kLanes) return false;
  warp.arrived = 0;
  warp.ready = warp.alive;
  return true;
}

// Begins an operation of the current lane. Returns where lane 0 puts what it gives; the others follow.
char* PlacesOf(Warp& warp, const char* operation) {
  if (warp.arrived == 0) warp.operation = operation;
  if (warp.operation != operation && std::strcmp(warp.operation, operation) != 0) {
    FailDivergence(warp.operation, operation);
  }
  return warp.exchange[current->exchanges++ % 2][0];
}

// Returns when all lanes have put what they give into `places` and `combine` has been called.
void Meet(Warp& warp, char* places, void (*combine)(char*)) {
  if (!ArriveInWarp(warp)) {
    Wait(WaitsAt::kWarp);
  } else if (combine != nullptr) {
    combine(places);
  }
}

// Combines the numbers of all lanes as ShflXor with 16, 8, 4, 2 and 1 does, which gives all lanes the same result.
template <typename T, typename Combine>
T Reduce(const char* operation, T given, Combine) {
  Warp& warp = *current->warp;
  char* const places = PlacesOf(warp, operation);
  std::memcpy(places + current->lane * kExchangeBytes, &given, sizeof(given));
  Meet(warp, places, [](char* all) {
    T values[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) std::memcpy(&values[lane], all + lane * kExchangeBytes, sizeof(T));
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int lane = 0; lane < half; ++lane) values[lane] = Combine()(values[lane], values[lane + half]);
    }
    std::memcpy(all, &values[0], sizeof(T));
  });
  T result;
  std::memcpy(&result, places, sizeof(result));
  return result;
}

void StartBlock(const Dim3& place, const Dim3& block_dim, const Dim3& grid_dim) {
  const unsigned count = block_dim.x * block_dim.y * block_dim.z;
  block.warp_count = count / kLanes;
  block.alive = static_cast<int>(count);
  block.arrived = 0;
  for (unsigned i = 0; i < block.warp_count; ++i) {
    Warp& warp = block.warps[i];
    warp.alive = warp.ready = kAllLanes;
    warp.arrived = 0;
    block.order[i] = i;
  }
  Dim3 at(0, 0, 0);
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = block.threads[i];
    thread.index = {at, place, block_dim, grid_dim};
    thread.number = i;
    thread.lane = i % kLanes;
    thread.warp = &block.warps[i / kLanes];
    thread.exchanges = 0;
    thread.fiber = nullptr;
    if (++at.x < block_dim.x) continue;
    at.x = 0;
    if (++at.y < block_dim.y) continue;
    at.y = 0;
    ++at.z;
  }
  BeginRound();
}

void FailWaiting() {
  for (unsigned i = 0; i < block.warp_count * kLanes; ++i) {
    const Thread& thread = block.threads[i];
    const Warp& warp = *thread.warp;
    if ((warp.alive >> thread.lane & 1) == 0) continue;
    if (thread.waits_at == WaitsAt::kBlock) FailDeadlock(thread.index, "__syncthreads", block.arrived);
    FailDeadlock(thread.index, warp.operation, warp.arrived);
  }
}

}  // namespace

const Index* index = nullptr;

void RunBlock(const Dim3& place, const Dim3& block_dim, const Dim3& grid_dim, void (*kernel)(const void*),
              const void* argument) {
  block.kernel = kernel;
  block.argument = argument;
  StartBlock(place, block_dim, grid_dim);
  BeforeFibers(Stacks(), kStacksBytes);
  SwitchToThread(NextThread());
  AfterFibers();
  if (block.alive > 0) FailWaiting();
  current = nullptr;
  index = nullptr;
}

unsigned CurrentThread() { return current->number; }

void BlockBarrier() {
  if (++block.arrived == block.alive) return PassBlockBarrier();
  Wait(WaitsAt::kBlock);
}

void WarpBarrier() {
  Warp& warp = *current->warp;
  warp.operation = "__syncwarp";
  if (!ArriveInWarp(warp)) Wait(WaitsAt::kWarp);
}

const char* Exchange(const char* operation, const void* given, size_t bytes, void (*combine)(char*)) {
  Warp& warp = *current->warp;
  char* const places = PlacesOf(warp, operation);
  char* const place = places + current->lane * kExchangeBytes;
  // memcpy of a constant size is not a call, which the address sanitizer would intercept.
  switch (bytes) {
    case 8:
      std::memcpy(place, given, 8);
      break;
    case 24:
      std::memcpy(place, given, 24);
      break;
    default:
      std::memcpy(place, given, bytes);
  }
  Meet(warp, places, combine);
  return places;
}

uint64_t FromLane(const char* operation, uint64_t given, int from) {
  Warp& warp = *current->warp;
  char* const places = PlacesOf(warp, operation);
  std::memcpy(places + current->lane * kExchangeBytes, &given, sizeof(given));
  Meet(warp, places, nullptr);
  uint64_t other;
  std::memcpy(&other, places + static_cast<size_t>(from) * kExchangeBytes, sizeof(other));
  return other;
}

uint32_t Ballot(bool condition) {
  return Reduce<uint32_t>("Ballot", condition ? uint32_t{1} << current->lane : 0,
                          [](uint32_t a, uint32_t b) { return a | b; });
}

float WarpSum(float x) {
  return Reduce("WarpSum", x, [](float a, float b) { return a + b; });
}

float WarpMax(float x) {
  return Reduce("WarpMax", x, [](float a, float b) { return std::fmax(a, b); });
}

int Lane() { return static_cast<int>(current->lane); }

}  // namespace goldfinch::emulation
