// Device code of Attention on matrix units: tiles of 16, 32 or 64 query rows.
#ifndef GOLDFINCH_KERNELS_CUDA_ATTEND_MATRIX_H_
#define GOLDFINCH_KERNELS_CUDA_ATTEND_MATRIX_H_

#include <cstdint>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/attend_stream.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/matrix_tile.h"
#include "kernels/cuda/online_softmax.h"

namespace goldfinch::cuda::attend {

constexpr int kMatrixPositions = 64;  // of a tile
constexpr int kMatrixWarps = 4;       // of a block
constexpr int kMatrixThreads = kMatrixWarps * kWarp;
constexpr int kMatrixStages = 3;  // tiles of positions in shared memory

// A warp's part of a tile of query rows, and its softmax so far. A block has a head, 16 * kRowWarps query rows and
// tiles of 64 positions; kRowWarps warps share the rows, the others the positions of a tile. kUnfinished: the norms of
// keys and values are still to be done.
//
// The methods are in the order in which the kernel calls them.
template <typename T, int kHeadSize, int kRowWarps, bool kUnfinished>
class MatrixWarp : LanePlace {
  static constexpr int kPieces = kHeadSize / 8;
  static constexpr int kTile = kMatrixPositions, kTileElements = kTile * kHeadSize;
  static constexpr int kSteps = kHeadSize / 16;                    // of 16 columns of a head
  static constexpr int kShare = kTile * kRowWarps / kMatrixWarps;  // positions of a tile that a warp has
  static constexpr int kGroups = kShare / 16;
  static constexpr int kSharers = kMatrixWarps / kRowWarps, kRows = 16 * kRowWarps;

 public:
  __device__ explicit MatrixWarp(const Arguments& arguments)
      : a_(arguments),
        task_(arguments.tasks[blockIdx.x / arguments.heads]),
        pages_(arguments.spans[task_.span].pages),
        head_(static_cast<int>(blockIdx.x) % arguments.heads),
        first_row_(warp % kRowWarps * 16),
        sharer_(warp / kRowWarps),
        column_(int64_t{head_} * kHeadSize),
        sees_(task_.position + first_row_) {}

  __device__ int tiles() const { return static_cast<int>((task_.end - task_.begin + kTile - 1) / kTile); }

  // Starts the copy of a tile's keys and values; all warps of the block call.
  __device__ __forceinline__ void CopyTile(int tile, T* shared) const {
    const int64_t begin = task_.begin + tile * kTile;
    T* const keys = shared + tile % kMatrixStages * 2 * kTileElements;
    constexpr int kRowsAtOnce = kMatrixThreads / kPieces;
    const int piece = static_cast<int>(threadIdx.x) % kPieces;
#pragma unroll
    for (int i = 0; i < kTile / kRowsAtOnce; ++i) {
      const int row = i * kRowsAtOnce + static_cast<int>(threadIdx.x) / kPieces;
      const bool there = begin + row < task_.end;
      const int64_t stored = StoredRow(task_, pages_, a_.page_tokens, there ? begin + row : task_.begin);
      const int64_t from = stored * a_.width + column_ + piece * 8;
      T* const to = keys + PieceOffset<kHeadSize>(row, piece);
      CopyAsync16(to, static_cast<const T*>(a_.keys) + from, there);
      CopyAsync16(to + kTileElements, static_cast<const T*>(a_.values) + from, there);
    }
  }

