// Runs device code on the CPU, for tests of the logic of kernels on machines without a GPU, also under the address
// sanitizer. It shows nothing about speed, and little about the memory model.
//
// Every thread of a block is a fiber. A fiber runs until it reaches a barrier or a warp operation; then others run, in
// an order that always changes (it is seeded, so it can be repeated). Blocks run one after the other. This finds:
//   - a missing barrier: threads run far ahead of each other;
//   - use of shared memory that was not written: it is NaN at first;
//   - use of asynchronous copies before they were waited for: they happen as late as possible;
//   - warp operations and barriers that not all threads reach: the program ends with a message;
//   - reads and writes outside of allocations: by the address sanitizer, or because the pages around are protected;
//   - the host touching device memory: only kernels and copies can read or write it.
#ifndef GOLDFINCH_KERNELS_CUDA_EMULATION_EMULATION_H_
#define GOLDFINCH_KERNELS_CUDA_EMULATION_EMULATION_H_

#include <cstddef>
#include <cstdint>
#include <functional>

namespace goldfinch::emulation {

struct Dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
  constexpr Dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}  // NOLINT: as CUDA's dim3
};

// Indices of the thread that runs.
struct Index {
  Dim3 thread;
  Dim3 block;
  Dim3 block_dim;
  Dim3 grid_dim;
};
extern const Index* index;

// Runs the kernel in every thread of every block. The number of threads of a block must be a multiple of 32, at most
// 1024.
void Run(const Dim3& grid, const Dim3& block, size_t shared_bytes, const std::function<void()>& kernel);

// --- For device code: see device.h -----------------------------------------------------------------------------------

void* Shared();
void BlockBarrier();
void WarpBarrier();

constexpr size_t kExchangeBytes = 32;
// Every lane of the warp gives `bytes`, and gets a pointer to the bytes of all lanes, kExchangeBytes apart, which is
// valid until the warp's next exchange but one. `operation` must be the same in all lanes. The lane that arrives last
// calls `combine`, if there is one, which replaces the given bytes by those that the lanes get.
const char* Exchange(const char* operation, const void* given, size_t bytes, void (*combine)(char* all) = nullptr);
// Returns what the lane `from` gives.
uint64_t FromLane(const char* operation, uint64_t given, int from);
uint32_t Ballot(bool condition);
// Sum and maximum over the warp, by the additions and comparisons of ShflXor with 16, 8, 4, 2 and 1.
float WarpSum(float x);
float WarpMax(float x);
int Lane();

void CopyAsync(void* to, const void* from, size_t bytes, size_t zeros);
void CopyAsyncCommit();
void CopyAsyncWait(size_t newest);

// --- Device memory ---------------------------------------------------------------------------------------------------

// Zeroed; null if there is not enough memory.
void* Allocate(size_t bytes);
void Free(void* memory);
// As long as one exists, its thread may touch device memory, and no other thread may. Run needs one.
class Access {
 public:
  Access();
  ~Access();
  Access(const Access&) = delete;
  Access& operator=(const Access&) = delete;
};

}  // namespace goldfinch::emulation

#endif  // GOLDFINCH_KERNELS_CUDA_EMULATION_EMULATION_H_
