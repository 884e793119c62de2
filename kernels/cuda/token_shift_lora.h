// Device code of DdLerp on the matrix units, for 16-bit activations: token_shift.cu explains the two kernels. Also the
// rows that a token shift looks back to.
#ifndef GOLDFINCH_KERNELS_CUDA_TOKEN_SHIFT_LORA_H_
#define GOLDFINCH_KERNELS_CUDA_TOKEN_SHIFT_LORA_H_

#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/matrix_tile.h"

namespace goldfinch::cuda::token_shift {

constexpr int kThreads = 256;

// The row before `row`, of its sequence: in x, or the shift state of its span.
template <int V, typename T>
__device__ void LoadPrev(const T* x, const float* shift, const DeviceSpan& span, int64_t row, int64_t width,
                         int64_t column, float (&prev)[V]) {
  if (row > span.row_begin) {
    LoadFloats<V>(x + (row - 1) * width + column, prev);
  } else {
    LoadFloats<V>(shift + span.slot * width + column, prev);
  }
}

// The last row of a span becomes its shift state. The thread that has read the state for the span's first row calls
// this: no other one reads it.
template <int V, typename T>
__device__ void StoreShift(const T* x, const DeviceSpan& span, int64_t width, int64_t column, float* shift) {
  float last[V];
  LoadFloats<V>(x + (int64_t{span.row_begin} + span.row_count - 1) * width + column, last);
  StoreFloats<V>(last, shift + span.slot * width + column);
}

constexpr int kTileRows = 64;
constexpr int kUpColumns = 64;   // of out, that a block makes for every target
constexpr int kPad = 8;          // elements, so that the rows of ldmatrix lie in different banks
constexpr int kMaxHidden = 320;  // G m

// How a block of 8 warps covers [64 rows, columns]: 4 warps down, 2 across.
constexpr int kRowWarps = kTileRows / 16;
constexpr int kColumnWarps = kThreads / kWarp / kRowWarps;

// Starts the copy of [rows, 8 * vectors] of a matrix to shared memory.
template <typename T>
__device__ __forceinline__ void CopyPanel(const T* from, int64_t from_ld, int rows, int vectors, T* to, int to_ld) {
  for (int i = static_cast<int>(threadIdx.x); i < rows * vectors; i += kThreads) {
    const int row = i / vectors, at = i % vectors * 8;
    CopyAsync16(to + row * to_ld + at, from + row * from_ld + at, true);
  }
  CopyAsyncCommit();
}

// sums += [16 rows, 16] of a tile times [16, columns] of a panel. Fragments of 8 columns come in twos, because ldmatrix
// loads two at once; `columns` is a multiple of 16, and the same for the whole warp.
template <typename T, int Fragments>
__device__ __forceinline__ void AddProduct(const T* tile, int tile_ld, const T* panel, int panel_ld, int columns,
                                           float (&sums)[Fragments][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  uint32_t a[4];
  LdMatrix4(a, tile + lane % 16 * tile_ld + lane / 16 * 8);
#pragma unroll
  for (int f = 0; f < Fragments; f += 2) {
    if (f * 8 >= columns) break;
    uint32_t b[4];
    LdMatrix4Trans(b, panel + lane % 16 * panel_ld + f * 8 + lane / 16 * 8);
    Mma161616<T>(sums[f], sums[f + 1], a, b);
  }
}

// --- Down ------------------------------------------------------------------------------------------------------------

// A thread's part of the mixed tile: 8 columns of several rows. They are fetched to registers a step before they are
// mixed.
template <typename T, int Inner>
class TileMixer {
  static constexpr int kVectors = Inner / 8, kRowStep = kThreads / kVectors;
  static constexpr int kRows = kTileRows / kRowStep;

 public:
  static constexpr int kTileLd = Inner + kPad;

  __device__ __forceinline__ TileMixer(const DeviceSpan* spans, int span_count, int64_t rows, int64_t width,
                                       int64_t tile_row)
      : width_(width),
        tile_row_(tile_row),
        first_row_(static_cast<int>(threadIdx.x) / kVectors),
        first_column_(static_cast<int>(threadIdx.x) % kVectors * 8) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t row = tile_row + first_row_ + i * kRowStep;
      there_[i] = row < rows;
      shift_row_[i] = -1;
      if (!there_[i]) continue;
      const DeviceSpan span = spans[FindSpan(spans, span_count, static_cast<int>(row))];
      if (row == span.row_begin) shift_row_[i] = span.slot;
    }
  }

