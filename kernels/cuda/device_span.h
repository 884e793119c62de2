// A sequence's rows in a call, as kernels see them.
#ifndef GOLDFINCH_KERNELS_CUDA_DEVICE_SPAN_H_
#define GOLDFINCH_KERNELS_CUDA_DEVICE_SPAN_H_

#include <cstdint>

namespace goldfinch::cuda {

// As RowSpan (kernels/backend.h).
struct DeviceSpan {
  int32_t slot;
  int32_t row_begin;
  int32_t row_count;
  int64_t position;
  const int32_t* pages;  // device memory; null where the op has no pages
  const int32_t* kept;   // likewise
};

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_DEVICE_SPAN_H_
