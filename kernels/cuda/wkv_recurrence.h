// Linear attention row by row in fp32: for decoding, short spans, fp32 activations and head sizes other than 64.
#ifndef GOLDFINCH_KERNELS_CUDA_WKV_RECURRENCE_H_
#define GOLDFINCH_KERNELS_CUDA_WKV_RECURRENCE_H_

#include "kernels/cuda/device.h"

namespace goldfinch::cuda {

// The tensors of a call, as backend.h has them.
template <typename T>
struct WkvTensors {
  const T* r;
  const T* k;
  const T* v;
  const T* w;               // [rows, D]; null where the decay is constant
  const float* constant_w;  // [1, D]
  const float* bonus;       // [H, N], or null
  float* state;
  T* out;
  int heads;
  int head_size;
  bool one_minus_decay_keys;
  bool accumulate;
};

// --- States that registers hold --------------------------------------------------------------------------------------

// A warp has 16 value columns of one head for all rows of a span: lane 4 g + c has columns 4 c .. 4 c + 3 of keys R g
// to R g + R - 1, so that all of a state is on its way at once, 16 bytes a load, and no row needs a barrier.
constexpr int kStripColumns = 16;
constexpr int kKeyGroups = 8;

template <typename T, int R>
struct WkvRow {
  Vec<T, R> r, k, w;
  Vec<T, 4> v;
};

template <typename T, int R>
__device__ inline void LoadWkvRow(const WkvTensors<T>& x, int64_t at, int key, int column, WkvRow<T, R>& row) {
  row.r = *reinterpret_cast<const Vec<T, R>*>(x.r + at + key);
  row.k = *reinterpret_cast<const Vec<T, R>*>(x.k + at + key);
  if (x.w != nullptr) row.w = *reinterpret_cast<const Vec<T, R>*>(x.w + at + key);
  row.v = *reinterpret_cast<const Vec<T, 4>*>(x.v + at + column);
}

// The sum of every lane's y over the key groups, a column each: lane 4 g + c gets column 4 c + g / 2.
__device__ inline float SumKeyGroups(const float (&y)[4], int lane) {
  const bool high = (lane & 16) != 0, odd = (lane & 8) != 0;
  const float a = (high ? y[2] : y[0]) + ShflXor(high ? y[0] : y[2], 16);
  const float b = (high ? y[3] : y[1]) + ShflXor(high ? y[1] : y[3], 16);
  const float sum = (odd ? b : a) + ShflXor(odd ? a : b, 8);
  return sum + ShflXor(sum, 4);
}

// Head size 8 R; block (head of a span) of R / 2 warps.
template <typename T, int R>
__global__ void __launch_bounds__(R / 2 * kWarp) WkvRowsKernel(const WkvTensors<T> x, const DeviceSpan* spans) {
  constexpr int kHeadSize = kKeyGroups * R;
  const DeviceSpan span = spans[blockIdx.x / x.heads];
  const int head = static_cast<int>(blockIdx.x) % x.heads;
  const int lane = threadIdx.x % kWarp;
  const int key = lane / 4 * R, strip = static_cast<int>(threadIdx.x) / kWarp * kStripColumns;
  const int column = strip + lane % 4 * 4;

  // The first row before the state, so that its decays are worked out while the state is on its way.
  const int64_t width = int64_t{x.heads} * kHeadSize, head_at = int64_t{head} * kHeadSize;
  int64_t at = span.row_begin * width + head_at;
  WkvRow<T, R> next;
  LoadWkvRow(x, at, key, column, next);

  float* const head_state =
      x.state + (int64_t{span.slot} * x.heads + head) * kHeadSize * kHeadSize + key * kHeadSize + column;
  Vec<float, 4> s[R];
#pragma unroll
  for (int i = 0; i < R; ++i) s[i] = *reinterpret_cast<const Vec<float, 4>*>(head_state + i * kHeadSize);

  for (int row = 0; row < span.row_count; ++row, at += width) {
    const WkvRow<T, R> here = next;
    if (row + 1 < span.row_count) LoadWkvRow(x, at + width, key, column, next);
    float decay[R], k[R], bonus_sum = 0;
#pragma unroll
    for (int i = 0; i < R; ++i) {
      const float rate = -expf(x.w != nullptr ? ToFloat(here.w.v[i]) : x.constant_w[head_at + key + i]);
      decay[i] = expf(rate);
      // Where the decay is near 1 its difference from 1 has few digits.
      k[i] = ToFloat(here.k.v[i]) * (x.one_minus_decay_keys ? -expm1f(rate) : 1.f);
      if (x.bonus != nullptr) bonus_sum += ToFloat(here.r.v[i]) * (x.bonus[head_at + key + i] * k[i]);
    }
    float v[4], y[4] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = ToFloat(here.v.v[j]);
#pragma unroll
    for (int i = 0; i < R; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        y[j] += ToFloat(here.r.v[i]) * s[i].v[j];
        s[i].v[j] = decay[i] * s[i].v[j] + k[i] * v[j];
      }
    }
    // Without a bonus a row's own key and value are not in its output, not even as NaN.
    if (x.bonus != nullptr) {
#pragma unroll
      for (int j = 0; j < 4; ++j) y[j] += bonus_sum * v[j];
    }
    float sum = SumKeyGroups(y, lane);
    if ((lane & 4) == 0) {
      T* const to = x.out + at + strip + lane % 4 * 4 + lane / 8 % 2 + lane / 16 * 2;
      if (x.accumulate) sum += ToFloat(*to);
      *to = FromFloat<T>(sum);
    }
  }
#pragma unroll
  for (int i = 0; i < R; ++i) *reinterpret_cast<Vec<float, 4>*>(head_state + i * kHeadSize) = s[i];
}

