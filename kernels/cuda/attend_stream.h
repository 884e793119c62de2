// Device code of Attention without matrix units: what all its kernels share, and the kernels for few query rows.
// attend.cu says which kernel is for what.
#ifndef GOLDFINCH_KERNELS_CUDA_ATTEND_STREAM_H_
#define GOLDFINCH_KERNELS_CUDA_ATTEND_STREAM_H_

#include <cstdint>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/online_softmax.h"

namespace goldfinch::cuda::attend {

constexpr int kStreamWarps = 8;  // of a block at most

struct Arguments {
  const AttendTask* tasks;
  const DeviceSpan* spans;
  const void* q;  // [rows, D]
  DType q_dtype;
  const void* keys;
  const void* values;
  int64_t width;
  int64_t page_tokens;
  int head_size;
  int heads;
  float scale;               // of scores, in units of log 2
  const float* row_factors;  // as StoredKeys::row_factors
  const float* key_weight;   // [D], with row_factors
  float* slot_values;        // [slot rows, D]
  float* slot_maxima;        // [slot rows, heads], in units of log 2
  float* slot_sums;          // [slot rows, heads]
  float* slot_offsets;       // [slot rows, heads], with row_factors
};

__device__ inline float LoadAs(const void* data, DType dtype, int64_t index) {
  if (dtype == DType::kF32) return static_cast<const float*>(data)[index];
  if (dtype == DType::kF16) return ToFloat(static_cast<const f16_t*>(data)[index]);
  return ToFloat(static_cast<const bf16_t*>(data)[index]);
}

// The row of the keys where a position is.
__device__ inline int64_t StoredRow(const AttendTask& task, const int32_t* pages, int64_t page_tokens,
                                    int64_t position) {
  if (page_tokens == 0) return task.first_row + position - task.begin;
  const auto at = static_cast<uint32_t>(position), tokens = static_cast<uint32_t>(page_tokens);
  return pages[at / tokens] * page_tokens + at % tokens;
}

// --- Plain -----------------------------------------------------------------------------------------------------------

// A block has one row and head; a lane has every 32nd column of the head.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kWarp) PlainKernel(Arguments a) {
  const AttendTask task = a.tasks[blockIdx.x / a.heads];
  if (task.begin >= task.end) return;
  const int head = static_cast<int>(blockIdx.x) % a.heads, lane = threadIdx.x;
  const int32_t* pages = a.spans[task.span].pages;
  const int64_t column = int64_t{head} * a.head_size;
  const int64_t slot = task.slot_row, slot_head = slot * a.heads + head;
  float q[kColumns], sums[kColumns];
  float maximum = task.resumes ? a.slot_maxima[slot_head] : -Infinity();
  float sum = task.resumes ? a.slot_sums[slot_head] : 0.f;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const int c = lane + i * kWarp;
    const bool there = c < a.head_size;
    q[i] = there ? LoadAs(a.q, a.q_dtype, task.row * a.width + column + c) * a.scale : 0.f;
    sums[i] = there && task.resumes ? a.slot_values[slot * a.width + column + c] : 0.f;
  }
  for (int64_t position = task.begin; position < task.end; ++position) {
    const int64_t at = StoredRow(task, pages, a.page_tokens, position) * a.width + column;
    const T* key = static_cast<const T*>(a.keys) + at;
    const T* value = static_cast<const T*>(a.values) + at;
    float dot = 0;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int c = lane + i * kWarp;
      if (c < a.head_size) dot += q[i] * ToFloat(key[c]);
    }
    const float score = WarpSum(dot);
    const float raised = fmaxf(maximum, score);
    const float keep = FastExp2(maximum - FiniteMaximum(raised)), p = FastExp2(score - FiniteMaximum(raised));
    maximum = raised;
    sum = sum * keep + p;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int c = lane + i * kWarp;
      if (c < a.head_size) sums[i] = sums[i] * keep + p * ToFloat(value[c]);
    }
  }
  if (lane == 0) {
    a.slot_maxima[slot_head] = maximum;
    a.slot_sums[slot_head] = sum;
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const int c = lane + i * kWarp;
    if (c < a.head_size) a.slot_values[slot * a.width + column + c] = sums[i];
  }
}

