// The fused rebuild of keys and values for 16-bit types: see gold_attention.cu for its place, and for the counts.
//
// A chunk's rows go through four kernels, each of which reads and writes an intermediate once:
//   Prepare  ids -> xo = rms(LN0(emb[id])), the mix LoRA's tanh rows, c as the weights' type
//   Key      kk = table[id] + c W_c, not yet scaled, and its sums of squares
//   Down     k = mix(kk), v = mix(xo), kept in registers, times the LoRAs' down sides, by groups of columns; the block
//            that comes last adds the groups and takes tanh
//   Up       the same k and v again, + tanh(down) up, stored, and the sums that their norms want; the block that comes
//            last makes scale and mean of them. Attention does the norms themselves (UnfinishedNorms)
// Mixing again in Up costs 2 * m * D multiply-adds a row and side and saves a write and a read of k and v.
#ifndef GOLDFINCH_KERNELS_CUDA_GOLD_REBUILD_H_
#define GOLDFINCH_KERNELS_CUDA_GOLD_REBUILD_H_

#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gold_rows.h"

namespace goldfinch::cuda {

constexpr int kRebuildWarps = 4;  // of a block: 16 rows each
constexpr int kRebuildRows = 16 * kRebuildWarps;
constexpr int kRebuildThreads = kRebuildWarps * kWarp;
constexpr int kRebuildColumns = 64;  // of a step through the width
constexpr int kKeyColumns = 128;     // of a block of the Key kernel
constexpr int kMixRankMax = 64;
constexpr int kLoraRankMax = 128;
constexpr int kPrepareVectors = 4;  // of 8 elements, of a thread: widths up to 8192

// Rows of 16-bit tiles in shared memory have their 16-byte pieces in an order of their own, so that the 8 rows of an
// 8x8 matrix lie in different banks. kColumns: of a row, 64 or 128.
template <int kColumns>
__device__ inline int TileAt(int row, int piece) {
  return row * kColumns + (piece ^ (row & 7)) * 8;
}

// --- Prepare --------------------------------------------------------------------------------------------------------

struct PrepareArguments {
  const ChunkRow* rows;
  int32_t* counters;  // to be zeroed: for Down and Up
  int counter_count;
  const void* embedding;  // [vocab, D] of T
  const float* ln0_weight;
  const float* ln0_bias;
  const float* mix_table;  // [vocab, 2, 2 rank], or null with a mix_width of 0
  CompressedRows cache;
  int64_t width;
  int mix_width;  // 2 rank
};

// A block has a row.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) PrepareKernel(PrepareArguments a, T* xo, T* hidden, T* c) {
  float* scratch = DynamicShared<float>();  // [kWarp]
  const int64_t row = blockIdx.x;
  const int thread = threadIdx.x;
  const ChunkRow at = a.rows[row];
  if (row == 0) {
    for (int i = thread; i < a.counter_count; i += kRowThreads) a.counters[i] = 0;
  }
  const T* embedding = static_cast<const T*>(a.embedding) + (at.id < 0 ? 0 : at.id) * a.width;
  constexpr int kStep = kRowThreads * 8;

  float x[kPrepareVectors][8], sum = 0;
#pragma unroll
  for (int v = 0; v < kPrepareVectors; ++v) {
    const int64_t column = int64_t{v} * kStep + thread * 8;
    const bool there = column < a.width && at.id >= 0;
    if (there) LoadFloats<8>(embedding + column, x[v]);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (!there) x[v][i] = 0;
      sum += x[v][i];
    }
  }
  // Beside the sums: what needs none.
  for (int i = thread; i < a.mix_width; i += kRowThreads) {
    float input = 0;
    if (at.id >= 0) input += a.mix_table[2 * at.id * int64_t{a.mix_width} + i];
    if (at.prev_id >= 0) input += a.mix_table[(2 * at.prev_id + 1) * int64_t{a.mix_width} + i];
    hidden[row * a.mix_width + i] = FromFloat<T>(tanhf(input));
  }
  for (int64_t i = thread; i < a.cache.width; i += kRowThreads) {
    c[row * a.cache.width + i] = FromFloat<T>(at.stored >= 0 ? a.cache.At(at.stored, i) : 0.f);
  }

  const float mean = BlockSum(sum, scratch) / static_cast<float>(a.width);
  float square = 0;
