// Kernels that rebuild keys and values with every intermediate in fp32 and products by the matrix library between them:
// for types and sizes that the fused kernels (gold_fused.h) do not have. The fused way uses some of them too.
#ifndef GOLDFINCH_KERNELS_CUDA_GOLD_PLAIN_H_
#define GOLDFINCH_KERNELS_CUDA_GOLD_PLAIN_H_

#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gold_inputs.h"
#include "kernels/cuda/gold_shared.h"

namespace goldfinch::cuda::plain {

// --- Where the rows of a chunk are -----------------------------------------------------------------------------------

// Positions that follow each other in a span, as rows of a chunk. The first row is the position before them, which the
// token shift looks back to.
struct Segment {
  int32_t span;       // -1: rows that only fill up the chunk
  int32_t row_begin;  // of the chunk
  int64_t position;   // of that row; -1 before the first position of the sequence
};

// Ids from the compressed cache. Kept is the row that the shared or full tier has for a position.
template <typename Id>
struct CacheIds {
  const Id* ids;
  int64_t page_tokens;
  int64_t kept_tokens;  // of a page of kept rows; 0 if there are none

  __device__ int64_t Stored(const DeviceSpan& span, int64_t position) const {
    return span.pages[position / page_tokens] * page_tokens + position % page_tokens;
  }
  __device__ int64_t Kept(const DeviceSpan& span, int64_t position) const {
    return kept_tokens == 0 ? -1 : span.kept[position / kept_tokens] * kept_tokens + position % kept_tokens;
  }
  __device__ int32_t At(int64_t stored) const { return static_cast<int32_t>(ids[stored]); }
};
// Ids from shared rows.
struct SharedRowIds {
  SharedPages pages;

  __device__ int64_t Stored(const DeviceSpan& span, int64_t position) const {
    return span.kept[position / pages.page_tokens] * pages.page_tokens + position % pages.page_tokens;
  }
  __device__ int64_t Kept(const DeviceSpan& span, int64_t position) const { return Stored(span, position); }
  __device__ int32_t At(int64_t stored) const { return pages.Input(stored)->id; }
};

// to[row] = what the chunk's row is; a thread has a row.
template <typename Ids>
__global__ void LocateKernel(const Segment* segments, int count, int rows, const DeviceSpan* spans, Ids ids,
                             ChunkRow* to) {
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= rows) return;
  const Segment segment = segments[FindSpan(segments, count, row)];
  if (segment.span < 0) {
    to[row] = {-1, -1, -1, -1, -1, 1};
    return;
  }
  const DeviceSpan& span = spans[segment.span];
  const auto stored = [&](int64_t position) { return position < 0 ? -1 : ids.Stored(span, position); };
  ChunkRow result;
  result.position = segment.position + row - segment.row_begin;
  result.stored = stored(result.position);
  result.id = result.stored < 0 ? -1 : ids.At(result.stored);
  result.only_before = row == segment.row_begin ? 1 : 0;
  const int64_t before = row == segment.row_begin ? -1 : stored(result.position - 1);
  result.prev_id = before < 0 ? -1 : ids.At(before);
  result.kept = result.only_before != 0 ? -1 : ids.Kept(span, result.position);
  to[row] = result;
}

// --- Inputs: xo, c and kk --------------------------------------------------------------------------------------------

// xo = rms(LN0(emb[id])), zeros at position -1.
template <typename Emb>
__global__ void __launch_bounds__(kRowThreads)
    InputKernel(const ChunkRow* rows, const Emb* embedding, const float* weight, const float* bias, int64_t width,
                float* xo) {
  float* scratch = DynamicShared<float>();  // [kWarp]
  const int64_t row = blockIdx.x;
  const int32_t id = rows[row].id;
  float* to = xo + row * width;
  if (id < 0) {
    for (int64_t i = threadIdx.x; i < width; i += kRowThreads) to[i] = 0;
    return;
  }
  const Emb* from = embedding + id * width;
  const InputRow input = InputRowOf(from, weight, bias, width, scratch);
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) {
    to[i] = input.Normed(ToFloat(from[i]), weight[i], bias[i]) * input.rms_scale;
  }
}

// The compressed rows, zeros at position -1.
template <typename To>
__global__ void __launch_bounds__(kRowThreads) CompressedKernel(const ChunkRow* rows, CompressedRows cache, To* to) {
  const int64_t row = blockIdx.x, stored = rows[row].stored;
  for (int64_t i = threadIdx.x; i < cache.width; i += kRowThreads) {
    to[row * cache.width + i] = FromFloat<To>(stored < 0 ? 0.f : cache.At(stored, i));
  }
}