// --- Stream ----------------------------------------------------------------------------------------------------------

// What a lane works on: 16 bytes of every row of the keys and values. kHeadLanes lanes share a head; 0 if only the head
// size tells how many.
template <typename T, int kHeadLanes>
struct StreamPlace {
  static constexpr int kColumns = 16 / static_cast<int>(sizeof(T));  // of the lane

  AttendTask task;
  const int32_t* pages;
  int lane;
  int head_lanes;
  int64_t head;
  int64_t column;  // the lane's first
  bool there;      // the column exists

  __device__ explicit StreamPlace(const Arguments& a) {
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    const int groups = static_cast<int>(CeilDiv<int64_t>(a.width, kWarp * kColumns * warps));
    lane = threadIdx.x % kWarp;
    task = a.tasks[blockIdx.x / groups];
    pages = a.spans[task.span].pages;
    const int group = static_cast<int>(blockIdx.x) % groups * warps + static_cast<int>(threadIdx.x) / kWarp;
    const int64_t first_column = (int64_t{group} * kWarp + lane) * kColumns;
    // A head has whole lanes, so lanes past the last column only exchange values with each other.
    there = first_column < a.width;
    column = there ? first_column : 0;
    head_lanes = kHeadLanes > 0 ? kHeadLanes : a.head_size / kColumns;
    head = column / a.head_size;
  }

  // The sum over the lanes of a head.
  __device__ __forceinline__ float HeadSum(float x) const {
    if constexpr (kHeadLanes > 0) {
#pragma unroll
      for (int mask = kHeadLanes / 2; mask > 0; mask /= 2) x += ShflXor(x, mask);
    } else {
      for (int mask = head_lanes / 2; mask > 0; mask /= 2) x += ShflXor(x, mask);
    }
    return x;
  }
};

// kDeep positions that follow each other, as a lane has loaded them.
template <typename T, int kDeep>
struct StreamedRows {
  static constexpr int kColumns = 16 / static_cast<int>(sizeof(T));
  int64_t first;  // position
  Vec<T, kColumns> keys[kDeep];
  Vec<T, kColumns> values[kDeep];
  Vec<float, 4> factors[kDeep];  // of unfinished norms
};

// A query row and its softmax so far, a lane's columns of it.
template <typename T, int kHeadLanes, bool kUnfinished>
struct StreamQuery {
  using Place = StreamPlace<T, kHeadLanes>;
  static constexpr int kColumns = Place::kColumns;

  float q[kColumns];
  float sums[kColumns];  // of weighted values
  float maximum;
  float sum;
  float q_sum;   // unfinished norms: over the head's columns
  float offset;  // unfinished norms: sum of p * mean * scale of values

  // Row r of the task, going on from its slot if the task resumes.
  __device__ __forceinline__ void Load(const Arguments& a, const Place& at, int r) {
    const bool known = r < at.task.rows, resumes = known && at.task.resumes;
    const int64_t slot = at.task.slot_row + r, slot_head = slot * a.heads + at.head;
    maximum = resumes ? a.slot_maxima[slot_head] : -Infinity();
    sum = resumes ? a.slot_sums[slot_head] : 0.f;
    offset = kUnfinished && resumes ? a.slot_offsets[slot_head] : 0.f;
    q_sum = 0;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      q[c] = known ? LoadAs(a.q, a.q_dtype, (at.task.row + r) * a.width + at.column + c) * a.scale : 0.f;
      if (kUnfinished) q[c] *= a.key_weight[at.column + c];
      q_sum += q[c];
      sums[c] = resumes ? a.slot_values[slot * a.width + at.column + c] : 0.f;
    }
    if (kUnfinished) {
      for (int mask = at.head_lanes / 2; mask > 0; mask /= 2) q_sum += ShflXor(q_sum, mask);
    }
  }

  // Attends to positions of which those from `end` on, and past `sees`, are not seen if they are `masked`.
  template <int kDeep>
  __device__ __forceinline__ void Attend(const Place& at, const StreamedRows<T, kDeep>& rows, bool masked, int64_t end,
                                         int64_t sees) {
    float scores[kDeep], raised = maximum;
#pragma unroll
    for (int u = 0; u < kDeep; ++u) {
      float dot = 0;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) dot += q[c] * ToFloat(rows.keys[u].v[c]);
      dot = at.HeadSum(dot);
      if (kUnfinished) dot = dot * rows.factors[u].v[0] - q_sum * rows.factors[u].v[1];
      if (masked && (rows.first + u >= end || rows.first + u > sees)) dot = -Infinity();
      scores[u] = dot;
      raised = fmaxf(raised, dot);
    }
    const float keep = FastExp2(maximum - FiniteMaximum(raised));
    maximum = raised;
    sum *= keep;
    offset *= keep;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) sums[c] *= keep;
