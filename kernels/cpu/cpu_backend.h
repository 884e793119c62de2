// What the CPU back end tells benches, beside what every back end does.
#ifndef GOLDFINCH_KERNELS_CPU_CPU_BACKEND_H_
#define GOLDFINCH_KERNELS_CPU_CPU_BACKEND_H_

#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"

namespace goldfinch {

// Of the threads of a back end that MakeCpuBackend made; not while an op runs.
cpu::ThreadPool::Times CpuThreadTimes(const Backend& backend);

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_CPU_CPU_BACKEND_H_
