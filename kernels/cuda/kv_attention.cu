// Causal softmax attention over stored keys and values: flash decoding (arXiv 2205.14135, 2311.01282) with three kinds
// of tiles.
//
//   Matrix  5 query rows of a span and more, 16-bit types, heads of 64 or 128: a block has one head, 16, 32 or 64 rows
//           and tiles of 64 positions, copied three deep, multiplied on the matrix units.
//   Stream  up to 4 rows, or types that the matrix units lack: a warp has 512 bytes of every row, so that a block of 8
//           reads 4 KB rows (D = 2048 in 16 bits) whole; 8 positions are under way at once.
//   Plain   what is left, as heads of 48: a warp a row and head.
//
// Counted for one row over n positions, D = 2048, bf16: 4 D n = 8192 n bytes of keys and values are read once; partial
// results are 8.5 KB a slot, written and read once, of at most 4 slots a multiprocessor (4.5 MB twice on 132 of them).
// Arithmetic: 4 D n = 8.6e9 multiply-adds-and-conversions at n = 2^20, some 400 instructions a position and row of 8
// KB: 4.2e8 warp instructions against 9e11 a second, 0.5 ms of issue in 2.6 ms of reading. With a copy bandwidth of 2.9
// TB/s (of 3.35) and 90 % of it reached, the prediction is
//     32k positions  0.27 GB   0.10 ms + 0.01 ms merge
//     128k           1.07 GB   0.41 ms + 0.01 ms
//     1M             8.59 GB   3.3 ms
// Matrix tiles at 9 to 16 rows read the same bytes; 16 rows cost 2 * 2 * 16 * 2048 = 131 kFLOP a position, 0.14 TFLOP
// at 2^20, 0.35 ms of the matrix units at 400 TFLOP/s: still bound by reading, in runs of 128 bytes: 3.5 ms.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"

namespace goldfinch::cuda {
namespace {

constexpr float kLog2E = 1.4426950408889634f;
constexpr int64_t kMatrixPositions = 64;           // of a tile
constexpr int kBlocksWanted = 4;                   // of a multiprocessor
constexpr int kStreamWarps = 8;                    // of a block at most
constexpr int kMatrixWarps = 4;                    // of a block
constexpr int kStages = 3;                         // tiles of positions in shared memory
constexpr int64_t kSlotFloats = int64_t{1} << 24;  // of query rows attended to at once, where they are many

struct AttendArguments {
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
  float scale;  // of scores, in units of log 2
  const float* row_factors;
  const float* key_weight;
  float* slot_values;
  float* slot_maxima;
  float* slot_sums;
  float* slot_offsets;
};

__device__ inline float LoadAs(const void* data, DType dtype, int64_t index) {
  if (dtype == DType::kF32) return static_cast<const float*>(data)[index];
  if (dtype == DType::kF16) return ToFloat(static_cast<const f16_t*>(data)[index]);
  return ToFloat(static_cast<const bf16_t*>(data)[index]);
}

__device__ constexpr float Infinity() { return std::numeric_limits<float>::infinity(); }

// The row of the keys where a position is.
__device__ inline int64_t StoredRow(const AttendTask& task, const int32_t* pages, int64_t page_tokens,
                                    int64_t position) {
  if (page_tokens == 0) return task.first_row + position - task.begin;
  const auto at = static_cast<uint32_t>(position), tokens = static_cast<uint32_t>(page_tokens);
  return pages[at / tokens] * page_tokens + at % tokens;
}

// What a maximum is subtracted as: where nothing was seen yet it is -infinity, which would give a NaN.
__device__ inline float Base(float maximum) { return maximum == -Infinity() ? 0.f : maximum; }

// --- Plain ----------------------------------------------------------------------------------------------------------

// One row and head; a lane has every 32nd column of the head.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kWarp) PlainKernel(AttendArguments a) {
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
    const float keep = FastExp2(maximum - Base(raised)), p = FastExp2(score - Base(raised));
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

// --- Stream ---------------------------------------------------------------------------------------------------------

// A warp has 32 * 16 bytes of every row; kHeadLanes lanes share a head (0: the head size tells). kUnfinished: the norms
// of keys and values are still to be done.
template <typename T, int kHeadLanes, int kRows, bool kUnfinished>
__global__ void __launch_bounds__(kStreamWarps* kWarp, kRows == 1 ? 2 : 1) StreamKernel(AttendArguments a) {
  constexpr int kColumns = 16 / static_cast<int>(sizeof(T));  // of a lane
  constexpr int kDeep = kRows == 1 && !kUnfinished ? 8 : 4;   // positions under way
  const int warps = static_cast<int>(blockDim.x) / kWarp, lane = threadIdx.x % kWarp;
  const int groups = static_cast<int>(CeilDiv<int64_t>(a.width, kWarp * kColumns * warps));
  const AttendTask task = a.tasks[blockIdx.x / groups];
  if (task.begin >= task.end) return;
  const int group = static_cast<int>(blockIdx.x) % groups * warps + static_cast<int>(threadIdx.x) / kWarp;
  const int32_t* pages = a.spans[task.span].pages;
  const int64_t first_column = (int64_t{group} * kWarp + lane) * kColumns;
  // Heads are of whole lanes, so that those past the last column keep among themselves.
  const bool there = first_column < a.width;
  const int64_t column = there ? first_column : 0;
  const int head_lanes = kHeadLanes > 0 ? kHeadLanes : a.head_size / kColumns;
  const int64_t head = column / a.head_size;

  float q[kRows][kColumns], sums[kRows][kColumns], maximum[kRows], sum[kRows];
  float q_sum[kRows], offset[kRows];  // norms undone: the query's sum, and sum of p * mean * scale of values
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const bool known = r < task.rows, resumes = known && task.resumes;
    const int64_t slot = task.slot_row + r;
    maximum[r] = resumes ? a.slot_maxima[slot * a.heads + head] : -Infinity();
    sum[r] = resumes ? a.slot_sums[slot * a.heads + head] : 0.f;
    offset[r] = kUnfinished && resumes ? a.slot_offsets[slot * a.heads + head] : 0.f;
    q_sum[r] = 0;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      q[r][c] = known ? LoadAs(a.q, a.q_dtype, (task.row + r) * a.width + column + c) * a.scale : 0.f;
      if (kUnfinished) q[r][c] *= a.key_weight[column + c];
      q_sum[r] += q[r][c];
      sums[r][c] = resumes ? a.slot_values[slot * a.width + column + c] : 0.f;
    }
    if (kUnfinished) {
      for (int mask = head_lanes / 2; mask > 0; mask /= 2) q_sum[r] += ShflXor(q_sum[r], mask);
    }
  }