  __device__ __forceinline__ void Fetch(const T* x, int64_t column) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (!there_[i]) continue;
      const T* const from = x + (tile_row_ + first_row_ + i * kRowStep) * width_ + column + first_column_;
      here_[i] = *reinterpret_cast<const Vec<T, 8>*>(from);
      if (shift_row_[i] < 0) prev_[i] = *reinterpret_cast<const Vec<T, 8>*>(from - width_);
    }
  }

  // x + dx mix of the columns that were fetched, zeros in rows past the last.
  __device__ __forceinline__ void Mix(int64_t column, const float* shift, const float* mix, T* tile) const {
    float amount[8];
    LoadFloats<8>(mix + column + first_column_, amount);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      float z[8] = {};
      if (there_[i]) {
        float before[8];
        if (shift_row_[i] >= 0) LoadFloats<8>(shift + shift_row_[i] * width_ + column + first_column_, before);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          z[j] = ToFloat(here_[i].v[j]);
          z[j] += ((shift_row_[i] >= 0 ? before[j] : ToFloat(prev_[i].v[j])) - z[j]) * amount[j];
        }
      }
      StoreFloats<8>(z, tile + (first_row_ + i * kRowStep) * kTileLd + first_column_);
    }
  }

 private:
  const int64_t width_;
  const int64_t tile_row_;    // the tile's first row of x
  const int first_row_;       // the thread's, within the tile
  const int first_column_;    // the thread's, within a step
  int64_t shift_row_[kRows];  // of the states, where a row is its span's first; else -1
  bool there_[kRows];
  Vec<T, 8> here_[kRows], prev_[kRows];
};

// part[split] [rows, hidden] = the columns of this split of (x + dx mix_x), times down; or, if there is one split, its
// tanh in T. Inner columns at a time; a warp has Fragments columns of 8 of the result. The x of the next step is on its
// way to registers, and its part of `down` to shared memory, while this one is multiplied. Block (row tile, split).
// Shared: the mixed tile [64, Inner + pad], two panels of down [Inner, hidden + pad].
template <typename T, int Inner, int Fragments>
__global__ void __launch_bounds__(kThreads)
    LerpDownKernel(const T* x, const DeviceSpan* spans, int span_count, int64_t rows, int64_t width, const float* shift,
                   const float* mix, const T* down, int hidden, int64_t split_width, float* part, T* h) {
  using Mixer = TileMixer<T, Inner>;
  T* const mixed = DynamicShared<T>();
  T* const panels = mixed + kTileRows * Mixer::kTileLd;
  const int down_ld = hidden + kPad;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp_row = warp % kRowWarps * 16, warp_column = warp / kRowWarps * Fragments * 8;
  const int64_t first_row = int64_t{blockIdx.x} * kTileRows;
  const int64_t begin = int64_t{blockIdx.y} * split_width, end = min(begin + split_width, width);
  const auto copy_down = [&](int64_t column, int panel) {
    CopyPanel(down + column * hidden, hidden, Inner, hidden / 8, panels + panel * Inner * down_ld, down_ld);
  };

  Mixer mixer(spans, span_count, rows, width, first_row);
  float sums[Fragments][4] = {};
  mixer.Fetch(x, begin);
  copy_down(begin, 0);
  int step = 0;
  for (int64_t column = begin; column < end; column += Inner, ++step) {
    mixer.Mix(column, shift, mix, mixed);
    CopyAsyncWait<0>();
    __syncthreads();  // the mixed tile and this panel are there; the other panel has been used
    if (column + Inner < end) {
      mixer.Fetch(x, column + Inner);
      copy_down(column + Inner, (step + 1) % 2);
    }
    const T* const panel = panels + step % 2 * Inner * down_ld + warp_column;
#pragma unroll
    for (int k = 0; k < Inner; k += 16) {
      AddProduct(mixed + warp_row * Mixer::kTileLd + k, Mixer::kTileLd, panel + k * down_ld, down_ld,
                 hidden - warp_column, sums);
    }
    __syncthreads();  // the mixed tile has been used
  }

#pragma unroll
  for (int f = 0; f < Fragments; ++f) {
    const int column = warp_column + f * 8 + lane % 4 * 2;
    if (column >= hidden) break;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first_row + warp_row + lane / 4 + half * 8;
      if (row >= rows) continue;
      if (h != nullptr) {
        *reinterpret_cast<uint32_t*>(h + row * hidden + column) =
            Pack2<T>(tanhf(sums[f][2 * half]), tanhf(sums[f][2 * half + 1]));
      } else {
        const float pair[2] = {sums[f][2 * half], sums[f][2 * half + 1]};
        StoreFloats<2>(pair, part + (blockIdx.y * rows + row) * hidden + column);
      }
    }
  }
}

// --- Up --------------------------------------------------------------------------------------------------------------

constexpr int kUpLd = kUpColumns + kPad;
constexpr int kUpFragments = kUpColumns / kColumnWarps / 8;  // a warp makes 16 rows by 32 columns

inline int64_t UpSharedBytes(int64_t hidden, int64_t rank) {
  return (kTileRows * (hidden + kPad) + 2 * rank * kUpLd) * 2;  // of 16 bits
}

