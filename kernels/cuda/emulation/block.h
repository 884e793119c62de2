// The threads of a block as fibers: which of them runs, and which wait for which. See emulation.h for the purpose.
//
// This is the innermost loop of the emulation, so block.cc is compiled without sanitizers. It does not touch the memory
// of kernels; it touches only values that lanes exchange.
#ifndef GOLDFINCH_KERNELS_CUDA_EMULATION_BLOCK_H_
#define GOLDFINCH_KERNELS_CUDA_EMULATION_BLOCK_H_

#include "kernels/cuda/emulation/emulation.h"

namespace goldfinch::emulation {

constexpr int kLanes = 32;
constexpr unsigned kThreadsMax = 1024;

// Calls `kernel` with `argument` in every thread of the block at `place` in the grid. The number of threads must be a
// multiple of kLanes, at most kThreadsMax.
void RunBlock(const Dim3& place, const Dim3& block_dim, const Dim3& grid_dim, void (*kernel)(const void*),
              const void* argument);

// The number of the running thread in its block.
unsigned CurrentThread();

// --- What block.cc needs of emulation.cc ----------------------------------------------------------------------------

void* MapStacks(size_t bytes);
// The address sanitizer must know on which stack the program runs. The host calls the first and the last function, on
// its own stack; `stacks` are those of all fibers. A fiber calls the other two, at first and at last.
void BeforeFibers(const void* stacks, size_t bytes);
void FibersBegin();
void FibersEnd();
void AfterFibers();
[[noreturn]] void FailDivergence(const char* operation, const char* other);
// The thread waits at `operation`, as `arrived` threads do.
[[noreturn]] void FailDeadlock(const Index& thread, const char* operation, int arrived);

}  // namespace goldfinch::emulation

#endif  // GOLDFINCH_KERNELS_CUDA_EMULATION_BLOCK_H_
