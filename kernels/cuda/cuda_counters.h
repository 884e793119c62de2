// What a CUDA back end has queued so far: the host's cost of its submissions.
#ifndef GOLDFINCH_KERNELS_CUDA_CUDA_COUNTERS_H_
#define GOLDFINCH_KERNELS_CUDA_CUDA_COUNTERS_H_

#include <cstdint>

namespace goldfinch {

struct CudaCounters {
  int64_t launches = 0;  // kernels, products, copies and zeroings that were queued one by one
  int64_t uploads = 0;   // copies of arrays from the host
  int64_t captures = 0;  // submissions captured as graphs
  int64_t graph_launches = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_CUDA_CUDA_COUNTERS_H_
