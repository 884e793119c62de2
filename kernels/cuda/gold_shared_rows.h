// Kernels that copy shared rows to their pages and from there.
#ifndef GOLDFINCH_KERNELS_CUDA_GOLD_SHARED_ROWS_H_
#define GOLDFINCH_KERNELS_CUDA_GOLD_SHARED_ROWS_H_

#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gold_inputs.h"
#include "kernels/cuda/gold_shared.h"

namespace goldfinch::cuda::shared_rows {

// Stores what all layers share: kk, the id, and the statistics of xo. If the squares of kk by blocks of columns are
// given, kk is scaled first, in place too.
template <typename Kk, typename Emb, typename Act>
__global__ void __launch_bounds__(kRowThreads)
    StoreInputsKernel(const ChunkRow* rows, Kk* kk, const float* squares, int square_blocks, const Emb* embedding,
                      const float* weight, const float* bias, int64_t width, SharedPages pages) {
  float* scratch = DynamicShared<float>();  // [kWarp]
  const int64_t row = blockIdx.x;
  const ChunkRow at = rows[row];
  float scale = 1;
  if (squares != nullptr) {
    float square = 0;
    for (int i = 0; i < square_blocks; ++i) square += squares[int64_t{i} * gridDim.x + row];
    scale = RmsScale(square, width);
  }
  Kk* const x = kk + row * width;
  Act* const to = at.kept < 0 ? nullptr : pages.Key<Act>(at.kept, width);
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) {
    const float value = ToFloat(x[i]) * scale;
    if (squares != nullptr) x[i] = FromFloat<Kk>(value);
    if (to != nullptr) to[i] = FromFloat<Act>(value);
  }
  if (to == nullptr) return;
  const InputRow input = InputRowOf(embedding + at.id * width, weight, bias, width, scratch);
  if (threadIdx.x != 0) return;
  const float factor = input.moments.scale * input.rms_scale;
  *pages.Input(at.kept) = {factor, input.moments.mean * factor, input.rms_scale, at.id};
}

// Tanh rows of one layer, for the rows of a chunk: in parts, in the order of a page.
struct TanhPart {
  void* data;  // [rows, width]
  int width;
};
struct TanhParts {
  TanhPart parts[3];  // of the mix, key and value LoRAs
};

// Stores a layer's tanh rows, and its factors if there are any.
template <typename From, typename Act>
__global__ void __launch_bounds__(kRowThreads)
    StoreTanhKernel(const ChunkRow* rows, TanhParts from, const float* factors, SharedPages pages) {
  const int64_t row = blockIdx.x, kept = rows[row].kept;
  if (kept < 0) return;
  Act* to = pages.Tanh<Act>(kept);
  for (const TanhPart& part : from.parts) {
    const From* data = static_cast<const From*>(part.data) + row * part.width;
    for (int i = static_cast<int>(threadIdx.x); i < part.width; i += kRowThreads) {
      to[i] = FromFloat<Act>(ToFloat(data[i]));
    }
    to += part.width;
  }
  if (factors != nullptr && threadIdx.x < 4) pages.Factors(kept)[threadIdx.x] = factors[4 * row + threadIdx.x];
}

// Loads kk, zeros at position -1, and the tanh rows, zeros for rows that are only looked back to.
template <typename Act, typename To>
__global__ void __launch_bounds__(kRowThreads)
    LoadRowsKernel(const ChunkRow* rows, SharedPages pages, int64_t width, float* kk, TanhParts to) {
  const int64_t row = blockIdx.x;
  const ChunkRow at = rows[row];
  const Act* from = at.stored < 0 ? nullptr : pages.Key<Act>(at.stored, width);
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) {
    kk[row * width + i] = from == nullptr ? 0.f : ToFloat(from[i]);
  }
  const Act* tanh_row = at.only_before != 0 ? nullptr : pages.Tanh<Act>(at.stored);
  for (const TanhPart& part : to.parts) {
    To* data = static_cast<To*>(part.data) + row * part.width;
    for (int i = static_cast<int>(threadIdx.x); i < part.width; i += kRowThreads) {
      data[i] = FromFloat<To>(tanh_row == nullptr ? 0.f : ToFloat(tanh_row[i]));
    }
    if (tanh_row != nullptr) tanh_row += part.width;
  }
}

}  // namespace goldfinch::cuda::shared_rows

#endif  // GOLDFINCH_KERNELS_CUDA_GOLD_SHARED_ROWS_H_
