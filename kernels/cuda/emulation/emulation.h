// Runs device code on the CPU, for tests of the logic of kernels on machines without a GPU, also under the address
// sanitizer. It shows nothing about speed, and little about the memory model.
//
// Every thread of a block is a fiber. A fiber runs until it reaches a barrier or a warp operation, then others run, in
// an order that changes all the time (seeded, so repeatable); blocks run one after the other. It detects
//   - missing barriers, because threads run far ahead of each other;
//   - use of shared memory that was not written, because it is NaN at first;
//   - use of asynchronous copies before they were waited for, because they happen as late as possible;
//   - warp operations and barriers that not all threads reach, which end the process with a message;
//   - reads and writes outside of allocations, by the address sanitizer or by protected pages around them;
//   - access of the host to device memory, which only kernels and copies can read or write.
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

// The index of the thread that runs.
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

// --- For device code: see device.h ----------------------------------------------------------------------------------

void* Shared();
void BlockBarrier();
void WarpBarrier();

constexpr size_t kExchangeBytes = 32;
// Every lane of the warp passes `bytes` bytes. Returns those of all lanes, kExchangeBytes apart, which stay valid until
// the warp's next exchange but one. `operation` must be the same in all lanes.
const char* Exchange(const char* operation, const void* given, size_t bytes);
int Lane();

void CopyAsync(void* to, const void* from, size_t bytes, size_t zeros);
void CopyAsyncCommit();
void CopyAsyncWait(size_t newest);

// --- Device memory --------------------------------------------------------------------------------------------------

// Zeroed memory, or null if there is not enough.
void* Allocate(size_t bytes);
void Free(void* memory);
// During the lifetime of one, this thread of the host may access device memory, and no other may. Run needs one.
class Access {
 public:
  Access();
  ~Access();
  Access(const Access&) = delete;
  Access& operator=(const Access&) = delete;
};

}  // namespace goldfinch::emulation

#endif  // GOLDFINCH_KERNELS_CUDA_EMULATION_EMULATION_H_
