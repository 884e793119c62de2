// Device code of Attention: the slots of each query row are merged.
#ifndef GOLDFINCH_KERNELS_CUDA_ATTEND_MERGE_H_
#define GOLDFINCH_KERNELS_CUDA_ATTEND_MERGE_H_

#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/online_softmax.h"

namespace goldfinch::cuda::attend {

// The slots of a query row: first, first + step, ...
struct MergeRow {
  int64_t first;
  int32_t row;
  int32_t step;
  int64_t count;
};

constexpr int kMergeThreads = 256;

struct MergeArguments {
  const MergeRow* rows;
  const float* slot_values;
  const float* slot_maxima;
  const float* slot_sums;
  const float* slot_offsets;
  const float* value_weight;  // null: norms are done
  const float* value_bias;
  int64_t width;
  int head_size;
  int heads;
};

// A block merges a row and head: threads share columns, and the slots of a column.
template <typename Act>
__global__ void __launch_bounds__(kMergeThreads) MergeKernel(MergeArguments a, Act* out) {
  float* scratch = DynamicShared<float>();  // [kWarp], [kMergeThreads]
  float* parts = scratch + kWarp;
  const MergeRow row = a.rows[blockIdx.x / a.heads];
  const int head = static_cast<int>(blockIdx.x) % a.heads, thread = threadIdx.x;
  const auto slot = [&](int i) { return row.first + int64_t{i} * row.step; };

  float maximum = -Infinity();
  for (int i = thread; i < row.count; i += kMergeThreads) {
    maximum = fmaxf(maximum, a.slot_maxima[slot(i) * a.heads + head]);
  }
  maximum = WarpMax(maximum);
  if (thread % kWarp == 0) scratch[thread / kWarp] = maximum;
  __syncthreads();
  maximum = WarpMax(thread % kWarp < kMergeThreads / kWarp ? scratch[thread % kWarp] : -Infinity());
  const float base = FiniteMaximum(maximum);

  float sum = 0, offset = 0;
  for (int i = thread; i < row.count; i += kMergeThreads) {
    const int64_t at = slot(i) * a.heads + head;
    const float weight = FastExp2(a.slot_maxima[at] - base);
    sum += weight * a.slot_sums[at];
    if (a.value_weight != nullptr) offset += weight * a.slot_offsets[at];
  }
  sum = BlockSum(sum, scratch);
  if (a.value_weight != nullptr) offset = BlockSum(offset, scratch);

  for (int first = 0; first < a.head_size; first += kMergeThreads) {
    const int columns = a.head_size - first < kMergeThreads ? a.head_size - first : kMergeThreads;
    const int sharers = kMergeThreads / columns, sharer = thread / columns, c = first + thread % columns;
    const int64_t column = int64_t{head} * a.head_size + c;
    float value = 0;
    if (sharer < sharers) {
#pragma unroll 4
      for (int i = sharer; i < row.count; i += sharers) {
        value += FastExp2(a.slot_maxima[slot(i) * a.heads + head] - base) * a.slot_values[slot(i) * a.width + column];
      }
    }
    parts[thread] = value;
    __syncthreads();
    if (thread < columns) {
      for (int i = 1; i < sharers; ++i) value += parts[i * columns + thread];
      value = (value - offset) / sum;
      if (a.value_weight != nullptr) value = value * a.value_weight[column] + a.value_bias[column];
      out[row.row * a.width + column] = FromFloat<Act>(value);
    }
    __syncthreads();
  }
}

}  // namespace goldfinch::cuda::attend

#endif  // GOLDFINCH_KERNELS_CUDA_ATTEND_MERGE_H_
