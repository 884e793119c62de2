// Device code of GoldSharedAttention: what its kernels share, and the two small ones before and after the positions.
// gold_shared.cu explains the method.
#ifndef GOLDFINCH_KERNELS_CUDA_GOLD_SHARED_SPLIT_H_
#define GOLDFINCH_KERNELS_CUDA_GOLD_SHARED_SPLIT_H_

#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gold_shared.h"
#include "kernels/cuda/online_softmax.h"

namespace goldfinch::cuda::shared_rows {

constexpr int kHead = 64;           // columns of a head
constexpr int kQueryRows = 16;      // of a tile
constexpr int kMixRank = 32;        // lower ranks are filled up with zeros
constexpr int kLoraRank = 64;       // likewise
constexpr int kSplitUnit = 64;      // positions
constexpr int kSmallThreads = 256;  // of a block of FoldKernel and MergeKernel

// A tile of query rows.
struct QueryTile {
  int32_t span;
  int32_t row;       // of q
  int32_t rows;      // 1 to kQueryRows
  int32_t slot_row;  // of the slots: where the first row of the first split is
};

struct Arguments {
  const QueryTile* tiles;
  const DeviceSpan* spans;
  SharedPages pages;
  int splits;
  int groups;  // of heads
  int heads;
  int mix_rank;
  int lora_rank;
  int64_t width;
  float score_scale;          // in units of log 2
  const void* queries;        // [rows, heads, 2, 64] of T: q' and up_k q'
  const void* embedding;      // [vocab, D] of T
  const float* ln0_weight;    // [D]
  const float* ln0_bias;      // [D]
  const float* mix_key;       // [D]
  const float* mix_value;     // [D]
  const void* mix_up;         // [2, m, D] of T
  const void* value_up;       // [m', D] of T
  const float* value_weight;  // [D]: of the value norm
  const float* value_bias;    // [D]
  float* slot_values;         // [slot rows, D]: sums of p scale_v vx
  float* slot_loras;          // [slot rows, heads, kLoraRank]: of p scale_v h_v
  float* slot_maxima;         // [slot rows, heads], in units of log 2
  float* slot_sums;           // [slot rows, heads]
  float* slot_offsets;        // [slot rows, heads]: of p mean_v scale_v
};

// The positions that a tile's rows see, and how many of them a split has.
struct SplitRange {
  int64_t position;  // of the first row
  int64_t length;    // positions that the last row sees
  int64_t step;      // of a split

  __device__ SplitRange(const Arguments& a, const QueryTile& tile) {
    const DeviceSpan& span = a.spans[tile.span];
    position = span.position + tile.row - span.row_begin;
    length = position + tile.rows;
    step = CeilDiv<int64_t>(CeilDiv<int64_t>(length, a.splits), kSplitUnit) * kSplitUnit;
  }
};

// --- Fold ------------------------------------------------------------------------------------------------------------

// q' and up_k q' of a row and head: block (head, row - first_row), a warp an entry of the latter.
template <typename T>
__global__ void __launch_bounds__(kSmallThreads) FoldKernel(const T* q, int first_row, const float* key_weight,
                                                            const T* key_up, int lora_rank, int64_t width, T* queries) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = first_row + static_cast<int>(blockIdx.y), column = int64_t{blockIdx.x} * kHead + 2 * lane;
  const float2 pair = Unpack2<T>(*reinterpret_cast<const uint32_t*>(q + row * width + column));
  const uint32_t weighted = Pack2<T>(pair.x * key_weight[column], pair.y * key_weight[column + 1]);
  T* const to = queries + (row * gridDim.x + blockIdx.x) * (kHead + kLoraRank);
  if (static_cast<int>(threadIdx.x) < kWarp) *reinterpret_cast<uint32_t*>(to + 2 * lane) = weighted;
  const float2 x = Unpack2<T>(weighted);
  for (int i = static_cast<int>(threadIdx.x) / kWarp; i < kLoraRank; i += kSmallThreads / kWarp) {
    float2 up = make_float2(0, 0);
    if (i < lora_rank) up = Unpack2<T>(*reinterpret_cast<const uint32_t*>(key_up + i * width + column));
    // Entries past the rank are zero, even where the query is not finite.
    const float dot = WarpSum(i < lora_rank ? x.x * up.x + x.y * up.y : 0.f);
    if (lane == 0) to[kHead + i] = FromFloat<T>(dot);
  }
}