  for (int64_t base = task.begin; base < task.end; base += kWarp) {
    // Positions past the end stand for the last one, with no weight.
    const int64_t my_row = StoredRow(task, pages, a.page_tokens, base + lane < task.end ? base + lane : task.end - 1);
    const int count = static_cast<int>(task.end - base < kWarp ? task.end - base : kWarp);
    for (int first = 0; first < count; first += kDeep) {
      Vec<T, kColumns> keys[kDeep], values[kDeep];
      Vec<float, 4> factors[kDeep];
#pragma unroll
      for (int u = 0; u < kDeep; ++u) {
        const int64_t row = Shfl(my_row, first + u);
        keys[u] = *reinterpret_cast<const Vec<T, kColumns>*>(static_cast<const T*>(a.keys) + row * a.width + column);
        values[u] =
            *reinterpret_cast<const Vec<T, kColumns>*>(static_cast<const T*>(a.values) + row * a.width + column);
        if (kUnfinished) factors[u] = *reinterpret_cast<const Vec<float, 4>*>(a.row_factors + 4 * row);
      }
      const int64_t last = base + first + kDeep - 1;
      // Past the end, or past what the first row sees.
      const bool masked = last >= task.end || last > task.position;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float p[kDeep], raised = maximum[r];
#pragma unroll
        for (int u = 0; u < kDeep; ++u) {
          float dot = 0;
#pragma unroll
          for (int c = 0; c < kColumns; ++c) dot += q[r][c] * ToFloat(keys[u].v[c]);
          if (kHeadLanes > 0) {
#pragma unroll
            for (int mask = kHeadLanes / 2; mask > 0; mask /= 2) dot += ShflXor(dot, mask);
          } else {
            for (int mask = head_lanes / 2; mask > 0; mask /= 2) dot += ShflXor(dot, mask);
          }
          if (kUnfinished) dot = dot * factors[u].v[0] - q_sum[r] * factors[u].v[1];
          if (masked && (base + first + u >= task.end || base + first + u > task.position + r)) dot = -Infinity();
          p[u] = dot;
          raised = fmaxf(raised, dot);
        }
        const float keep = FastExp2(maximum[r] - Base(raised));
        maximum[r] = raised;
        sum[r] *= keep;
        offset[r] *= keep;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) sums[r][c] *= keep;
#pragma unroll
        for (int u = 0; u < kDeep; ++u) {
          // What a row does not see must not touch it, not even as 0 * NaN.
          if (masked && (base + first + u >= task.end || base + first + u > task.position + r)) continue;
          float weight = FastExp2(p[u] - Base(raised));
          sum[r] += weight;
          if (kUnfinished) {
            offset[r] += weight * factors[u].v[3];
            weight *= factors[u].v[2];
          }
#pragma unroll
          for (int c = 0; c < kColumns; ++c) sums[r][c] += weight * ToFloat(values[u].v[c]);
        }
      }
    }
  }

  if (!there) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= task.rows) break;
    const int64_t slot = task.slot_row + r;
    if (lane % head_lanes == 0) {
      a.slot_maxima[slot * a.heads + head] = maximum[r];
      a.slot_sums[slot * a.heads + head] = sum[r];
      if (kUnfinished) a.slot_offsets[slot * a.heads + head] = offset[r];
    }
