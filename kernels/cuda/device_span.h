// The rows of a sequence in a call, as kernels read them.
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
  const int32_t* pages;  // null if the op does not use them
  const int32_t* kept;   // RowSpan::kept_pages; likewise
};

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_DEVICE_SPAN_H_
