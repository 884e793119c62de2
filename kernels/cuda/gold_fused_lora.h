// The fused rebuild of keys and values, continued: the mix and the LoRAs of keys and values (gold_fused.h).
#ifndef GOLDFINCH_KERNELS_CUDA_GOLD_FUSED_LORA_H_
#define GOLDFINCH_KERNELS_CUDA_GOLD_FUSED_LORA_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gold_fused.h"
#include "kernels/cuda/gold_inputs.h"
#include "kernels/cuda/matrix_tile.h"

namespace goldfinch::cuda::fused {

constexpr int kColumns = 64;  // of a step through the width
constexpr int kMixRankMax = 64;
constexpr int kLoraRankMax = 128;

// One side, key or value.
struct LoraSide {
  const void* x;           // [rows, D] of T: kk or xo
  const float* squares;    // of kk, by column blocks; null: x is scaled already
  const void* hidden;      // [rows, 2 rank] of T, from this side's part on
  const void* mix_up;      // [rank, D] of T
  const float* mix;        // [D]
  const void* down;        // [D, lora rank] of T
  const void* up;          // [lora rank, D] of T
  float* partials;         // [groups, rows, lora rank]
  void* activated;         // [rows, lora rank] of T: what Down leaves for Up
  int32_t* down_counters;  // [row blocks], zero
  void* out;               // [rows, D] of T
  float* moments;          // [groups, rows, 2]: sums and sums of squares of out
};
struct LoraArguments {
  LoraSide sides[2];
  int row_count;
  int mix_rank;
  int lora_rank;
  int down_groups;  // of columns, a block each
  int up_groups;
  int64_t width;
  int32_t* up_counters;  // [row blocks], zero
  float* factors;        // as StoredKeys::row_factors, or null
};

// True in the block that comes here last of `count`, for all its threads: it sees what the others wrote before.
// `shared` is free for use.
__device__ inline bool IsLastBlock(int32_t* counter, int count, void* shared) {
  auto* const arrived = static_cast<int32_t*>(shared);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *arrived = atomicAdd(counter, 1);
  __syncthreads();
  const bool last = *arrived == count - 1;
  __threadfence();
  return last;
}

// --- The mix, which both kernels do ----------------------------------------------------------------------------------

// x + (prev(x) - x) * (mix + hidden mix_up), 16 columns of 16 rows at a time, as accumulators of mma.m16n8k16 lie.
template <typename T, int kMixSteps>
struct Mixer {
  static constexpr int kTileRows = kRowsOfBlock + 1;
  // What a stage holds: the rows of x from the one before the block's first row on, and rows of mix_up.
  static constexpr int kStageElements = (kTileRows + 16 * kMixSteps) * kColumns;

  uint32_t hidden[kMixSteps][4];
  float scale[2], scale_before[2];  // of rows g and g + 8, and of the rows before them

  // Starts the copy of a stage.
  __device__ static void Copy(const LoraArguments& a, const LoraSide& side, int64_t first_row, int64_t column, T* to) {
    for (int i = static_cast<int>(threadIdx.x); i < (kTileRows + 16 * kMixSteps) * 8; i += kThreads) {
      const int row = i / 8, piece = i % 8;
      const bool is_x = row < kTileRows;
      const int64_t from = is_x ? first_row - 1 + row : row - kTileRows;
      const bool there = is_x ? from >= 0 && from < a.row_count : from < a.mix_rank;
      const T* matrix = static_cast<const T*>(is_x ? side.x : side.mix_up);
      // PieceOffset counts rows of mix_up from 0 again.
      T* const tile = is_x ? to + PieceOffset<kColumns>(row, piece)
                           : to + kTileRows * kColumns + PieceOffset<kColumns>(row - kTileRows, piece);
      CopyAsync16(tile, matrix + (there ? from * a.width + column + piece * 8 : 0), there);
    }
  }