#pragma unroll
    for (int c = 0; c < kColumns; c += 4) {
      const float four[4] = {sums[r][c], sums[r][c + 1], sums[r][c + 2], sums[r][c + 3]};
      StoreFloats<4>(four, a.slot_values + slot * a.width + column + c);
    }
  }
}

// --- Matrix ---------------------------------------------------------------------------------------------------------

// Rows of a tile of keys or values in shared memory have their 16-byte pieces in an order of their own, so that the 8
// rows of an 8x8 matrix lie in different banks.
template <int kHeadSize>
__device__ inline int PieceAt(int row, int piece) {
  return row * kHeadSize + (piece ^ (row & 7)) * 8;
}

// A block has a head, 16 * kRowWarps query rows and tiles of 64 positions; kRowWarps warps share the rows, the others
// the positions of a tile. Fragments as mma.m16n8k16 has them: lane 4g + t has rows g and g + 8, columns 2t and 2t + 1.
template <typename T, int kHeadSize, int kRowWarps, bool kUnfinished>
__global__ void __launch_bounds__(kMatrixWarps* kWarp) MatrixKernel(AttendArguments a) {
  constexpr int kThreads = kMatrixWarps * kWarp, kPieces = kHeadSize / 8;
  constexpr int kTile = static_cast<int>(kMatrixPositions), kTileElements = kTile * kHeadSize;
  constexpr int kSteps = kHeadSize / 16;                    // of 16 columns of a head
  constexpr int kShare = kTile * kRowWarps / kMatrixWarps;  // positions of a tile that a warp has
  constexpr int kGroups = kShare / 16;
  T* const shared = DynamicShared<T>();  // [kStages][2: keys, values][kTile][kHeadSize]
  const AttendTask task = a.tasks[blockIdx.x / a.heads];
  const int head = static_cast<int>(blockIdx.x) % a.heads;
  const int lane = threadIdx.x % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp, g = lane / 4, t = lane % 4;
  const int first_row = warp % kRowWarps * 16, sharer = warp / kRowWarps;
  const int32_t* pages = a.spans[task.span].pages;
  const int64_t column = int64_t{head} * kHeadSize;

  const auto load = [&](int64_t begin, int stage) {
    T* const keys = shared + stage * 2 * kTileElements;
    constexpr int kRowsAtOnce = kThreads / kPieces;
    const int piece = static_cast<int>(threadIdx.x) % kPieces;
#pragma unroll
    for (int i = 0; i < kTile / kRowsAtOnce; ++i) {
      const int row = i * kRowsAtOnce + static_cast<int>(threadIdx.x) / kPieces;
      const bool there = begin + row < task.end;
      const int64_t stored = StoredRow(task, pages, a.page_tokens, there ? begin + row : task.begin);
      const int64_t from = stored * a.width + column + piece * 8;
      T* const to = keys + PieceAt<kHeadSize>(row, piece);
      CopyAsync16(to, static_cast<const T*>(a.keys) + from, there);
      CopyAsync16(to + kTileElements, static_cast<const T*>(a.values) + from, there);
    }
  };
  const int tiles = static_cast<int>((task.end - task.begin + kTile - 1) / kTile);
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < tiles) load(task.begin + stage * kTile, stage);
    CopyAsyncCommit();
  }

  uint32_t q[kSteps][4];
  float q_sum[2] = {0, 0};
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + g + i % 2 * 8;
      const int64_t c = column + step * 16 + i / 2 * 8 + 2 * t;
      q[step][i] = 0;
      if (row >= task.rows) continue;
      q[step][i] = *reinterpret_cast<const uint32_t*>(static_cast<const T*>(a.q) + (task.row + row) * a.width + c);
      if (kUnfinished) {
        const float2 pair = Unpack2<T>(q[step][i]);
        q[step][i] = Pack2<T>(pair.x * a.key_weight[c], pair.y * a.key_weight[c + 1]);
        const float2 rounded = Unpack2<T>(q[step][i]);
        q_sum[i % 2] += rounded.x + rounded.y;
      }
    }
  }
  float maximum[2], sum[2], offset[2] = {0, 0}, sums[2 * kSteps][4];
  const int64_t slot = task.slot_row + first_row + g;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    // Of the warps that share rows the first goes on from the slot.
    const bool resumes = first_row + g + half * 8 < task.rows && task.resumes && sharer == 0;
    const int64_t at = slot + half * 8;
    maximum[half] = resumes ? a.slot_maxima[at * a.heads + head] : -Infinity();
    // Of the lane's own columns until the end.
    sum[half] = resumes && t == 0 ? a.slot_sums[at * a.heads + head] : 0.f;
    if (kUnfinished) {
      q_sum[half] += ShflXor(q_sum[half], 1);
      q_sum[half] += ShflXor(q_sum[half], 2);
      offset[half] = resumes && t == 0 ? a.slot_offsets[at * a.heads + head] : 0.f;
    }
