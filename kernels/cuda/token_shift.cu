// Token shift, static and data-dependent.
//
// TokenShift is bound by memory: x is read and G targets are written, (1 + G) 2 D bytes a row with bf16: 12 KB for the
// two of channel mix at D = 2048, 4.1 ns at 3 TB/s.
//
// DdLerp reads x and writes G targets too, 24 KB a row for the five of Finch at D = 2048: 8.2 ns at 3 TB/s. Between lie
// 2 D 2 G m operations of its LoRA, 1.3 million a row at rank 32: 1.7 ns of the matrix units' 800 TFLOP/s. Two kernels
// do it without a row of intermediate width D:
//   down: h = tanh((x + dx mix_x) down), whose input is mixed while it is loaded; reads x, writes G m numbers a row.
//   up:   out[g] = x + dx (mix[g] + h_g up[g]), with the product in registers; reads x (again) and h, writes out.
// x read twice makes 28 KB, 9.6 ns; the aim of 75 % of copy bandwidth over the first 24 KB is 10.9 ns.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"

namespace goldfinch::cuda {
namespace {

constexpr int kThreads = 256;

bool Aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 32 == 0; }

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

// The last row of a span becomes its shift state. Whoever has read the state for the first row does it: nobody else
// reads it.
template <int V, typename T>
__device__ void StoreShift(const T* x, const DeviceSpan& span, int64_t width, int64_t column, float* shift) {
  float last[V];
  LoadFloats<V>(x + (int64_t{span.row_begin} + span.row_count - 1) * width + column, last);
  StoreFloats<V>(last, shift + span.slot * width + column);
}

// A thread takes V columns of `tile` rows, one after the other, so that x is read once.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    TokenShiftKernel(const T* x, const DeviceSpan* spans, int span_count, int64_t rows, int64_t width, int tile,
                     float* shift, const float* mix, int targets, T* out) {
  const int64_t column = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * V;
  if (column >= width) return;
  const int64_t begin = int64_t{blockIdx.y} * tile, end = min(begin + tile, rows);
  int span_index = FindSpan(spans, span_count, static_cast<int>(begin));
  DeviceSpan span = spans[span_index];
  float prev[V];
  LoadPrev<V>(x, shift, span, begin, width, column, prev);
  for (int64_t row = begin; row < end; ++row) {
    if (row == span.row_begin + span.row_count) {
      span = spans[++span_index];
      LoadFloats<V>(shift + span.slot * width + column, prev);
    }
    if (row == span.row_begin) StoreShift<V>(x, span, width, column, shift);
    float here[V];
    LoadFloats<V>(x + row * width + column, here);
    for (int g = 0; g < targets; ++g) {
      float amount[V], y[V];
      LoadFloats<V>(mix + g * width + column, amount);
#pragma unroll
      for (int i = 0; i < V; ++i) y[i] = here[i] + (prev[i] - here[i]) * amount[i];
      StoreFloats<V>(y, out + (g * rows + row) * width + column);
    }
#pragma unroll
    for (int i = 0; i < V; ++i) prev[i] = here[i];
  }
}

// --- Data-dependent, of any shape and types
// ---------------------------------------------------------------------------

// z = x + dx mix_x, in the type of the LoRA's matrices.
template <typename T, typename W, int V>
__global__ void __launch_bounds__(kThreads) MixKernel(const T* x, const DeviceSpan* spans, int span_count,
                                                      int64_t width, const float* shift, const float* mix, W* z) {
  const int64_t row = blockIdx.x, column = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * V;
  if (column >= width) return;
  const DeviceSpan span = spans[FindSpan(spans, span_count, static_cast<int>(row))];
  float prev[V], here[V], amount[V];
  LoadPrev<V>(x, shift, span, row, width, column, prev);
  LoadFloats<V>(x + row * width + column, here);
  LoadFloats<V>(mix + column, amount);
#pragma unroll
  for (int i = 0; i < V; ++i) here[i] += (prev[i] - here[i]) * amount[i];
  StoreFloats<V>(here, z + row * width + column);
}