// --- Merge -----------------------------------------------------------------------------------------------------------

// Merges the splits of a row and head, and applies what follows the sum: block (head, row, tile). A quarter of the
// threads has the splits 0, 4, .., the next 1, 5, ..; a thread of each quarter has a column of the head, and an entry
// of the LoRA's sums.
template <typename T>
__global__ void __launch_bounds__(kSmallThreads) MergeKernel(Arguments a, T* out) {
  static_assert(kLoraRank == kHead);
  constexpr int kSharers = kSmallThreads / kHead;
  float* const scratch = DynamicShared<float>();  // [5][kSmallThreads]: four sums, then the LoRA's up side
  const QueryTile tile = a.tiles[blockIdx.z];
  const int row = static_cast<int>(blockIdx.y), head = static_cast<int>(blockIdx.x), thread = threadIdx.x;
  if (row >= tile.rows) return;
  const SplitRange range(a, tile);
  const int splits = static_cast<int>((range.length + range.step - 1) / range.step);
  const auto slot_of = [&](int split) { return tile.slot_row + int64_t{split} * tile.rows + row; };

  float maximum = -Infinity();
  for (int split = 0; split < splits; ++split) {
    maximum = fmaxf(maximum, a.slot_maxima[slot_of(split) * a.heads + head]);
  }
  const float base = FiniteMaximum(maximum);
  const int sharer = thread / kHead, c = thread % kHead;
  const int64_t column = int64_t{head} * kHead + c;
  float sum = 0, offset = 0, value = 0, lora = 0;
  for (int split = sharer; split < splits; split += kSharers) {
    const int64_t slot = slot_of(split), slot_head = slot * a.heads + head;
    const float weight = FastExp2(a.slot_maxima[slot_head] - base);
    sum += weight * a.slot_sums[slot_head];
    offset += weight * a.slot_offsets[slot_head];
    value += weight * a.slot_values[slot * a.width + column];
    lora += weight * a.slot_loras[slot_head * kLoraRank + c];
  }
  float* const sums = scratch;
  float* const offsets = scratch + kSmallThreads;
  float* const values = scratch + 2 * kSmallThreads;
  float* const loras = scratch + 3 * kSmallThreads;
  float* const ups = scratch + 4 * kSmallThreads;
  sums[thread] = sum;
  offsets[thread] = offset;
  values[thread] = value;
  loras[thread] = lora;
  __syncthreads();
  // Each quarter adds up the LoRA's sums of all quarters, for its part of the rank.
  const auto total = [&](const float* part, int at) {
    float all = 0;
    for (int i = 0; i < kSharers; ++i) all += part[i * kHead + at];
    return all;
  };
  float up = 0;
  for (int j = sharer; j < a.lora_rank; j += kSharers) {
    up += total(loras, j) * ToFloat(static_cast<const T*>(a.value_up)[j * a.width + column]);
  }
  ups[thread] = up;
  __syncthreads();
  if (sharer != 0) return;
  const float x = (total(values, c) + total(ups, c) - total(offsets, c)) / total(sums, c);
  const int64_t to = (int64_t{tile.row} + row) * a.width + column;
  out[to] = FromFloat<T>(x * a.value_weight[column] + a.value_bias[column]);
}

}  // namespace goldfinch::cuda::shared_rows

#endif  // GOLDFINCH_KERNELS_CUDA_GOLD_SHARED_SPLIT_H_