#pragma unroll
    for (int n = 0; n < 2 * kSteps; ++n) {
      const float* from = a.slot_values + at * a.width + column + n * 8 + 2 * t;
      sums[n][2 * half] = resumes ? from[0] : 0.f;
      sums[n][2 * half + 1] = resumes ? from[1] : 0.f;
    }
  }

  // Of the first row that the warp has.
  const int64_t sees = task.position + first_row;
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    CopyAsyncWait<kStages - 2>();
    __syncthreads();  // the tile is there for all, and nobody reads the one before it any more
    if (tile + kStages - 1 < tiles) {
      load(task.begin + (tile + kStages - 1) * kTile, (tile + kStages - 1) % kStages);
    }
    CopyAsyncCommit();
    const T* const keys = shared + tile % kStages * 2 * kTileElements;
    const T* const values = keys + kTileElements;
    const int64_t begin = task.begin + tile * kTile + sharer * kShare;
    // Nobody of the warp sees these, or they are past the end.
    if (begin >= task.end || begin > sees + 15 || first_row >= task.rows) continue;

    float scores[2 * kGroups][4];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[2 * group][i] = scores[2 * group + 1][i] = 0;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t b[4];
        const int row = sharer * kShare + group * 16 + lane / 16 * 8 + lane % 8;
        LdMatrix4(b, keys + PieceAt<kHeadSize>(row, 2 * step + lane / 8 % 2));
        Mma16816<T>(scores[2 * group], q[step], {b[0], b[1]});
        Mma16816<T>(scores[2 * group + 1], q[step], {b[2], b[3]});
      }
    }
    const bool masked = begin + kShare > task.end || begin + kShare - 1 > sees;
    float value_scale[kUnfinished ? 4 * kGroups : 1];
    float raised[2] = {maximum[0], maximum[1]}, value_offset[kUnfinished ? 4 * kGroups : 1];
#pragma unroll
    for (int n = 0; n < 2 * kGroups; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int64_t position = begin + n * 8 + 2 * t + c;
        Vec<float, 4> factors = {};
        if (kUnfinished) {
          const int64_t at = position < task.end ? position : task.end - 1;
          factors = *reinterpret_cast<const Vec<float, 4>*>(a.row_factors + 4 * StoredRow(task, nullptr, 0, at));
          value_scale[2 * n + c] = factors.v[2];
          value_offset[2 * n + c] = factors.v[3];
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& score = scores[n][2 * half + c];
          if (kUnfinished) score = score * factors.v[0] - q_sum[half] * factors.v[1];
          score *= a.scale;
          if (masked && (position >= task.end || position > sees + g + half * 8)) score = -Infinity();
          raised[half] = fmaxf(raised[half], score);
        }
      }
    }
    float base[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      raised[half] = fmaxf(raised[half], ShflXor(raised[half], 1));
      raised[half] = fmaxf(raised[half], ShflXor(raised[half], 2));
      base[half] = Base(raised[half]);
      const float keep = FastExp2(maximum[half] - base[half]);
      maximum[half] = raised[half];
      sum[half] *= keep;
      offset[half] *= keep;
#pragma unroll
      for (int n = 0; n < 2 * kSteps; ++n) {
        sums[n][2 * half] *= keep;
        sums[n][2 * half + 1] *= keep;
      }
    }