template <typename W>
__global__ void TanhKernel(W* x, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) x[i] = FromFloat<W>(tanhf(ToFloat(x[i])));
}

// out[g] = x + dx (mix[g] + amount[g]); then the shift states.
template <typename T, typename A, int V>
__global__ void __launch_bounds__(kThreads)
    LerpKernel(const T* x, const DeviceSpan* spans, int span_count, int64_t rows, int64_t width, float* shift,
               const float* mix, const A* amounts, int targets, T* out) {
  const int64_t row = blockIdx.x, column = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * V;
  if (column >= width) return;
  const DeviceSpan span = spans[FindSpan(spans, span_count, static_cast<int>(row))];
  float prev[V], here[V];
  LoadPrev<V>(x, shift, span, row, width, column, prev);
  LoadFloats<V>(x + row * width + column, here);
  if (row == span.row_begin) StoreShift<V>(x, span, width, column, shift);
  for (int g = 0; g < targets; ++g) {
    const int64_t at = (g * rows + row) * width + column;
    float m[V], amount[V], y[V];
    LoadFloats<V>(mix + g * width + column, m);
    LoadFloats<V>(amounts + at, amount);
#pragma unroll
    for (int i = 0; i < V; ++i) y[i] = here[i] + (prev[i] - here[i]) * (m[i] + amount[i]);
    StoreFloats<V>(y, out + at);
  }
}

template <typename T, typename W>
void DdLerpAny(Context& context, const T* x, const DeviceSpan* spans, int span_count, int64_t rows, int64_t width,
               float* shift, const DdLerpWeights& weights, T* out) {
  const auto stream = static_cast<Stream>(context.stream());
  const int64_t targets = weights.mix.dim(0), rank = weights.up.dim(1), hidden_width = targets * rank;
  W* const z = context.Scratch<W>(rows * width);
  W* const hidden = context.Scratch<W>(rows * hidden_width);
  // Sums beyond fp16's range are no sums.
  using A = std::conditional_t<std::is_same_v<W, f16_t>, float, W>;
  A* const amounts = context.Scratch<A>(targets * rows * width);
  const bool vectors = width % 8 == 0 && Aligned(x) && Aligned(shift) && Aligned(weights.mix_x.data) &&
                       Aligned(weights.mix.data) && Aligned(out);
  const LaunchShape shape{
      dim3(static_cast<unsigned>(rows), static_cast<unsigned>(CeilDiv<int64_t>(width, kThreads * (vectors ? 8 : 1)))),
      dim3(kThreads)};
  Launch(stream, vectors ? MixKernel<T, W, 8> : MixKernel<T, W, 1>, shape, x, spans, span_count, width, shift,
         weights.mix_x.f32(), z);
  Gemm gemm;
  gemm.in_dtype = gemm.out_dtype = DTypeOf<W>();
  gemm.out_in = false;
  gemm.x = z;
  gemm.weight = weights.down.data.data;
  gemm.out = hidden;
  gemm.rows = rows;
  gemm.columns = gemm.ldweight = gemm.ldout = hidden_width;
  gemm.inner = gemm.ldx = width;
  context.RunGemm(gemm);
  const int64_t count = rows * hidden_width;
  Launch(stream, TanhKernel<W>, {dim3(static_cast<unsigned>(CeilDiv<int64_t>(count, kThreads))), dim3(kThreads)},
         hidden, count);
  gemm.x = hidden;
  gemm.weight = weights.up.data;
  gemm.out = amounts;
  gemm.out_dtype = DTypeOf<A>();
  gemm.columns = gemm.ldweight = gemm.ldout = width;
  gemm.inner = rank;
  gemm.ldx = hidden_width;
  gemm.batch = targets;
  gemm.x_stride = rank;
  gemm.weight_stride = rank * width;
  gemm.out_stride = rows * width;
  context.RunGemm(gemm);
  Launch(stream, vectors ? LerpKernel<T, A, 8> : LerpKernel<T, A, 1>, shape, x, spans, span_count, rows, width, shift,
         weights.mix.f32(), static_cast<const A*>(amounts), static_cast<int>(targets), out);
}