#pragma unroll
  for (int v = 0; v < kPrepareVectors; ++v) {
    if (int64_t{v} * kStep + thread * 8 >= a.width) break;
#pragma unroll
    for (int i = 0; i < 8; ++i) square += (x[v][i] - mean) * (x[v][i] - mean);
  }
  const float scale = 1 / sqrtf(BlockSum(square, scratch) / static_cast<float>(a.width) + kLayerNormEpsilon);
  square = 0;
#pragma unroll
  for (int v = 0; v < kPrepareVectors; ++v) {
    const int64_t column = int64_t{v} * kStep + thread * 8;
    if (column >= a.width) break;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      x[v][i] = (x[v][i] - mean) * scale * a.ln0_weight[column + i] + a.ln0_bias[column + i];
      square += x[v][i] * x[v][i];
    }
  }
  // Nothing stands before position 0: zeros.
  const float rms = RmsScale(BlockSum(square, scratch), a.width) * (at.id < 0 ? 0.f : 1.f);
#pragma unroll
  for (int v = 0; v < kPrepareVectors; ++v) {
    const int64_t column = int64_t{v} * kStep + thread * 8;
    if (column >= a.width) break;
#pragma unroll
    for (int i = 0; i < 8; ++i) x[v][i] *= rms;
    StoreFloats<8>(x[v], xo + row * a.width + column);
  }
}

// --- Key ------------------------------------------------------------------------------------------------------------

struct KeyArguments {
  const ChunkRow* rows;
  int row_count;
  const void* c;          // [rows, c_width] of T
  const void* weight;     // [D, c_width] of T
  const void* key_table;  // [vocab, D] of T
  int64_t width;
  int c_width;
  float* squares;  // [D / kKeyColumns, rows]: sums of squares of kk
};

// Block (x, y): columns from kKeyColumns x on, rows from kRebuildRows y on.
template <typename T>
__global__ void __launch_bounds__(kRebuildThreads) KeyKernel(KeyArguments a, T* kk) {
  constexpr int kInner = 64, kStageElements = (kRebuildRows + kKeyColumns) * kInner;
  T* const shared = DynamicShared<T>();  // [2: stages][kRebuildRows of c, kKeyColumns of the weight][kInner]
  const int lane = threadIdx.x % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp, g = lane / 4, t = lane % 4;
  const int64_t first_column = int64_t{blockIdx.x} * kKeyColumns, first_row = int64_t{blockIdx.y} * kRebuildRows;

  const auto load = [&](int inner, int stage) {
    T* const to = shared + stage * kStageElements;
    for (int i = static_cast<int>(threadIdx.x); i < (kRebuildRows + kKeyColumns) * 8; i += kRebuildThreads) {
      const int row = i / 8, piece = i % 8;
      const bool is_c = row < kRebuildRows;
      bool there = inner + piece * 8 < a.c_width;
      if (is_c) there = there && first_row + row < a.row_count;
      const int64_t from = (is_c ? first_row + row : first_column + row - kRebuildRows) * a.c_width + inner + piece * 8;
      const T* matrix = static_cast<const T*>(is_c ? a.c : a.weight);
      CopyAsync16(to + TileAt<kInner>(row, piece), matrix + (there ? from : 0), there);
    }
  };
  const int steps = CeilDiv(a.c_width, kInner);
  load(0, 0);
  CopyAsyncCommit();

  float sums[kKeyColumns / 8][4] = {};
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) load((step + 1) * kInner, (step + 1) % 2);
    CopyAsyncCommit();
    CopyAsyncWait<1>();
    __syncthreads();
    const T* c = shared + step % 2 * kStageElements;
    const T* weight = c + kRebuildRows * kInner;