#pragma unroll
    for (int n = 0; n < 2 * kGroups; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& p = scores[n][i];
        const bool unseen = p == -Infinity();
        p = FastExp2(p - base[i / 2]);
        sum[i / 2] += p;
        if (kUnfinished && !unseen) {
          offset[i / 2] += p * value_offset[2 * n + i % 2];
          p *= value_scale[2 * n + i % 2];
        }
      }
    }
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int64_t group_begin = begin + group * 16;
      if (group_begin >= task.end || group_begin > sees + 15) continue;
      const int group_row = sharer * kShare + group * 16;
      if (group_begin + 15 > sees && task.end > sees + 1) {
        // Some rows do not see some of the positions, and what a row does not see must not touch it, not even as
        // 0 * NaN.
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll 1
          for (int from = 0; from < 4; ++from) {
            const int at = i / 2 * 8 + 2 * from + i % 2;
            const float p0 = Shfl(scores[2 * group + i / 2][i % 2], lane / 4 * 4 + from);
            const float p1 = Shfl(scores[2 * group + i / 2][2 + i % 2], lane / 4 * 4 + from);
            const bool sees0 = group_begin + at <= sees + g, sees1 = group_begin + at <= sees + g + 8;
            if (group_begin + at >= task.end) continue;
#pragma unroll
            for (int n = 0; n < 2 * kSteps; ++n) {
              const float2 v = Unpack2<T>(
                  *reinterpret_cast<const uint32_t*>(values + PieceAt<kHeadSize>(group_row + at, n) + 2 * t));
              if (sees0) {
                sums[n][0] += p0 * v.x;
                sums[n][1] += p0 * v.y;
              }
              if (sees1) {
                sums[n][2] += p1 * v.x;
                sums[n][3] += p1 * v.y;
              }
            }
          }
        }
        continue;
      }
      const float* low = scores[2 * group];
      const float* high = scores[2 * group + 1];
      const uint32_t p[4] = {Pack2<T>(low[0], low[1]), Pack2<T>(low[2], low[3]), Pack2<T>(high[0], high[1]),
                             Pack2<T>(high[2], high[3])};
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t b[4];
        LdMatrix4Trans(b, values + PieceAt<kHeadSize>(group_row + lane % 16, 2 * step + lane / 16));
        Mma16816<T>(sums[2 * step], p, {b[0], b[1]});
        Mma16816<T>(sums[2 * step + 1], p, {b[2], b[3]});
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] += ShflXor(sum[half], 1);
    sum[half] += ShflXor(sum[half], 2);
    if (kUnfinished) {
      offset[half] += ShflXor(offset[half], 1);
      offset[half] += ShflXor(offset[half], 2);
    }
  }
  // The warps' results, merged through the shared memory of the tiles.
  constexpr int kSharers = kMatrixWarps / kRowWarps, kRows = 16 * kRowWarps;
  float* const results = DynamicShared<float>();                 // [kSharers][kRows][kHeadSize]
  float* const maxima = results + kSharers * kRows * kHeadSize;  // [kSharers][kRows]
  float* const totals = maxima + kSharers * kRows;
  float* const offsets = totals + kSharers * kRows;
  CopyAsyncWait<0>();
  __syncthreads();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = sharer * kRows + first_row + g + half * 8;
    if (t == 0) {
      maxima[at] = maximum[half];
      totals[at] = sum[half];
      offsets[at] = offset[half];
    }
#pragma unroll
    for (int n = 0; n < 2 * kSteps; ++n) {
      StoreFloats<2>({sums[n][2 * half], sums[n][2 * half + 1]}, results + at * kHeadSize + n * 8 + 2 * t);
    }
  }
  __syncthreads();
  const int rows = task.rows < kRows ? task.rows : kRows;
  for (int i = static_cast<int>(threadIdx.x); i < rows * (kHeadSize / 4); i += kThreads) {
    const int row = i / (kHeadSize / 4), c = i % (kHeadSize / 4) * 4;
    float most = -Infinity();
#pragma unroll
    for (int s = 0; s < kSharers; ++s) most = fmaxf(most, maxima[s * kRows + row]);
    float total = 0, total_offset = 0, merged[4] = {0, 0, 0, 0};
#pragma unroll
    for (int s = 0; s < kSharers; ++s) {
      const int at = s * kRows + row;
      const float weight = FastExp2(maxima[at] - Base(most));
      total += weight * totals[at];
      total_offset += weight * offsets[at];
      float part[4];
      LoadFloats<4>(results + at * kHeadSize + c, part);
#pragma unroll
      for (int k = 0; k < 4; ++k) merged[k] += weight * part[k];
    }
    const int64_t to = task.slot_row + row;
    StoreFloats<4>(merged, a.slot_values + to * a.width + column + c);
    if (c != 0) continue;
    a.slot_maxima[to * a.heads + head] = most;
    a.slot_sums[to * a.heads + head] = total;
    if (kUnfinished) a.slot_offsets[to * a.heads + head] = total_offset;
  }
}