// --- Any head size ---------------------------------------------------------------------------------------------------

constexpr int kAnyThreads = 128;

// Correct rather than fast: the state stays in memory. A thread has a column; block (head of a span, columns).
template <typename T>
__global__ void __launch_bounds__(kAnyThreads) WkvRowsAnyKernel(const WkvTensors<T> x, const DeviceSpan* spans) {
  const int size = x.head_size;
  float* const r = DynamicShared<float>();  // [size] each
  float* const k = r + size;
  float* const decay = k + size;
  float* const bonus = decay + size;  // r u k
  const DeviceSpan span = spans[blockIdx.x / x.heads];
  const int head = static_cast<int>(blockIdx.x) % x.heads;
  const int column = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  const int64_t width = int64_t{x.heads} * size, head_at = int64_t{head} * size;
  float* const state = x.state + (int64_t{span.slot} * x.heads + head) * size * size;
  for (int row = 0; row < span.row_count; ++row) {
    const int64_t at = (int64_t{span.row_begin} + row) * width + head_at;
    __syncthreads();  // the row before has been used
    for (int i = static_cast<int>(threadIdx.x); i < size; i += static_cast<int>(blockDim.x)) {
      const float rate = -expf(x.w != nullptr ? ToFloat(x.w[at + i]) : x.constant_w[head_at + i]);
      const float key = ToFloat(x.k[at + i]) * (x.one_minus_decay_keys ? -expm1f(rate) : 1.f);
      r[i] = ToFloat(x.r[at + i]);
      k[i] = key;
      decay[i] = expf(rate);
      bonus[i] = x.bonus != nullptr ? r[i] * (x.bonus[head_at + i] * key) : 0.f;
    }
    __syncthreads();
    if (column >= size) continue;
    const float v = ToFloat(x.v[at + column]);
    float y = 0, bonus_sum = 0;
    for (int i = 0; i < size; ++i) {
      float& s = state[i * size + column];
      const float before = s;
      y += r[i] * before;
      bonus_sum += bonus[i];
      s = decay[i] * before + k[i] * v;
    }
    if (x.bonus != nullptr) y += bonus_sum * v;
    T* const to = x.out + at + column;
    *to = FromFloat<T>(x.accumulate ? ToFloat(*to) + y : y);
  }
}

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_WKV_RECURRENCE_H_