#pragma unroll
    for (int k = 0; k < kInner / 16; ++k) {
      uint32_t x[4];
      LdMatrix4(x, c + TileAt<kInner>(warp * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
      for (int n = 0; n < kKeyColumns / 16; ++n) {
        uint32_t b[4];
        LdMatrix4(b, weight + TileAt<kInner>(n * 16 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
        Mma16816<T>(sums[2 * n], x, {b[0], b[1]});
        Mma16816<T>(sums[2 * n + 1], x, {b[2], b[3]});
      }
    }
    __syncthreads();
  }

  float squares[2] = {0, 0};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first_row + warp * 16 + g + half * 8;
    if (row < a.row_count) {
      const int32_t id = a.rows[row].id;
      const T* table = static_cast<const T*>(a.key_table) + (id < 0 ? 0 : id) * a.width;
#pragma unroll
      for (int n = 0; n < kKeyColumns / 8; ++n) {
        const int64_t column = first_column + n * 8 + 2 * t;
        // c is zero at position -1.
        float2 from_x0 = make_float2(0, 0);
        if (id >= 0) from_x0 = Unpack2<T>(*reinterpret_cast<const uint32_t*>(table + column));
        const uint32_t stored = Pack2<T>(sums[n][2 * half] + from_x0.x, sums[n][2 * half + 1] + from_x0.y);
        *reinterpret_cast<uint32_t*>(kk + row * a.width + column) = stored;
        const float2 x = Unpack2<T>(stored);
        squares[half] += x.x * x.x + x.y * x.y;
      }
    }
    squares[half] += ShflXor(squares[half], 1);
    squares[half] += ShflXor(squares[half], 2);
    if (t == 0 && row < a.row_count) a.squares[int64_t{blockIdx.x} * a.row_count + row] = squares[half];
  }
}

// --- Down, Up -------------------------------------------------------------------------------------------------------

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

// The mixing half of both kernels: x + (prev(x) - x) * (mix + hidden mix_up), 16 columns of 16 rows at a time, as
// accumulators of mma.m16n8k16 lie.
template <typename T, int kMixSteps>
struct Mixer {
  static constexpr int kTileRows = kRebuildRows + 1;
  // Of a stage: the rows of x from the one before the block's first on, and rows of mix_up.
  static constexpr int kStageElements = (kTileRows + 16 * kMixSteps) * kRebuildColumns;

  uint32_t hidden[kMixSteps][4];
  float scale[2], scale_before[2];  // of rows g and g + 8, and of the rows before them

  __device__ static void Load(const LoraArguments& a, const LoraSide& side, int64_t first_row, int64_t column, T* to) {
    for (int i = static_cast<int>(threadIdx.x); i < (kTileRows + 16 * kMixSteps) * 8; i += kRebuildThreads) {
      const int row = i / 8, piece = i % 8;
      const bool is_x = row < kTileRows;
      const int64_t from = is_x ? first_row - 1 + row : row - kTileRows;
      const bool there = is_x ? from >= 0 && from < a.row_count : from < a.mix_rank;
      const T* matrix = static_cast<const T*>(is_x ? side.x : side.mix_up);
      // mix_up's rows start at a multiple of 8 again.
      T* const tile = is_x ? to + TileAt<kRebuildColumns>(row, piece)
                           : to + kTileRows * kRebuildColumns + TileAt<kRebuildColumns>(row - kTileRows, piece);
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
    const T* up = tile + kTileRows * kRebuildColumns;
#pragma unroll
    for (int i = 0; i < 4; ++i) mixed[0][i] = mixed[1][i] = 0;
#pragma unroll
    for (int k = 0; k < kMixSteps; ++k) {
      uint32_t b[4];
      LdMatrix4Trans(b, up + TileAt<kRebuildColumns>(k * 16 + lane % 16, 2 * step + lane / 16));
      Mma16816<T>(mixed[0], hidden[k], {b[0], b[1]});
      Mma16816<T>(mixed[1], hidden[k], {b[2], b[3]});
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int piece = 2 * step + n;
      const Vec<float, 2> amount = *reinterpret_cast<const Vec<float, 2>*>(mix + column + piece * 8 + 2 * t);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp * 16 + g + half * 8;  // of the block; the tile has the one before it there
        const float2 before =
            Unpack2<T>(*reinterpret_cast<const uint32_t*>(tile + TileAt<kRebuildColumns>(row, piece) + 2 * t));
        const float2 here =
            Unpack2<T>(*reinterpret_cast<const uint32_t*>(tile + TileAt<kRebuildColumns>(row + 1, piece) + 2 * t));
        const float x = here.x * scale[half], y = here.y * scale[half];
        float* to = mixed[n] + 2 * half;
        to[0] = x + (before.x * scale_before[half] - x) * (amount.v[0] + to[0]);
        to[1] = y + (before.y * scale_before[half] - y) * (amount.v[1] + to[1]);
      }
    }
  }
};

// Steps [first, last) through the width that a column group has.
struct ColumnSteps {
  int first;
  int last;
};
__device__ inline ColumnSteps StepsOf(int64_t width, int groups, int group) {
  const int steps = static_cast<int>(width / kRebuildColumns);
  return {steps * group / groups, steps * (group + 1) / groups};
}

// Block (x, y, z): column group x, rows from kRebuildRows y on, side z.
template <typename T, int kMixSteps, int kLora>
__global__ void __launch_bounds__(kRebuildThreads, 2) DownKernel(LoraArguments a) {
  using Mixing = Mixer<T, kMixSteps>;
  constexpr int kStageElements = Mixing::kStageElements + kRebuildColumns * kLora;
  T* const shared = DynamicShared<T>();  // [2: stages]: Mixer's tiles, [kRebuildColumns][kLora] of the weight
  const LoraSide& side = a.sides[blockIdx.z];
  const int lane = threadIdx.x % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp, g = lane / 4, t = lane % 4;
  const int64_t first_row = int64_t{blockIdx.y} * kRebuildRows, warp_row = first_row + warp * 16;
  const ColumnSteps steps = StepsOf(a.width, a.down_groups, static_cast<int>(blockIdx.x));

  const auto load = [&](int step) {
    T* const to = shared + step % 2 * kStageElements;
    Mixing::Load(a, side, first_row, int64_t{step} * kRebuildColumns, to);
    constexpr int kPieces = kLora / 8;
    for (int i = static_cast<int>(threadIdx.x); i < kRebuildColumns * kPieces; i += kRebuildThreads) {
      const int row = i / kPieces, piece = i % kPieces;
      const bool there = piece * 8 < a.lora_rank;
      const int64_t from = (int64_t{step} * kRebuildColumns + row) * a.lora_rank + piece * 8;
      CopyAsync16(to + Mixing::kStageElements + TileAt<kLora>(row, piece),
                  static_cast<const T*>(side.down) + (there ? from : 0), there);
    }
  };
  load(steps.first);
  CopyAsyncCommit();
  Mixing mixer;
  mixer.Init(a, side, warp_row);

  float sums[kLora / 8][4] = {};
#pragma unroll 1
  for (int step = steps.first; step < steps.last; ++step) {
    if (step + 1 < steps.last) load(step + 1);
    CopyAsyncCommit();
    CopyAsyncWait<1>();
    __syncthreads();
    const T* tile = shared + step % 2 * kStageElements;
    const T* down = tile + Mixing::kStageElements;
#pragma unroll
    for (int k = 0; k < kRebuildColumns / 16; ++k) {
      float mixed[2][4];
      mixer.Mix(tile, side.mix, int64_t{step} * kRebuildColumns, k, mixed);
      const uint32_t x[4] = {Pack2<T>(mixed[0][0], mixed[0][1]), Pack2<T>(mixed[0][2], mixed[0][3]),
                             Pack2<T>(mixed[1][0], mixed[1][1]), Pack2<T>(mixed[1][2], mixed[1][3])};
#pragma unroll
      for (int n = 0; n < kLora / 16; ++n) {
        uint32_t b[4];
        LdMatrix4Trans(b, down + TileAt<kLora>(k * 16 + lane % 16, 2 * n + lane / 16));
        Mma16816<T>(sums[2 * n], x, {b[0], b[1]});
        Mma16816<T>(sums[2 * n + 1], x, {b[2], b[3]});
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = warp_row + g + half * 8;
    if (row >= a.row_count) continue;
    float* to = side.partials + (int64_t{blockIdx.x} * a.row_count + row) * a.lora_rank;
#pragma unroll
    for (int n = 0; n < kLora / 8; ++n) {
      const int column = n * 8 + 2 * t;
      if (column < a.lora_rank) StoreFloats<2>({sums[n][2 * half], sums[n][2 * half + 1]}, to + column);
    }
  }
  if (!IsLastBlock(side.down_counters + blockIdx.y, a.down_groups, shared)) return;
  const int64_t rows_left = a.row_count - first_row;
  const int64_t count = (rows_left < kRebuildRows ? rows_left : kRebuildRows) * a.lora_rank;
  for (int64_t i = 2 * int64_t{threadIdx.x}; i < count; i += 2 * kRebuildThreads) {
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

// As Down.
template <typename T, int kMixSteps, int kLora>
__global__ void __launch_bounds__(kRebuildThreads, 2) UpKernel(LoraArguments a) {
  using Mixing = Mixer<T, kMixSteps>;
  constexpr int kStageElements = Mixing::kStageElements + kLora * kRebuildColumns;
  T* const shared = DynamicShared<T>();  // [2: stages]: Mixer's tiles, [kLora][kRebuildColumns] of the weight
  const LoraSide& side = a.sides[blockIdx.z];
  const int lane = threadIdx.x % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp, g = lane / 4, t = lane % 4;
  const int64_t first_row = int64_t{blockIdx.y} * kRebuildRows, warp_row = first_row + warp * 16;
  const ColumnSteps steps = StepsOf(a.width, a.up_groups, static_cast<int>(blockIdx.x));

  const auto load = [&](int step) {
    T* const to = shared + step % 2 * kStageElements;
    const int64_t column = int64_t{step} * kRebuildColumns;
    Mixing::Load(a, side, first_row, column, to);
    for (int i = static_cast<int>(threadIdx.x); i < kLora * 8; i += kRebuildThreads) {
      const int row = i / 8, piece = i % 8;
      const bool there = row < a.lora_rank;
      CopyAsync16(to + Mixing::kStageElements + TileAt<kRebuildColumns>(row, piece),
                  static_cast<const T*>(side.up) + (there ? row * a.width + column + piece * 8 : 0), there);
    }
  };
  load(steps.first);
  CopyAsyncCommit();
  Mixing mixer;
  mixer.Init(a, side, warp_row);
  // tanh of the LoRA's hidden row.
  uint32_t hidden[kLora / 16][4];
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

  float sum[2] = {0, 0}, square[2] = {0, 0};
#pragma unroll 1
  for (int step = steps.first; step < steps.last; ++step) {
    if (step + 1 < steps.last) load(step + 1);
    CopyAsyncCommit();
    CopyAsyncWait<1>();
    __syncthreads();
    const T* tile = shared + step % 2 * kStageElements;
    const T* up = tile + Mixing::kStageElements;
    const int64_t column = int64_t{step} * kRebuildColumns;
#pragma unroll
    for (int s = 0; s < kRebuildColumns / 16; ++s) {
      float x[2][4];
      mixer.Mix(tile, side.mix, column, s, x);
#pragma unroll
      for (int k = 0; k < kLora / 16; ++k) {
        uint32_t b[4];
        LdMatrix4Trans(b, up + TileAt<kRebuildColumns>(k * 16 + lane % 16, 2 * s + lane / 16));
        Mma16816<T>(x[0], hidden[k], {b[0], b[1]});
        Mma16816<T>(x[1], hidden[k], {b[2], b[3]});
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = warp_row + g + half * 8;
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
    }
    __syncthreads();
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    for (int mask = 1; mask < 4; mask *= 2) {
      sum[half] += ShflXor(sum[half], mask);
      square[half] += ShflXor(square[half], mask);
    }
    const int64_t row = warp_row + g + half * 8;
    if (t == 0 && row < a.row_count) {
      StoreFloats<2>({sum[half], square[half]}, side.moments + 2 * (int64_t{blockIdx.x} * a.row_count + row));
    }
  }

  // scale and mean * scale of the key, and of the value.
  if (a.factors == nullptr || !IsLastBlock(a.up_counters + blockIdx.y, 2 * a.up_groups, shared)) return;
  for (int i = static_cast<int>(threadIdx.x); i < 2 * kRebuildRows; i += kRebuildThreads) {
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

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_GOLD_REBUILD_H_
