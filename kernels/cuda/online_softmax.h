// Softmax over scores that come a tile at a time: a running maximum, and sums that are scaled down when it rises.
// Scores are in units of log 2, so that their weights are powers of 2.
#ifndef GOLDFINCH_KERNELS_CUDA_ONLINE_SOFTMAX_H_
#define GOLDFINCH_KERNELS_CUDA_ONLINE_SOFTMAX_H_

#include <limits>

#include "kernels/cuda/device.h"

namespace goldfinch::cuda {

constexpr float kScoreUnit = 1.4426950408889634f;  // log2(e): turns a score into units of log 2

__device__ constexpr float Infinity() { return std::numeric_limits<float>::infinity(); }

// What to subtract for a maximum. Before anything has been seen the maximum is -infinity, and subtracting that would
// give a NaN.
__device__ inline float FiniteMaximum(float maximum) { return maximum == -Infinity() ? 0.f : maximum; }

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_ONLINE_SOFTMAX_H_