  // The queries as fragments, times the weight of the key norm if that is unfinished.
  __device__ __forceinline__ void LoadQueries() {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = first_row_ + g + i % 2 * 8;
        const int64_t c = column_ + step * 16 + i / 2 * 8 + 2 * t;
        q_[step][i] = 0;
        if (row >= task_.rows) continue;
        q_[step][i] =
            *reinterpret_cast<const uint32_t*>(static_cast<const T*>(a_.q) + (task_.row + row) * a_.width + c);
        if (kUnfinished) {
          const float2 pair = Unpack2<T>(q_[step][i]);
          q_[step][i] = Pack2<T>(pair.x * a_.key_weight[c], pair.y * a_.key_weight[c + 1]);
          const float2 rounded = Unpack2<T>(q_[step][i]);
          q_sum_[i % 2] += rounded.x + rounded.y;
        }
      }
    }
    if constexpr (kUnfinished) {
#pragma unroll
      for (int half = 0; half < 2; ++half) q_sum_[half] = RowSum(q_sum_[half]);
    }
  }

  // Goes on from the slots if the task resumes: among warps that share rows, the first one does.
  __device__ __forceinline__ void LoadSlots() {
    const int64_t slot = task_.slot_row + first_row_ + g;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool resumes = first_row_ + g + half * 8 < task_.rows && task_.resumes && sharer_ == 0;
      const int64_t at = slot + half * 8;
      maximum_[half] = resumes ? a_.slot_maxima[at * a_.heads + head_] : -Infinity();
      // Sums are of the lane's own positions until the end.
      sum_[half] = resumes && t == 0 ? a_.slot_sums[at * a_.heads + head_] : 0.f;
      if (kUnfinished) offset_[half] = resumes && t == 0 ? a_.slot_offsets[at * a_.heads + head_] : 0.f;
#pragma unroll
      for (int n = 0; n < 2 * kSteps; ++n) {
        const float* from = a_.slot_values + at * a_.width + column_ + n * 8 + 2 * t;
        sums_[n][2 * half] = resumes ? from[0] : 0.f;
        sums_[n][2 * half + 1] = resumes ? from[1] : 0.f;
      }
    }
  }

  // Attends to the warp's share of a tile that lies in shared memory.
  __device__ __forceinline__ void Attend(int tile, const T* shared) {
    const T* const keys = shared + tile % kMatrixStages * 2 * kTileElements;
    const int64_t begin = task_.begin + tile * kTile + sharer_ * kShare;
    // The share is past the end, or no row of the warp sees any of it.
    if (begin >= task_.end || begin > sees_ + 15 || first_row_ >= task_.rows) return;
    Weights p;
    Multiply(keys, p.scores);
    Soften(begin, p);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int64_t group_begin = begin + group * 16;
      if (group_begin >= task_.end || group_begin > sees_ + 15) continue;
      const int group_row = sharer_ * kShare + group * 16;
      if (group_begin + 15 > sees_ && task_.end > sees_ + 1) {
        AddSeenValues(keys + kTileElements, group_begin, group_row, p.scores[2 * group], p.scores[2 * group + 1]);
      } else {
        AddValues(keys + kTileElements, group_row, p.scores[2 * group], p.scores[2 * group + 1]);
      }
    }
  }

  // Merges the results of warps that share rows, through `shared`, into the slots; all warps of the block call.
  __device__ __forceinline__ void StoreSlots(float* shared) {
    float* const results = shared;                                 // [kSharers][kRows][kHeadSize]
    float* const maxima = results + kSharers * kRows * kHeadSize;  // [kSharers][kRows]
    float* const totals = maxima + kSharers * kRows;
    float* const offsets = totals + kSharers * kRows;
    Share(results, maxima, totals, offsets);
    __syncthreads();
    const int rows = task_.rows < kRows ? task_.rows : kRows;
    for (int i = static_cast<int>(threadIdx.x); i < rows * (kHeadSize / 4); i += kMatrixThreads) {
      const int row = i / (kHeadSize / 4), c = i % (kHeadSize / 4) * 4;
      float most = -Infinity();
#pragma unroll
      for (int s = 0; s < kSharers; ++s) most = fmaxf(most, maxima[s * kRows + row]);
      float total = 0, total_offset = 0, merged[4] = {0, 0, 0, 0};
#pragma unroll
      for (int s = 0; s < kSharers; ++s) {
        const int at = s * kRows + row;
        const float weight = FastExp2(maxima[at] - FiniteMaximum(most));
        total += weight * totals[at];
        total_offset += weight * offsets[at];
        float part[4];
        LoadFloats<4>(results + at * kHeadSize + c, part);
#pragma unroll
        for (int k = 0; k < 4; ++k) merged[k] += weight * part[k];
      }
      const int64_t to = task_.slot_row + row;
      StoreFloats<4>(merged, a_.slot_values + to * a_.width + column_ + c);
      if (c != 0) continue;
      a_.slot_maxima[to * a_.heads + head_] = most;
      a_.slot_sums[to * a_.heads + head_] = total;
      if (kUnfinished) a_.slot_offsets[to * a_.heads + head_] = total_offset;
    }
  }

 private:
  // Scores of the warp's share of a tile, then their weights: rows g and g + 8, positions 2t and 2t + 1 of each 8.
  struct Weights {
    float scores[2 * kGroups][4];
    float value_scale[kUnfinished ? 4 * kGroups : 1];
    float value_offset[kUnfinished ? 4 * kGroups : 1];
  };

  // scores = q k^T.
  __device__ __forceinline__ void Multiply(const T* keys, float (&scores)[2 * kGroups][4]) const {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[2 * group][i] = scores[2 * group + 1][i] = 0;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t b[4];
        const int row = sharer_ * kShare + group * 16 + lane / 16 * 8 + lane % 8;
        LdMatrix4(b, keys + PieceOffset<kHeadSize>(row, 2 * step + lane / 8 % 2));
        Mma161616<T>(scores[2 * group], scores[2 * group + 1], q_[step], b);
      }
    }
  }

  // Finishes and masks the scores, raises the maximum, and turns scores into weights that values are multiplied by.
  __device__ __forceinline__ void Soften(int64_t begin, Weights& p) {
    const bool masked = begin + kShare > task_.end || begin + kShare - 1 > sees_;
    float raised[2] = {maximum_[0], maximum_[1]};
#pragma unroll
    for (int n = 0; n < 2 * kGroups; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int64_t position = begin + n * 8 + 2 * t + c;
        Vec<float, 4> factors = {};
        if (kUnfinished) {
          const int64_t at = position < task_.end ? position : task_.end - 1;
          factors = *reinterpret_cast<const Vec<float, 4>*>(a_.row_factors + 4 * StoredRow(task_, nullptr, 0, at));
          p.value_scale[2 * n + c] = factors.v[2];
          p.value_offset[2 * n + c] = factors.v[3];
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& score = p.scores[n][2 * half + c];
          if (kUnfinished) score = score * factors.v[0] - q_sum_[half] * factors.v[1];
          score *= a_.scale;
          if (masked && (position >= task_.end || position > sees_ + g + half * 8)) score = -Infinity();
          raised[half] = fmaxf(raised[half], score);
        }
      }
    }
    float base[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      raised[half] = RowMax(raised[half]);
      base[half] = FiniteMaximum(raised[half]);
      const float keep = FastExp2(maximum_[half] - base[half]);
      maximum_[half] = raised[half];
      sum_[half] *= keep;
      offset_[half] *= keep;
#pragma unroll
      for (int n = 0; n < 2 * kSteps; ++n) {
        sums_[n][2 * half] *= keep;
        sums_[n][2 * half + 1] *= keep;
      }
    }