  __device__ void Init(const LoraArguments& a, const LoraSide& side, int64_t warp_row) {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    const T* rows = static_cast<const T*>(side.hidden);
#pragma unroll
    for (int step = 0; step < kMixSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t row = warp_row + g + i % 2 * 8;
        const int column = step * 16 + i / 2 * 8 + 2 * t;
        hidden[step][i] = row < a.row_count && column < a.mix_rank
                              ? *reinterpret_cast<const uint32_t*>(rows + row * 2 * a.mix_rank + column)
                              : 0;
      }
    }
    const auto scale_of = [&](int64_t row) {
      if (side.squares == nullptr) return 1.f;
      if (row < 0 || row >= a.row_count) return 0.f;
      float square = 0;
      for (int block = 0; block < a.width / kKeyColumns; ++block) square += side.squares[block * a.row_count + row];
      return RmsScale(square, a.width);
    };
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      scale[half] = scale_of(warp_row + g + half * 8);
      scale_before[half] = scale_of(warp_row + g + half * 8 - 1);
    }
  }

  // Columns 16 step and on of the tile, whose first column is `column` of the row.
  __device__ void Mix(const T* tile, const float* mix, int64_t column, int step, float (&mixed)[2][4]) const {
    const int lane = threadIdx.x % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp, g = lane / 4, t = lane % 4;
    const T* up = tile + kTileRows * kColumns;
#pragma unroll
    for (int i = 0; i < 4; ++i) mixed[0][i] = mixed[1][i] = 0;
#pragma unroll
    for (int k = 0; k < kMixSteps; ++k) {
      uint32_t b[4];
      LdMatrix4Trans(b, up + PieceOffset<kColumns>(k * 16 + lane % 16, 2 * step + lane / 16));
      Mma161616<T>(mixed[0], mixed[1], hidden[k], b);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int piece = 2 * step + n;
      const Vec<float, 2> amount = *reinterpret_cast<const Vec<float, 2>*>(mix + column + piece * 8 + 2 * t);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp * 16 + g + half * 8;  // of the block; the tile has the one before it there
        const float2 before =
            Unpack2<T>(*reinterpret_cast<const uint32_t*>(tile + PieceOffset<kColumns>(row, piece) + 2 * t));
        const float2 here =
            Unpack2<T>(*reinterpret_cast<const uint32_t*>(tile + PieceOffset<kColumns>(row + 1, piece) + 2 * t));
        const float x = here.x * scale[half], y = here.y * scale[half];
        float* to = mixed[n] + 2 * half;
        to[0] = x + (before.x * scale_before[half] - x) * (amount.v[0] + to[0]);
        to[1] = y + (before.y * scale_before[half] - y) * (amount.v[1] + to[1]);
      }
    }
  }
};

// What a block works on: block (x, y, z) has column group x, rows from kRowsOfBlock y on, side z. A warp has 16 rows.
struct LoraTask {
  int64_t first_row;
  int64_t warp_row;
  int first_step;  // through the width
  int end_step;

  __device__ LoraTask(int64_t width, int groups)
      : first_row(int64_t{blockIdx.y} * kRowsOfBlock), warp_row(first_row + threadIdx.x / kWarp * 16) {
    const int steps = static_cast<int>(width / kColumns), group = static_cast<int>(blockIdx.x);
    first_step = steps * group / groups;
    end_step = steps * (group + 1) / groups;
  }
};

// Goes through the columns of a side. While one step is multiplied the next is on its way to shared memory, which has
// two stages of Mixer's tiles and kWeightElements of the LoRA's matrix. copy_weight(column, to) starts the copy of the
// latter; multiply(column, s, mixed, weight) gets 16 mixed columns at a time, those from `column` + 16 s on.
template <typename T, int kMixSteps, int kWeightElements>
class MixedColumns {
  using Mixing = Mixer<T, kMixSteps>;
  static constexpr int kStageElements = Mixing::kStageElements + kWeightElements;

 public:
  static constexpr size_t kSharedBytes = size_t{2} * kStageElements * sizeof(T);

  __device__ __forceinline__ MixedColumns(const LoraArguments& a, const LoraSide& side, const LoraTask& task)
      : a_(a), side_(side), task_(task) {}

  // Before it others may load what they need, while the first copies are under way.
  template <typename CopyWeight>
  __device__ __forceinline__ void Start(CopyWeight copy_weight) {
    Copy(task_.first_step, copy_weight);
    CopyAsyncCommit();
    mixer_.Init(a_, side_, task_.warp_row);
  }

  template <typename CopyWeight, typename Multiply>
  __device__ __forceinline__ void Run(CopyWeight copy_weight, Multiply multiply) {
#pragma unroll 1
    for (int step = task_.first_step; step < task_.end_step; ++step) {
      if (step + 1 < task_.end_step) Copy(step + 1, copy_weight);
      CopyAsyncCommit();
      CopyAsyncWait<1>();
      __syncthreads();
      const T* tile = DynamicShared<T>() + step % 2 * kStageElements;
      const T* weight = tile + Mixing::kStageElements;
      const int64_t column = int64_t{step} * kColumns;
#pragma unroll
      for (int s = 0; s < kColumns / 16; ++s) {
        float mixed[2][4];
        mixer_.Mix(tile, side_.mix, column, s, mixed);
        multiply(column, s, mixed, weight);
      }
      __syncthreads();
    }
  }

 private:
  template <typename CopyWeight>
  __device__ __forceinline__ void Copy(int step, CopyWeight copy_weight) const {
    T* const to = DynamicShared<T>() + step % 2 * kStageElements;
    Mixing::Copy(a_, side_, task_.first_row, int64_t{step} * kColumns, to);
    copy_weight(int64_t{step} * kColumns, to + Mixing::kStageElements);
  }