// --- Merge ----------------------------------------------------------------------------------------------------------

// Where the slots of a query row are: first, first + step, ...
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
  const float base = Base(maximum);

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

bool PowerOfTwo(int64_t x) { return (x & (x - 1)) == 0; }

dim3 Blocks(int64_t count) {
  GF_CHECK_LE(count, int64_t{1} << 30);
  return dim3(static_cast<unsigned>(count));
}

template <typename T, int kRowWarps>
void RunMatrix(Stream stream, LaunchShape shape, const AttendArguments& a) {
  if constexpr (sizeof(T) == 2) {
    const bool unfinished = a.row_factors != nullptr;
    shape.block = dim3(kMatrixWarps * kWarp);
    shape.shared_bytes = size_t{kStages} * 2 * kMatrixPositions * a.head_size * sizeof(T);
    if (a.head_size == 64) {
      Launch(stream, unfinished ? MatrixKernel<T, 64, kRowWarps, true> : MatrixKernel<T, 64, kRowWarps, false>, shape,
             a);
    } else if (!unfinished) {
      Launch(stream, MatrixKernel<T, 128, kRowWarps, false>, shape, a);
    } else if constexpr (kRowWarps < kMatrixWarps) {
      Launch(stream, MatrixKernel<T, 128, kRowWarps, true>, shape, a);
    } else {
      GF_CHECK(false);
    }
  } else {
    GF_CHECK(false);
  }
}

template <typename T, int kRows>
void RunStream(Stream stream, LaunchShape shape, const AttendArguments& a) {
  const int64_t warps = CeilDiv<int64_t>(a.width * static_cast<int64_t>(sizeof(T)), kWarp * 16);
  shape.block = dim3(static_cast<unsigned>(std::min<int64_t>(warps, kStreamWarps)) * kWarp);
  const int64_t head_lanes = a.head_size * static_cast<int64_t>(sizeof(T)) / 16;
  if constexpr (sizeof(T) == 2) {
    if (a.row_factors != nullptr) {
      Launch(stream, head_lanes == 8 ? StreamKernel<T, 8, kRows, true> : StreamKernel<T, 0, kRows, true>, shape, a);
      return;
    }
  }
  Launch(stream,
         head_lanes == 8    ? StreamKernel<T, 8, kRows, false>
         : head_lanes == 16 ? StreamKernel<T, 16, kRows, false>
                            : StreamKernel<T, 0, kRows, false>,
         shape, a);
}

}  // namespace

// Shapes of the kinds.
struct KindShape {
  int rows;      // of a tile, at most
  int64_t unit;  // positions: parts are cut at multiples
  // As many tasks whatever the positions, empty ones among them, so that a decode step's launches stay the same from
  // token to token. They are no more than the blocks that run at once, and an empty one ends where it begins.
  bool steady;
};
constexpr KindShape kShapes[] = {{64, 64, false}, {32, 64, false}, {16, 64, false},
                                 {4, 32, false},  {1, 32, true},   {1, 32, true}};

Attention::Attention(Context& context, ConstTensor q, RowSpans spans, const DeviceSpan* device_spans, int head_size,
                     DType key_dtype, const UnfinishedNorms& norms, Tensor out, int64_t part_positions)
    : context_(context),
      q_(q),
      spans_(spans),
      device_spans_(device_spans),
      head_size_(head_size),
      key_dtype_(key_dtype),
      norms_(norms),
      out_(out),
      width_(q.dim(1)),
      heads_(width_ / head_size) {
  int64_t counts[kKinds] = {};
  for (int i = 0; i < static_cast<int>(spans.size()); ++i) {
    const RowSpan& span = spans[i];
    for (int row = 0; row < span.row_count;) {
      const Kind kind = KindOf(span.row_count - row);
      const int rows = std::min(span.row_count - row, kShapes[kind].rows);
      tiles_.push_back({kind, i, span.row_begin + row, rows, span.position + row, 0, 0});
      ++counts[kind];
      row += rows;
    }
  }
  for (int kind = 0; kind < kKinds; ++kind) {
    if (counts[kind] == 0) continue;
    const int64_t wanted = int64_t{kBlocksWanted} * context.multiprocessors();
    splits_[kind] = std::min(CeilDiv(wanted, counts[kind] * BlocksOf(static_cast<Kind>(kind))),
                             CeilDiv(part_positions, kShapes[kind].unit));
  }
  int64_t rows = 0;
  for (Tile& tile : tiles_) {
    tile.slot_row = rows;
    rows += tile.rows * (kShapes[tile.kind].steady ? splits_[tile.kind] : SplitsOf(tile, tile.position + tile.rows));
  }
  values_ = context.Scratch<float>(rows * width_);
  maxima_ = context.Scratch<float>(rows * heads_);
  sums_ = context.Scratch<float>(rows * heads_);
  if (norms) offsets_ = context.Scratch<float>(rows * heads_);
}