#pragma unroll
    for (int u = 0; u < kDeep; ++u) {
      // What a row does not see must not touch it, not even as 0 * NaN.
      if (masked && (rows.first + u >= end || rows.first + u > sees)) continue;
      float weight = FastExp2(scores[u] - FiniteMaximum(raised));
      sum += weight;
      if (kUnfinished) {
        offset += weight * rows.factors[u].v[3];
        weight *= rows.factors[u].v[2];
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sums[c] += weight * ToFloat(rows.values[u].v[c]);
    }
  }

  __device__ __forceinline__ void Store(const Arguments& a, const Place& at, int r) const {
    const int64_t slot = at.task.slot_row + r, slot_head = slot * a.heads + at.head;
    if (at.lane % at.head_lanes == 0) {
      a.slot_maxima[slot_head] = maximum;
      a.slot_sums[slot_head] = sum;
      if (kUnfinished) a.slot_offsets[slot_head] = offset;
    }
#pragma unroll
    for (int c = 0; c < kColumns; c += 4) {
      const float four[4] = {sums[c], sums[c + 1], sums[c + 2], sums[c + 3]};
      StoreFloats<4>(four, a.slot_values + slot * a.width + at.column + c);
    }
  }
};

// Up to kRows query rows; a warp has 32 * 16 bytes of every row. kUnfinished: the norms of keys and values are still to
// be done.
template <typename T, int kHeadLanes, int kRows, bool kUnfinished>
__global__ void __launch_bounds__(kStreamWarps* kWarp, kRows == 1 ? 2 : 1) StreamKernel(Arguments a) {
  using Row = Vec<T, 16 / sizeof(T)>;
  constexpr int kDeep = kRows == 1 && !kUnfinished ? 8 : 4;  // positions under way
  const StreamPlace<T, kHeadLanes> at(a);
  const AttendTask& task = at.task;
  if (task.begin >= task.end) return;
  StreamQuery<T, kHeadLanes, kUnfinished> queries[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) queries[r].Load(a, at, r);

  for (int64_t base = task.begin; base < task.end; base += kWarp) {
    // Positions past the end stand for the last one, with no weight.
    const int64_t position = base + at.lane < task.end ? base + at.lane : task.end - 1;
    const int64_t my_row = StoredRow(task, at.pages, a.page_tokens, position);
    const int count = static_cast<int>(task.end - base < kWarp ? task.end - base : kWarp);
    for (int first = 0; first < count; first += kDeep) {
      StreamedRows<T, kDeep> rows;
      rows.first = base + first;
#pragma unroll
      for (int u = 0; u < kDeep; ++u) {
        const int64_t row = Shfl(my_row, first + u), from = row * a.width + at.column;
        rows.keys[u] = *reinterpret_cast<const Row*>(static_cast<const T*>(a.keys) + from);
        rows.values[u] = *reinterpret_cast<const Row*>(static_cast<const T*>(a.values) + from);
        if (kUnfinished) rows.factors[u] = *reinterpret_cast<const Vec<float, 4>*>(a.row_factors + 4 * row);
      }
      const int64_t last = rows.first + kDeep - 1;
      // Past the end, or past what the first row sees.
      const bool masked = last >= task.end || last > task.position;
#pragma unroll
      for (int r = 0; r < kRows; ++r) queries[r].Attend(at, rows, masked, task.end, task.position + r);
    }
  }

  if (!at.there) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r < task.rows) queries[r].Store(a, at, r);
  }
}

}  // namespace goldfinch::cuda::attend

#endif  // GOLDFINCH_KERNELS_CUDA_ATTEND_STREAM_H_