  const LoraArguments& a_;
  const LoraSide& side_;
  const LoraTask& task_;
  Mixing mixer_;
};

// --- Down ------------------------------------------------------------------------------------------------------------

// tanh of the sums over all column groups, for the block's rows.
template <typename T>
__device__ __forceinline__ void ActivateHidden(const LoraArguments& a, const LoraSide& side, int64_t first_row) {
  const int64_t rows_left = a.row_count - first_row;
  const int64_t count = (rows_left < kRowsOfBlock ? rows_left : kRowsOfBlock) * a.lora_rank;
  for (int64_t i = 2 * int64_t{threadIdx.x}; i < count; i += 2 * kThreads) {
    const int64_t at = first_row * a.lora_rank + i;
    float x = 0, y = 0;
    for (int group = 0; group < a.down_groups; ++group) {
      const float* from = side.partials + int64_t{group} * a.row_count * a.lora_rank + at;
      x += from[0];
      y += from[1];
    }
    // FastTanh's error is that of bf16's rounding.
    const bool fast = DTypeOf<T>() == DType::kBf16;
    *reinterpret_cast<uint32_t*>(static_cast<T*>(side.activated) + at) =
        Pack2<T>(fast ? FastTanh(x) : tanhf(x), fast ? FastTanh(y) : tanhf(y));
  }
}

template <typename T, int kMixSteps, int kLora>
__global__ void __launch_bounds__(kThreads, 2) LoraDownKernel(LoraArguments a) {
  const LoraSide& side = a.sides[blockIdx.z];
  const LoraTask task(a.width, a.down_groups);
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const auto copy_down = [&](int64_t first_column, T* to) {  // [kColumns][kLora]
    constexpr int kPieces = kLora / 8;
    for (int i = static_cast<int>(threadIdx.x); i < kColumns * kPieces; i += kThreads) {
      const int row = i / kPieces, piece = i % kPieces;
      const bool there = piece * 8 < a.lora_rank;
      const int64_t from = (first_column + row) * a.lora_rank + piece * 8;
      CopyAsync16(to + PieceOffset<kLora>(row, piece), static_cast<const T*>(side.down) + (there ? from : 0), there);
    }
  };
  MixedColumns<T, kMixSteps, kColumns * kLora> columns(a, side, task);
  columns.Start(copy_down);
  float sums[kLora / 8][4] = {};
  columns.Run(copy_down, [&](int64_t, int s, const float(&mixed)[2][4], const T* down) {
    uint32_t x[4];
    PackOperand<T>(mixed[0], mixed[1], x);
#pragma unroll
    for (int n = 0; n < kLora / 16; ++n) {
      uint32_t b[4];
      LdMatrix4Trans(b, down + PieceOffset<kLora>(s * 16 + lane % 16, 2 * n + lane / 16));
      Mma161616<T>(sums[2 * n], sums[2 * n + 1], x, b);
    }
  });

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = task.warp_row + g + half * 8;
    if (row >= a.row_count) continue;
    float* to = side.partials + (int64_t{blockIdx.x} * a.row_count + row) * a.lora_rank;
#pragma unroll
    for (int n = 0; n < kLora / 8; ++n) {
      const int column = n * 8 + 2 * t;
      if (column < a.lora_rank) StoreFloats<2>({sums[n][2 * half], sums[n][2 * half + 1]}, to + column);
    }
  }
  if (IsLastBlock(side.down_counters + blockIdx.y, a.down_groups, DynamicShared<T>())) {
    ActivateHidden<T>(a, side, task.first_row);
  }
}

// --- Up --------------------------------------------------------------------------------------------------------------

// What Down made of a warp's rows, as first operands of products.
template <typename T, int kLora>
__device__ __forceinline__ void LoadActivated(const LoraArguments& a, const LoraSide& side, int64_t warp_row,
                                              uint32_t (&hidden)[kLora / 16][4]) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int k = 0; k < kLora / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row = warp_row + g + i % 2 * 8;
      const int column = k * 16 + i / 2 * 8 + 2 * t;
      hidden[k][i] =
          row < a.row_count && column < a.lora_rank
              ? *reinterpret_cast<const uint32_t*>(static_cast<const T*>(side.activated) + row * a.lora_rank + column)
              : 0;
    }
  }
}