// Blocks of one task.
int64_t Attention::BlocksOf(Kind kind) const {
  if (kind != kStream1 && kind != kStream4) return heads_;
  return CeilDiv<int64_t>(width_ * SizeOf(key_dtype_), int64_t{kStreamWarps} * kWarp * 16);
}

// Tasks of a tile that sees so many positions.
int64_t Attention::SplitsOf(const Tile& tile, int64_t positions) const {
  return std::min<int64_t>(splits_[tile.kind], CeilDiv(positions, kShapes[tile.kind].unit));
}

Attention::Kind Attention::KindOf(int rows) const {
  const bool halves = SizeOf(key_dtype_) == 2;
  if (rows > kShapes[kStream4].rows && halves && q_.dtype == key_dtype_ && (head_size_ == 64 || head_size_ == 128)) {
    // Heads of 128 and norms at once leave no registers for 64 rows.
    if (rows > 32 && !(norms_ && head_size_ == 128)) return kMatrix64;
    return rows > 16 ? kMatrix32 : kMatrix16;
  }
  const int64_t head_lanes = head_size_ * SizeOf(key_dtype_) / 16;
  if (!PowerOfTwo(head_lanes) || head_lanes > kWarp) return kPlain;
  return rows == 1 ? kStream1 : kStream4;
}

void Attention::Add(const StoredKeys& stored, absl::Span<const AttendPart> parts) {
  const Context::Frame frame(context_);
  std::vector<AttendTask> tasks[kKinds];
  int64_t tiles[kKinds] = {};
  auto tile = tiles_.begin();
  for (const AttendPart& part : parts) {
    while (tile->span != part.span) ++tile;
    for (; tile != tiles_.end() && tile->span == part.span; ++tile) {
      ++tiles[tile->kind];
      const int64_t end = std::min(part.end, tile->position + tile->rows);
      if (part.begin >= end) continue;
      const int64_t length = end - part.begin;
      const int64_t unit = kShapes[tile->kind].unit;
      const int64_t step = CeilDiv(CeilDiv(length, SplitsOf(*tile, length)), unit) * unit;
      int used = 0;
      for (int64_t begin = part.begin; begin < end; begin += step, ++used) {
        tasks[tile->kind].push_back({.span = tile->span,
                                     .row = tile->row,
                                     .rows = tile->rows,
                                     .resumes = used < tile->slots_used ? 1 : 0,
                                     .position = tile->position,
                                     .begin = begin,
                                     .end = std::min(end, begin + step),
                                     .first_row = part.first_row + begin - part.begin,
                                     .slot_row = tile->slot_row + int64_t{used} * tile->rows});
      }
      tile->slots_used = std::max(tile->slots_used, used);
    }
  }
  for (int kind = 0; kind < kKinds; ++kind) {
    // Parts begin and end at other spans from token to token: their number is rounded up.
    if (kShapes[kind].steady) tasks[kind].resize(PowerOfTwoFrom(tiles[kind]) * splits_[kind]);
    if (!tasks[kind].empty()) Run(static_cast<Kind>(kind), stored, tasks[kind]);
  }
}

