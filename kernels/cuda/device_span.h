// The rows of one sequence in a call, for kernels.
#ifndef GOLDFINCH_KERNELS_CUDA_DEVICE_SPAN_H_
#define GOLDFINCH_KERNELS_CUDA_DEVICE_SPAN_H_

#include <cstdint>

namespace goldfinch::cuda {

// RowSpan (kernels/backend.h) with page tables in device memory.
struct DeviceSpan {
  int32_t slot;
  int32_t row_begin;
  int32_t row_count;
  int64_t position;
  const int32_t* pages;  // device memory; null where the op has no pages
  const int32_t* kept;   // likewise, for pages of the shared or full tier
};

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_DEVICE_SPAN_H_