#pragma unroll
    for (int n = 0; n < 2 * kGroups; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& weight = p.scores[n][i];
        const bool unseen = weight == -Infinity();
        weight = FastExp2(weight - base[i / 2]);
        sum_[i / 2] += weight;
        if (kUnfinished && !unseen) {
          offset_[i / 2] += weight * p.value_offset[2 * n + i % 2];
          weight *= p.value_scale[2 * n + i % 2];
        }
      }
    }
  }

  // sums += p v for 16 positions from row `group_row` of the tile on; `low` and `high` have the weights of 8 each.
  __device__ __forceinline__ void AddValues(const T* values, int group_row, const float (&low)[4],
                                            const float (&high)[4]) {
    uint32_t p[4];
    PackOperand<T>(low, high, p);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t b[4];
      LdMatrix4Trans(b, values + PieceOffset<kHeadSize>(group_row + lane % 16, 2 * step + lane / 16));
      Mma161616<T>(sums_[2 * step], sums_[2 * step + 1], p, b);
    }
  }

  // The same where some rows do not see some of the positions: what a row does not see must not touch it, not even as
  // 0 * NaN.
  __device__ __forceinline__ void AddSeenValues(const T* values, int64_t group_begin, int group_row,
                                                const float (&low)[4], const float (&high)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const p = i / 2 == 0 ? low : high;
#pragma unroll 1
      for (int from = 0; from < 4; ++from) {
        const int at = i / 2 * 8 + 2 * from + i % 2;
        const float p0 = Shfl(p[i % 2], lane / 4 * 4 + from), p1 = Shfl(p[2 + i % 2], lane / 4 * 4 + from);
        const bool sees0 = group_begin + at <= sees_ + g, sees1 = group_begin + at <= sees_ + g + 8;
        if (group_begin + at >= task_.end) continue;
#pragma unroll
        for (int n = 0; n < 2 * kSteps; ++n) {
          const float2 v = Unpack2<T>(
              *reinterpret_cast<const uint32_t*>(values + PieceOffset<kHeadSize>(group_row + at, n) + 2 * t));
          if (sees0) {
            sums_[n][0] += p0 * v.x;
            sums_[n][1] += p0 * v.y;
          }
          if (sees1) {
            sums_[n][2] += p1 * v.x;
            sums_[n][3] += p1 * v.y;
          }
        }
      }
    }
  }

  // Puts the warp's results where all warps see them after the next barrier; the tiles there have been used.
  __device__ __forceinline__ void Share(float* results, float* maxima, float* totals, float* offsets) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum_[half] = RowSum(sum_[half]);
      if (kUnfinished) offset_[half] = RowSum(offset_[half]);
    }
    CopyAsyncWait<0>();
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = sharer_ * kRows + first_row_ + g + half * 8;
      if (t == 0) {
        maxima[at] = maximum_[half];
        totals[at] = sum_[half];
        offsets[at] = offset_[half];
      }
