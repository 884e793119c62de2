// What benches ask the CPU back end, besides what every back end answers.
#ifndef GOLDFINCH_KERNELS_CPU_CPU_BACKEND_H_
#define GOLDFINCH_KERNELS_CPU_CPU_BACKEND_H_

#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"

namespace goldfinch {

// The thread times of a back end from MakeCpuBackend. Must not be called while an op runs.
cpu::ThreadPool::Times CpuThreadTimes(const Backend& backend);

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_CPU_CPU_BACKEND_H_
