// The fused rebuild of keys and values for 16-bit types, in four kernels. Counts and predictions:
// docs/cuda-predictions.md, gold_attention.
//
// Each kernel reads and writes an intermediate of a chunk's rows once:
//   Prepare  ids -> xo = rms(LN0(emb[id])), the mix LoRA's tanh rows, c as the weights' type
//   Key      kk = table[id] + c W_c, not yet scaled, and its sums of squares
//   Down     k = mix(kk), v = mix(xo), kept in registers, times the LoRAs' down sides, by groups of columns; the block
//            that comes last adds the groups and takes tanh
//   Up       the same k and v again, + tanh(down) up, stored, and the sums that their norms want; the block that comes
//            last turns them into scale and mean. Attention does the norms themselves (UnfinishedNorms)
// Mixing again in Up costs 2 * m * D multiply-adds for each row and side, and saves a write and a read of k and v.
//
// Prepare and Key are here; gold_fused_lora.h has Down and Up.
#ifndef GOLDFINCH_KERNELS_CUDA_GOLD_FUSED_H_
#define GOLDFINCH_KERNELS_CUDA_GOLD_FUSED_H_

#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gold_inputs.h"
#include "kernels/cuda/matrix_tile.h"

namespace goldfinch::cuda::fused {

constexpr int kRowsOfBlock = 64;  // 16 for each warp
constexpr int kThreads = kRowsOfBlock / 16 * kWarp;
constexpr int kKeyColumns = 128;    // of a block of the Key kernel
constexpr int kPrepareVectors = 4;  // of 8 elements, of a thread
constexpr int64_t kWidthMax = int64_t{kPrepareVectors} * kRowThreads * 8;

// --- Prepare ---------------------------------------------------------------------------------------------------------

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

// The parts of a row that need no sums over its columns: the mix LoRA's tanh row and c.
template <typename T>
__device__ __forceinline__ void PrepareHidden(const PrepareArguments& a, const ChunkRow& at, int64_t row, T* hidden,
                                              T* c) {
  const int thread = threadIdx.x;
  for (int i = thread; i < a.mix_width; i += kRowThreads) {
    float input = 0;
    if (at.id >= 0) input += a.mix_table[2 * at.id * int64_t{a.mix_width} + i];
    if (at.prev_id >= 0) input += a.mix_table[(2 * at.prev_id + 1) * int64_t{a.mix_width} + i];
    hidden[row * a.mix_width + i] = FromFloat<T>(tanhf(input));
  }
  for (int64_t i = thread; i < a.cache.width; i += kRowThreads) {
    c[row * a.cache.width + i] = FromFloat<T>(at.stored >= 0 ? a.cache.At(at.stored, i) : 0.f);
  }
}

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
  PrepareHidden(a, at, row, hidden, c);  // while the loads are under way

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

// --- Key -------------------------------------------------------------------------------------------------------------

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

// kk = the products of a warp's 16 rows + table[id], and the sums of its squares over these columns.
template <typename T>
__device__ __forceinline__ void AddTableRows(const KeyArguments& a, int64_t warp_row, int64_t first_column,
                                             const float (&sums)[kKeyColumns / 8][4], T* kk) {
  const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
  float squares[2] = {0, 0};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = warp_row + g + half * 8;
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
    squares[half] = RowSum(squares[half]);
    if (t == 0 && row < a.row_count) a.squares[int64_t{blockIdx.x} * a.row_count + row] = squares[half];
  }
}

// Block (x, y): columns from kKeyColumns x on, rows from kRowsOfBlock y on.
template <typename T>
__global__ void __launch_bounds__(kThreads) KeyKernel(KeyArguments a, T* kk) {
  constexpr int kInner = 64, kStageElements = (kRowsOfBlock + kKeyColumns) * kInner;
  T* const shared = DynamicShared<T>();  // [2: stages][kRowsOfBlock of c, kKeyColumns of the weight][kInner]
  const int lane = threadIdx.x % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t first_column = int64_t{blockIdx.x} * kKeyColumns, first_row = int64_t{blockIdx.y} * kRowsOfBlock;

  const auto load = [&](int inner, int stage) {
    T* const to = shared + stage * kStageElements;
    for (int i = static_cast<int>(threadIdx.x); i < (kRowsOfBlock + kKeyColumns) * 8; i += kThreads) {
      const int row = i / 8, piece = i % 8;
      const bool is_c = row < kRowsOfBlock;
      bool there = inner + piece * 8 < a.c_width;
      if (is_c) there = there && first_row + row < a.row_count;
      const int64_t from = (is_c ? first_row + row : first_column + row - kRowsOfBlock) * a.c_width + inner + piece * 8;
      const T* matrix = static_cast<const T*>(is_c ? a.c : a.weight);
      CopyAsync16(to + PieceOffset<kInner>(row, piece), matrix + (there ? from : 0), there);
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
    const T* weight = c + kRowsOfBlock * kInner;
#pragma unroll
    for (int k = 0; k < kInner / 16; ++k) {
      uint32_t x[4];
      LdMatrix4(x, c + PieceOffset<kInner>(warp * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
      for (int n = 0; n < kKeyColumns / 16; ++n) {
        uint32_t b[4];
        LdMatrix4(b, weight + PieceOffset<kInner>(n * 16 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
        Mma161616<T>(sums[2 * n], sums[2 * n + 1], x, b);
      }
    }
    __syncthreads();
  }

  AddTableRows(a, first_row + warp * 16, first_column, sums, kk);
}

}  // namespace goldfinch::cuda::fused

#endif  // GOLDFINCH_KERNELS_CUDA_GOLD_FUSED_H_