#pragma unroll
      for (int n = 0; n < 2 * kSteps; ++n) {
        StoreFloats<2>({sums_[n][2 * half], sums_[n][2 * half + 1]}, results + at * kHeadSize + n * 8 + 2 * t);
      }
    }
  }

  const Arguments& a_;
  const AttendTask task_;
  const int32_t* const pages_;
  const int head_;
  const int first_row_;  // of the tile, that the warp has
  const int sharer_;     // index among the warps that share rows
  const int64_t column_;
  const int64_t sees_;  // the last position that the warp's first row sees

  uint32_t q_[kSteps][4];
  float q_sum_[2] = {0, 0};
  float maximum_[2];
  float sum_[2];
  float offset_[2] = {0, 0};
  float sums_[2 * kSteps][4];
};

// With 64 rows and heads of 64 no more registers than let three blocks run at once; other variants need no limit.
template <typename T, int kHeadSize, int kRowWarps, bool kUnfinished>
__global__ void __launch_bounds__(kMatrixThreads, kHeadSize == 64 && kRowWarps == 4 ? 3 : 1) MatrixKernel(Arguments a) {
  T* const shared = DynamicShared<T>();  // [kMatrixStages][2: keys, values][kMatrixPositions][kHeadSize]
  MatrixWarp<T, kHeadSize, kRowWarps, kUnfinished> warp(a);
  const int tiles = warp.tiles();
#pragma unroll
  for (int tile = 0; tile < kMatrixStages - 1; ++tile) {
    if (tile < tiles) warp.CopyTile(tile, shared);
    CopyAsyncCommit();
  }
  warp.LoadQueries();
  warp.LoadSlots();
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    CopyAsyncWait<kMatrixStages - 2>();
    __syncthreads();  // the tile is there for all, and nobody reads the one before it any more
    if (tile + kMatrixStages - 1 < tiles) warp.CopyTile(tile + kMatrixStages - 1, shared);
    CopyAsyncCommit();
    warp.Attend(tile, shared);
  }
  warp.StoreSlots(DynamicShared<float>());
}

}  // namespace goldfinch::cuda::attend

#endif  // GOLDFINCH_KERNELS_CUDA_ATTEND_MATRIX_H_