// tile [64, hidden + pad] = h, or tanh of the sum of its parts.
template <typename T>
__device__ __forceinline__ void LoadHidden(const float* part, int splits, const T* h, int64_t first_row, int64_t rows,
                                           int hidden, T* tile) {
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows * hidden / 8; i += kThreads) {
    const int row = i / (hidden / 8), at = i % (hidden / 8) * 8;
    float values[8] = {};
    if (first_row + row < rows) {
      if (h != nullptr) {
        LoadFloats<8>(h + (first_row + row) * hidden + at, values);
      } else {
        for (int s = 0; s < splits; ++s) {
          float more[8];
          LoadFloats<8>(part + (s * rows + first_row + row) * hidden + at, more);
#pragma unroll
          for (int j = 0; j < 8; ++j) values[j] += more[j];
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) values[j] = tanhf(values[j]);
      }
    }
    StoreFloats<8>(values, tile + row * (hidden + kPad) + at);
  }
}

// x and dx of a warp's fragments; they stay in registers for all targets.
struct RowFragments {
  float here[kUpFragments][4];
  float dx[kUpFragments][4];

  // `row` and `column`: the lane's first.
  template <typename T>
  __device__ __forceinline__ void Load(const T* x, const DeviceSpan* spans, int span_count, int64_t rows, int64_t width,
                                       const float* shift, int64_t first_row, int64_t first_column) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first_row + half * 8;
      const bool there = row < rows;
      DeviceSpan span = {};
      if (there) span = spans[FindSpan(spans, span_count, static_cast<int>(row))];
#pragma unroll
      for (int f = 0; f < kUpFragments; ++f) {
        const int64_t column = first_column + f * 8;
        float row_here[2] = {}, prev[2] = {};
        if (there) {
          LoadFloats<2>(x + row * width + column, row_here);
          LoadPrev<2>(x, shift, span, row, width, column, prev);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          here[f][2 * half + i] = row_here[i];
          dx[f][2 * half + i] = prev[i] - row_here[i];
        }
      }
    }
  }
};

// out[g] = x + dx (mix[g] + h_g up[g]) for [64 rows, 64 columns] and every target. Block (column tile, row tile).
// Shared: h [64, hidden + pad], two panels of up [rank, 64 + pad] (one is loaded while the other is used).
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    LerpUpKernel(const T* x, const DeviceSpan* spans, int span_count, int64_t rows, int64_t width, const float* shift,
                 const float* mix, const T* up, int targets, int rank, const float* part, int splits, const T* h,
                 T* out) {
  T* const hidden_tile = DynamicShared<T>();
  const int hidden = targets * rank, hidden_ld = hidden + kPad;
  T* const panels = hidden_tile + kTileRows * hidden_ld;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp_row = warp % kRowWarps * 16, warp_column = warp / kRowWarps * (kUpColumns / kColumnWarps);
  const int64_t block_column = int64_t{blockIdx.x} * kUpColumns, block_row = int64_t{blockIdx.y} * kTileRows;
  const int64_t lane_column = block_column + warp_column + lane % 4 * 2, lane_row = block_row + warp_row + lane / 4;
  const auto copy_up = [&](int g) {
    CopyPanel(up + int64_t{g} * rank * width + block_column, width, rank, kUpColumns / 8, panels + g % 2 * rank * kUpLd,
              kUpLd);
  };

  copy_up(0);
  LoadHidden(part, splits, h, block_row, rows, hidden, hidden_tile);
  RowFragments fragments;
  fragments.Load(x, spans, span_count, rows, width, shift, lane_row, lane_column);
  for (int g = 0; g < targets; ++g) {
    CopyAsyncWait<0>();
    __syncthreads();  // this panel is there, and the other one has been used
    if (g + 1 < targets) copy_up(g + 1);
    const T* const panel = panels + g % 2 * rank * kUpLd + warp_column;
    float sums[kUpFragments][4] = {};
    for (int k = 0; k < rank; k += 16) {
      AddProduct(hidden_tile + warp_row * hidden_ld + g * rank + k, hidden_ld, panel + k * kUpLd, kUpLd,
                 8 * kUpFragments, sums);
    }
#pragma unroll
    for (int f = 0; f < kUpFragments; ++f) {
      const int64_t column = lane_column + f * 8;
      float m[2];
      LoadFloats<2>(mix + g * width + column, m);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = lane_row + half * 8;
        if (row >= rows) continue;
        const int i = 2 * half;
        const float* const here = fragments.here[f] + i;
        const float* const dx = fragments.dx[f] + i;
        *reinterpret_cast<uint32_t*>(out + (g * rows + row) * width + column) =
            Pack2<T>(here[0] + dx[0] * (m[0] + sums[f][i]), here[1] + dx[1] * (m[1] + sums[f][i + 1]));
      }
    }
  }
}

// The last row of every span into its shift state. Block (column tile, span).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    ShiftKernel(const T* x, const DeviceSpan* spans, int64_t width, float* shift) {
  const int64_t column = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 8;
  if (column < width) StoreShift<8>(x, spans[blockIdx.y], width, column, shift);
}

}  // namespace goldfinch::cuda::token_shift

#endif  // GOLDFINCH_KERNELS_CUDA_TOKEN_SHIFT_LORA_H_