// scale and mean * scale of the key and of the value of the block's rows, from sums over all column groups.
__device__ __forceinline__ void StoreFactors(const LoraArguments& a, int64_t first_row) {
  for (int i = static_cast<int>(threadIdx.x); i < 2 * kRowsOfBlock; i += kThreads) {
    const int64_t row = first_row + i / 2;
    if (row >= a.row_count) break;
    float total = 0, squares = 0;
    for (int group = 0; group < a.up_groups; ++group) {
      const float* from = a.sides[i % 2].moments + 2 * (int64_t{group} * a.row_count + row);
      total += from[0];
      squares += from[1];
    }
    const float mean = total / static_cast<float>(a.width);
    float variance = squares / static_cast<float>(a.width) - mean * mean;
    if (variance < 0) variance = 0;  // a NaN stays
    const float scale = 1 / sqrtf(variance + kLayerNormEpsilon);
    StoreFloats<2>({scale, mean * scale}, a.factors + 4 * row + 2 * (i % 2));
  }
}

template <typename T, int kMixSteps, int kLora>
__global__ void __launch_bounds__(kThreads, 2) LoraUpKernel(LoraArguments a) {
  const LoraSide& side = a.sides[blockIdx.z];
  const LoraTask task(a.width, a.up_groups);
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const auto copy_up = [&](int64_t first_column, T* to) {  // [kLora][kColumns]
    for (int i = static_cast<int>(threadIdx.x); i < kLora * 8; i += kThreads) {
      const int row = i / 8, piece = i % 8;
      const bool there = row < a.lora_rank;
      CopyAsync16(to + PieceOffset<kColumns>(row, piece),
                  static_cast<const T*>(side.up) + (there ? row * a.width + first_column + piece * 8 : 0), there);
    }
  };
  MixedColumns<T, kMixSteps, kLora * kColumns> columns(a, side, task);
  columns.Start(copy_up);
  uint32_t hidden[kLora / 16][4];
  LoadActivated<T, kLora>(a, side, task.warp_row, hidden);
  float sum[2] = {0, 0}, square[2] = {0, 0};
  columns.Run(copy_up, [&](int64_t column, int s, float(&x)[2][4], const T* up) {
#pragma unroll
    for (int k = 0; k < kLora / 16; ++k) {
      uint32_t b[4];
      LdMatrix4Trans(b, up + PieceOffset<kColumns>(k * 16 + lane % 16, 2 * s + lane / 16));
      Mma161616<T>(x[0], x[1], hidden[k], b);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = task.warp_row + g + half * 8;
      if (row >= a.row_count) continue;
      T* const to = static_cast<T*>(side.out) + row * a.width + column + s * 16 + 2 * t;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const uint32_t stored = Pack2<T>(x[n][2 * half], x[n][2 * half + 1]);
        *reinterpret_cast<uint32_t*>(to + n * 8) = stored;
        const float2 rounded = Unpack2<T>(stored);
        sum[half] += rounded.x + rounded.y;
        square[half] += rounded.x * rounded.x + rounded.y * rounded.y;
      }
    }
  });

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] = RowSum(sum[half]);
    square[half] = RowSum(square[half]);
    const int64_t row = task.warp_row + g + half * 8;
    if (t == 0 && row < a.row_count) {
      StoreFloats<2>({sum[half], square[half]}, side.moments + 2 * (int64_t{blockIdx.x} * a.row_count + row));
    }
  }
  if (a.factors == nullptr) return;
  if (IsLastBlock(a.up_counters + blockIdx.y, 2 * a.up_groups, DynamicShared<T>())) StoreFactors(a, task.first_row);
}

// --- The host's side -------------------------------------------------------------------------------------------------

// Down and Up, in the smallest variant that has room for the ranks.
template <typename T>
void LaunchLoras(Stream stream, const LoraArguments& a) {
  const auto launch = [&](auto mix_steps, auto lora) {
    constexpr int kMixSteps = decltype(mix_steps)::value, kLora = decltype(lora)::value;
    const auto row_blocks = static_cast<unsigned>(CeilDiv(a.row_count, kRowsOfBlock));
    constexpr size_t kSharedBytes = MixedColumns<T, kMixSteps, kColumns * kLora>::kSharedBytes;
    Launch(stream, LoraDownKernel<T, kMixSteps, kLora>,
           {dim3(static_cast<unsigned>(a.down_groups), row_blocks, 2), dim3(kThreads), kSharedBytes}, a);
    Launch(stream, LoraUpKernel<T, kMixSteps, kLora>,
           {dim3(static_cast<unsigned>(a.up_groups), row_blocks, 2), dim3(kThreads), kSharedBytes}, a);
  };
  const auto with_lora = [&](auto mix_steps) {
    a.lora_rank > 64 ? launch(mix_steps, std::integral_constant<int, 128>())
                     : launch(mix_steps, std::integral_constant<int, 64>());
  };
  a.mix_rank > 32 ? with_lora(std::integral_constant<int, 4>()) : with_lora(std::integral_constant<int, 2>());
}

}  // namespace goldfinch::cuda::fused

#endif  // GOLDFINCH_KERNELS_CUDA_GOLD_FUSED_LORA_H_