// kk = rms(kk + table[id]), zeros at position -1.
template <typename Act>
__global__ void __launch_bounds__(kRowThreads)
    KeyRowKernel(const ChunkRow* rows, const Act* table, int64_t width, float* kk) {
  float* scratch = DynamicShared<float>();  // [kWarp]
  const int32_t id = rows[blockIdx.x].id;
  if (id < 0) return;  // zero already: c was
  float* x = kk + blockIdx.x * width;
  float square = 0;
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) {
    x[i] += ToFloat(table[id * width + i]);
    square += x[i] * x[i];
  }
  const float scale = RmsScale(BlockSum(square, scratch), width);
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) x[i] *= scale;
}

// --- Mix and LoRAs ---------------------------------------------------------------------------------------------------

// The tanh rows of the mix LoRA. Its input is linear in xo and prev(xo), so it is the sum of two rows of the table.
template <typename To>
__global__ void HiddenKernel(const ChunkRow* rows, int64_t count, const float* table, int64_t width, To* hidden) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count * width) return;
  const ChunkRow row = rows[i / width];
  float x = 0;
  if (row.id >= 0) x += table[2 * row.id * width + i % width];
  if (row.prev_id >= 0) x += table[(2 * int64_t{row.prev_id} + 1) * width + i % width];
  hidden[i] = FromFloat<To>(tanhf(x));
}

struct MixSide {
  const float* x;    // [rows, D]: kk or xo
  const float* mix;  // [D]
  float* to;         // [rows, D]: before, the LoRA's part of the amount; after, the result
  void* rounded;     // [rows, D]: the result in the weights' type
};

// to = x + (prev(x) - x) * (mix + to). The results of a segment's first rows are not used.
template <typename To>
__global__ void __launch_bounds__(kRowThreads) MixKernel(MixSide key, MixSide value, int64_t width) {
  const MixSide side = blockIdx.y == 0 ? key : value;
  const int64_t row = blockIdx.x, at = row * width;
  To* rounded = static_cast<To*>(side.rounded);
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) {
    const float x = side.x[at + i], before = row == 0 ? 0.f : side.x[at - width + i];
    const float mixed = x + (before - x) * (side.mix[i] + side.to[at + i]);
    side.to[at + i] = mixed;
    rounded[at + i] = FromFloat<To>(mixed);
  }
}

template <typename To>
__global__ void TanhKernel(const float* from, int64_t count, To* to) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) to[i] = FromFloat<To>(tanhf(from[i]));
}

// --- Norms -----------------------------------------------------------------------------------------------------------

struct FinishSide {
  const void* x;  // [rows, D] of From
  const float* weight;
  const float* bias;
  void* to;
};

// LayerNorm, rotation of keys and rounding. Results go to the same row of `to`, which may be x, or to the row's place
// in pages.
template <typename From, typename To>
__global__ void __launch_bounds__(kRowThreads)
    FinishKernel(const ChunkRow* rows, FinishSide key, FinishSide value, int64_t width, int head_size, double rope_base,
                 bool into_pages) {
  float* scratch = DynamicShared<float>();  // [kWarp]
  const bool is_key = blockIdx.y == 0;
  const FinishSide side = is_key ? key : value;
  const int64_t row = blockIdx.x;
  if (rows[row].only_before != 0) return;
  const From* x = static_cast<const From*>(side.x) + row * width;
  const RowMoments moments = MomentsOf(width, scratch, [x](int64_t i) { return ToFloat(x[i]); });
  const auto normed = [&](int64_t i) {
    return (ToFloat(x[i]) - moments.mean) * moments.scale * side.weight[i] + side.bias[i];
  };
  To* to = static_cast<To*>(side.to) + (into_pages ? rows[row].kept : row) * width;
  if (!is_key || rope_base == 0) {
    for (int64_t i = threadIdx.x; i < width; i += kRowThreads) to[i] = FromFloat<To>(normed(i));
    return;
  }
  for (int64_t i = 2 * int64_t{threadIdx.x}; i < width; i += 2 * kRowThreads) {
    // In double: at position 10^6 an fp32 angle has lost its fraction.
    const double angle = static_cast<double>(rows[row].position) *
                         pow(rope_base, -static_cast<double>(i % head_size) / static_cast<double>(head_size));
    const auto cosine = static_cast<float>(cos(angle)), sine = static_cast<float>(sin(angle));
    const float a = normed(i), b = normed(i + 1);
    to[i] = FromFloat<To>(a * cosine - b * sine);
    to[i + 1] = FromFloat<To>(a * sine + b * cosine);
  }
}

}  // namespace goldfinch::cuda::plain

#endif  // GOLDFINCH_KERNELS_CUDA_GOLD_PLAIN_H_