void Attention::Run(Kind kind, const StoredKeys& stored, absl::Span<const AttendTask> tasks) const {
  GF_CHECK(stored.dtype == key_dtype_);
  for (const void* rows : {stored.keys, stored.values, q_.data}) {
    GF_CHECK_EQ(reinterpret_cast<uintptr_t>(rows) % 16, 0u) << "rows are read 16 bytes at a time";
  }
  GF_CHECK_EQ(stored.row_factors != nullptr, static_cast<bool>(norms_));
  const auto stream = static_cast<Stream>(context_.stream());
  const AttendArguments a{.tasks = context_.UploadShared(tasks),
                          .spans = device_spans_,
                          .q = q_.data,
                          .q_dtype = q_.dtype,
                          .keys = stored.keys,
                          .values = stored.values,
                          .width = width_,
                          .page_tokens = stored.page_tokens,
                          .head_size = head_size_,
                          .heads = static_cast<int>(heads_),
                          .scale = kLog2E / std::sqrt(static_cast<float>(head_size_)),
                          .row_factors = stored.row_factors,
                          .key_weight = norms_ ? norms_.key.weight.f32() : nullptr,
                          .slot_values = values_,
                          .slot_maxima = maxima_,
                          .slot_sums = sums_,
                          .slot_offsets = offsets_};
  const LaunchShape shape{Blocks(static_cast<int64_t>(tasks.size()) * BlocksOf(kind)), dim3(kWarp)};
  VisitFloatType(stored.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    switch (kind) {
      case kMatrix64:
        return RunMatrix<T, 4>(stream, shape, a);
      case kMatrix32:
        return RunMatrix<T, 2>(stream, shape, a);
      case kMatrix16:
        return RunMatrix<T, 1>(stream, shape, a);
      case kStream4:
        return RunStream<T, 4>(stream, shape, a);
      case kStream1:
        return RunStream<T, 1>(stream, shape, a);
      default:
        return Launch(stream,
                      head_size_ <= 64    ? PlainKernel<T, 2>
                      : head_size_ <= 256 ? PlainKernel<T, 8>
                                          : PlainKernel<T, 32>,
                      shape, a);
    }
  });
}

void Attention::Finish() {
  const Context::Frame frame(context_);
  std::vector<MergeRow> rows;
  for (const Tile& tile : tiles_) {
    for (int row = 0; row < tile.rows; ++row) {
      rows.push_back({tile.slot_row + row, tile.row + row, tile.rows, tile.slots_used});
    }
  }
  const MergeArguments a{.rows = context_.UploadShared(absl::MakeConstSpan(rows)),
                         .slot_values = values_,
                         .slot_maxima = maxima_,
                         .slot_sums = sums_,
                         .slot_offsets = offsets_,
                         .value_weight = norms_ ? norms_.value.weight.f32() : nullptr,
                         .value_bias = norms_ ? norms_.value.bias.f32() : nullptr,
                         .width = width_,
                         .head_size = head_size_,
                         .heads = static_cast<int>(heads_)};
  const LaunchShape shape{Blocks(static_cast<int64_t>(rows.size()) * heads_), dim3(kMergeThreads),
                          (kWarp + kMergeThreads) * sizeof(float)};
  VisitFloatType(out_.dtype, [&](auto tag) {
    using Act = typename decltype(tag)::type;
    Launch(static_cast<Stream>(context_.stream()), MergeKernel<Act>, shape, a, static_cast<Act*>(out_.data));
  });
}

std::vector<std::vector<RowSpan>> CutRows(RowSpans spans, int64_t rows_max) {
  std::vector<std::vector<RowSpan>> cuts(1);
  int64_t rows = 0;
  for (RowSpan span : spans) {
    while (span.row_count > 0) {
      RowSpan part = span;
      part.row_count = static_cast<int32_t>(std::min<int64_t>(span.row_count, rows_max - rows));
      cuts.back().push_back(part);
      rows += part.row_count;
      span.row_begin += part.row_count;
      span.position += part.row_count;
      span.row_count -= part.row_count;
      if (rows < rows_max) continue;
      cuts.emplace_back();
      rows = 0;
    }
  }
  if (cuts.back().empty()) cuts.pop_back();
  return cuts;
}

int64_t PowerOfTwoFrom(int64_t count) {
  return count == 0 ? 0 : static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(count)));
}

int64_t AttentionRowsMax(int64_t width) { return std::max<int64_t>(64, kSlotFloats / width / 64 * 64); }

void KvAttention(Context& context, ConstTensor q, RowSpans spans, const KvCache& cache, int head_size, Tensor out) {
  for (const std::vector<RowSpan>& cut : CutRows(spans, AttentionRowsMax(q.dim(1)))) {
    const Context::Frame frame(context);
    Attention attention(context, q, cut, context.UploadSpans(cut, cache.page_tokens()), head_size, cache.keys.dtype, {},
                        out);
    std::vector<AttendPart> parts;
    for (int i = 0; i < static_cast<int>(cut.size()); ++i)
      parts.push_back({i, 0, cut[i].position + cut[i].row_count, 0});
    attention.Add({cache.keys.data, cache.values.data, cache.keys.dtype, cache.page_tokens()}, parts);
    attention.Finish();
  }
}

}  // namespace goldfinch::cuda