// --- Data-dependent, 16-bit, on matrix units
// --------------------------------------------------------------------------

constexpr int kTileRows = 64;
constexpr int kUpColumns = 64;   // of out, that a block makes for every target
constexpr int kPad = 8;          // elements, so that the rows of ldmatrix lie in different banks
constexpr int kMaxHidden = 320;  // G m

// How a block of 8 warps covers [64 rows, columns]: 4 warps down, 2 across.
constexpr int kRowWarps = kTileRows / 16;
constexpr int kColumnWarps = kThreads / kWarp / kRowWarps;

// part[split] [rows, hidden] = the columns of this split of (x + dx mix_x), times down; or, if there is one split, its
// tanh in T. Inner columns at a time; a warp has Fragments columns of 8 of the result. The x of the next step is on its
// way to registers, and its part of `down` to shared memory, while this one is multiplied. Block (row tile, split).
// Shared: the mixed tile [64, Inner + pad], two panels of down [Inner, hidden + pad].
template <typename T, int Inner, int Fragments>
__global__ void __launch_bounds__(kThreads)
    DownKernel(const T* x, const DeviceSpan* spans, int span_count, int64_t rows, int64_t width, const float* shift,
               const float* mix, const T* down, int hidden, int64_t split_width, float* part, T* h) {
  constexpr int kMixedLd = Inner + kPad;
  T* const mixed = DynamicShared<T>();
  T* const panels = mixed + kTileRows * kMixedLd;
  const int down_ld = hidden + kPad;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int warp_row = warp % kRowWarps * 16, warp_column = warp / kRowWarps * Fragments * 8;
  const int64_t first_row = int64_t{blockIdx.x} * kTileRows;
  const int64_t begin = int64_t{blockIdx.y} * split_width, end = min(begin + split_width, width);

  // A thread mixes 8 columns of several rows.
  constexpr int kVectors = Inner / 8, kRowStep = kThreads / kVectors, kMixRows = kTileRows / kRowStep;
  const int mix_column = thread % kVectors * 8, mix_row = thread / kVectors;
  int64_t shift_row[kMixRows];  // of the states, for a first row; -1 for others
  bool there[kMixRows];
#pragma unroll
  for (int i = 0; i < kMixRows; ++i) {
    const int64_t row = first_row + mix_row + i * kRowStep;
    there[i] = row < rows;
    shift_row[i] = -1;
    if (!there[i]) continue;
    const DeviceSpan span = spans[FindSpan(spans, span_count, static_cast<int>(row))];
    if (row == span.row_begin) shift_row[i] = span.slot;
  }
  Vec<T, 8> here[kMixRows], prev[kMixRows];
  const auto fetch_x = [&](int64_t column) {
#pragma unroll
    for (int i = 0; i < kMixRows; ++i) {
      if (!there[i]) continue;
      const T* const from = x + (first_row + mix_row + i * kRowStep) * width + column + mix_column;
      here[i] = *reinterpret_cast<const Vec<T, 8>*>(from);
      if (shift_row[i] < 0) prev[i] = *reinterpret_cast<const Vec<T, 8>*>(from - width);
    }
  };
  const auto fetch_down = [&](int64_t column, int panel) {
    const int vectors = hidden / 8;
    for (int i = thread; i < Inner * vectors; i += kThreads) {
      const int row = i / vectors, at = i % vectors * 8;
      CopyAsync16(panels + (panel * Inner + row) * down_ld + at, down + (column + row) * hidden + at, true);
    }
    CopyAsyncCommit();
  };

  float sums[Fragments][4] = {};
  fetch_x(begin);
  fetch_down(begin, 0);
  int step = 0;
  for (int64_t column = begin; column < end; column += Inner, ++step) {
    float amount[8];
    LoadFloats<8>(mix + column + mix_column, amount);
#pragma unroll
    for (int i = 0; i < kMixRows; ++i) {
      float z[8] = {};
      if (there[i]) {
        float before[8];
        if (shift_row[i] >= 0) LoadFloats<8>(shift + shift_row[i] * width + column + mix_column, before);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          z[j] = ToFloat(here[i].v[j]);
          z[j] += ((shift_row[i] >= 0 ? before[j] : ToFloat(prev[i].v[j])) - z[j]) * amount[j];
        }
      }
      StoreFloats<8>(z, mixed + (mix_row + i * kRowStep) * kMixedLd + mix_column);
    }
    CopyAsyncWait<0>();
    __syncthreads();  // the mixed tile and this panel are there; the other panel has been used
    if (column + Inner < end) {
      fetch_x(column + Inner);
      fetch_down(column + Inner, (step + 1) % 2);
    }
    const T* const panel = panels + step % 2 * Inner * down_ld;
#pragma unroll
    for (int k = 0; k < Inner; k += 16) {
      uint32_t a[4];
      LdMatrix4(a, mixed + (warp_row + lane % 16) * kMixedLd + k + lane / 16 * 8);
#pragma unroll
      for (int f = 0; f < Fragments; f += 2) {
        if (warp_column + f * 8 >= hidden) break;  // the same for the whole warp; hidden is a multiple of 16
        uint32_t b[4];
        LdMatrix4Trans(b, panel + (k + lane % 16) * down_ld + warp_column + f * 8 + lane / 16 * 8);
        Mma16816<T>(sums[f], a, {b[0], b[1]});
        Mma16816<T>(sums[f + 1], a, {b[2], b[3]});
      }
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

int64_t UpSharedBytes(int64_t hidden, int64_t rank) {
  return (kTileRows * (hidden + kPad) + 2 * rank * (kUpColumns + kPad)) * 2;  // of 16 bits
}

// out[g] = x + dx (mix[g] + h_g up[g]) for [64 rows, 64 columns] and every target. Block (column tile, row tile).
// Shared: h [64, hidden + pad], two panels of up [rank, 64 + pad] (one is loaded while the other is used).
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    UpKernel(const T* x, const DeviceSpan* spans, int span_count, int64_t rows, int64_t width, const float* shift,
             const float* mix, const T* up, int targets, int rank, const float* part, int splits, const T* h, T* out) {
  T* const hidden_tile = DynamicShared<T>();
  const int hidden = targets * rank, hidden_ld = hidden + kPad;
  constexpr int kUpLd = kUpColumns + kPad;
  T* const panels = hidden_tile + kTileRows * hidden_ld;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int64_t first_column = int64_t{blockIdx.x} * kUpColumns, first_row = int64_t{blockIdx.y} * kTileRows;

  const auto load_panel = [&](int g) {
    T* const panel = panels + g % 2 * rank * kUpLd;
    constexpr int kVectors = kUpColumns / 8;
    for (int i = thread; i < rank * kVectors; i += kThreads) {
      const int row = i / kVectors, at = i % kVectors * 8;
      CopyAsync16(panel + row * kUpLd + at, up + (int64_t{g} * rank + row) * width + first_column + at, true);
    }
    CopyAsyncCommit();
  };
  load_panel(0);
  for (int i = thread; i < kTileRows * hidden / 8; i += kThreads) {
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
    StoreFloats<8>(values, hidden_tile + row * hidden_ld + at);
  }

  // A warp makes 16 rows by 32 columns: x and dx of its fragments stay in registers for all targets.
  const int warp_row = warp % kRowWarps * 16, warp_column = warp / kRowWarps * (kUpColumns / kColumnWarps);
  constexpr int kFragments = kUpColumns / kColumnWarps / 8;
  float here[kFragments][4], dx[kFragments][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first_row + warp_row + lane / 4 + half * 8;
    const bool there = row < rows;
    DeviceSpan span = {};
    if (there) span = spans[FindSpan(spans, span_count, static_cast<int>(row))];
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      const int64_t column = first_column + warp_column + f * 8 + lane % 4 * 2;
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

  for (int g = 0; g < targets; ++g) {
    CopyAsyncWait<0>();
    __syncthreads();  // this panel is there, and the other one has been used
    if (g + 1 < targets) load_panel(g + 1);
    const T* const panel = panels + g % 2 * rank * kUpLd;
    float sums[kFragments][4] = {};
    for (int k = 0; k < rank; k += 16) {
      uint32_t a[4];
      LdMatrix4(a, hidden_tile + (warp_row + lane % 16) * hidden_ld + g * rank + k + lane / 16 * 8);
#pragma unroll
      for (int f = 0; f < kFragments; f += 2) {
        uint32_t b[4];
        LdMatrix4Trans(b, panel + (k + lane % 16) * kUpLd + warp_column + f * 8 + lane / 16 * 8);
        Mma16816<T>(sums[f], a, {b[0], b[1]});
        Mma16816<T>(sums[f + 1], a, {b[2], b[3]});
      }
    }
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      const int64_t column = first_column + warp_column + f * 8 + lane % 4 * 2;
      float m[2];
      LoadFloats<2>(mix + g * width + column, m);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = first_row + warp_row + lane / 4 + half * 8;
        if (row >= rows) continue;
        const int i = 2 * half;
        *reinterpret_cast<uint32_t*>(out + (g * rows + row) * width + column) = Pack2<T>(
            here[f][i] + dx[f][i] * (m[0] + sums[f][i]), here[f][i + 1] + dx[f][i + 1] * (m[1] + sums[f][i + 1]));
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

template <typename T>
void DdLerpMatrixUnits(Context& context, const T* x, const DeviceSpan* spans, int span_count, int64_t rows,
                       int64_t width, float* shift, const DdLerpWeights& weights, T* out) {
  const auto stream = static_cast<Stream>(context.stream());
  const int targets = static_cast<int>(weights.mix.dim(0)), rank = static_cast<int>(weights.up.dim(1));
  const int hidden = targets * rank;
  const int64_t tiles = CeilDiv<int64_t>(rows, kTileRows);
  // Few rows: the columns of x are shared out among blocks, so that all multiprocessors read `down`.
  const auto shared_bytes = [&](int inner) {
    return (kTileRows * (inner + kPad) + 2 * inner * (hidden + kPad)) * static_cast<int64_t>(sizeof(T));
  };
  const bool fits = shared_bytes(128) <= context.facts().shared_bytes;
  const int inner = width % 128 == 0 && hidden <= 160 && fits ? 128 : 64;
  const int64_t steps = CeilDiv<int64_t>(width, inner);
  const int64_t splits = std::clamp<int64_t>(context.multiprocessors() / tiles, 1, CeilDiv<int64_t>(steps, 2));
  const int64_t split_width = CeilDiv(steps, splits) * inner;
  const int64_t parts = CeilDiv<int64_t>(width, split_width);
  float* const part = parts > 1 ? context.Scratch<float>(parts * rows * hidden) : nullptr;
  T* const h = parts > 1 ? nullptr : context.Scratch<T>(rows * hidden);
  const auto start_down = [&](auto inner_tag, auto fragments) {
    constexpr int kInner = decltype(inner_tag)::value;
    Launch(stream, DownKernel<T, kInner, decltype(fragments)::value>,
           {dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(parts)), dim3(kThreads),
            static_cast<size_t>(shared_bytes(kInner))},
           x, spans, span_count, rows, width, static_cast<const float*>(shift), weights.mix_x.f32(),
           static_cast<const T*>(weights.down.data.data), hidden, split_width, part, h);
  };
  // Columns of 8 in twos: ldmatrix loads two at once.
  if (inner == 128) {
    start_down(std::integral_constant<int, 128>(), std::integral_constant<int, 160 / 8 / kColumnWarps>());
  } else {
    start_down(std::integral_constant<int, 64>(), std::integral_constant<int, kMaxHidden / 8 / kColumnWarps>());
  }
  GF_CHECK_LE(tiles, 65535);
  Launch(stream, UpKernel<T>,
         {dim3(static_cast<unsigned>(width / kUpColumns), static_cast<unsigned>(tiles)), dim3(kThreads),
          static_cast<size_t>(UpSharedBytes(hidden, rank))},
         x, spans, span_count, rows, width, static_cast<const float*>(shift), weights.mix.f32(),
         static_cast<const T*>(weights.up.data), targets, rank, static_cast<const float*>(part),
         static_cast<int>(parts), static_cast<const T*>(h), out);
  // Every block above has read the states.
  GF_CHECK_LE(span_count, 65535);
  Launch(stream, ShiftKernel<T>,
         {dim3(static_cast<unsigned>(CeilDiv<int64_t>(width, kThreads * 8)), static_cast<unsigned>(span_count)),
          dim3(kThreads)},
         x, spans, width, shift);
}

}  // namespace

void TokenShift(Context& context, ConstTensor x, RowSpans spans, Tensor shift, ConstTensor mix, Tensor out) {
  const Context::Frame frame(context);
  const DeviceSpan* device_spans = context.UploadSpans(spans, 0);
  const int64_t rows = x.dim(0), width = x.dim(1);
  VisitFloatType(context.activation_dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kVector = 16 / static_cast<int>(sizeof(T));
    const bool vectors =
        width % kVector == 0 && Aligned(x.data) && Aligned(shift.data) && Aligned(mix.data) && Aligned(out.data);
    const int64_t columns = CeilDiv<int64_t>(width, vectors ? kVector : 1);
    const int64_t threads = std::min<int64_t>(kThreads, CeilDiv<int64_t>(columns, kWarp) * kWarp);
    // Rows that a thread takes: enough that x is read little more than once, few enough that all have work; and a grid
    // has at most 65535 blocks that way.
    const int64_t blocks = CeilDiv(columns, threads);
    int64_t tile = std::clamp<int64_t>(rows * blocks / (int64_t{8} * context.multiprocessors()), 1, 16);
    tile = std::max(tile, CeilDiv<int64_t>(rows, 65535));
    Launch(static_cast<Stream>(context.stream()), vectors ? TokenShiftKernel<T, kVector> : TokenShiftKernel<T, 1>,
           {dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(CeilDiv(rows, tile))),
            dim3(static_cast<unsigned>(threads))},
           static_cast<const T*>(x.data), device_spans, static_cast<int>(spans.size()), rows, width,
           static_cast<int>(tile), shift.f32(), mix.f32(), static_cast<int>(mix.dim(0)), static_cast<T*>(out.data));
  });
}

void DdLerp(Context& context, ConstTensor x, RowSpans spans, Tensor shift, const DdLerpWeights& weights, Tensor out) {
  const Context::Frame frame(context);
  const DeviceSpan* device_spans = context.UploadSpans(spans, 0);
  const int span_count = static_cast<int>(spans.size());
  const int64_t rows = x.dim(0), width = x.dim(1), rank = weights.up.dim(1), hidden = rank * weights.mix.dim(0);
  VisitFloatType(context.activation_dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* const from = static_cast<const T*>(x.data);
    const int64_t up_bytes = UpSharedBytes(hidden, rank);
    T* const to = static_cast<T*>(out.data);
    if constexpr (sizeof(T) == 2) {
      if (weights.down.data.dtype == DTypeOf<T>() && weights.up.dtype == DTypeOf<T>() && rank % 16 == 0 &&
          hidden <= kMaxHidden && up_bytes <= context.facts().shared_bytes && width % kUpColumns == 0 &&
          Aligned(from) && Aligned(to) && Aligned(shift.data) && Aligned(weights.down.data.data) &&
          Aligned(weights.up.data) && Aligned(weights.mix.data) && Aligned(weights.mix_x.data)) {
        return DdLerpMatrixUnits<T>(context, from, device_spans, span_count, rows, width, shift.f32(), weights, to);
      }
    }
    GF_CHECK(weights.down.data.dtype == weights.up.dtype) << "LoRA of two types";
    VisitFloatType(weights.up.dtype, [&](auto weight_tag) {
      DdLerpAny<T, typename decltype(weight_tag)::type>(context, from, device_spans, span_count, rows, width,
                                                        shift.f32(), weights, to);
    });
  });
}

}  // namespace goldfinch::cuda
