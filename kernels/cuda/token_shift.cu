// Token shift, static and data-dependent. Both are bound by memory; predictions: docs/cuda-predictions.md.
//
// On the matrix units, two kernels (token_shift_lora.h) do DdLerp without an intermediate of width D:
//   down: h = tanh((x + dx mix_x) down), whose input is mixed while it is loaded; reads x, writes G m numbers a row.
//   up:   out[g] = x + dx (mix[g] + h_g up[g]), with the product in registers; reads x (again) and h, writes out.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/token_shift_lora.h"

namespace goldfinch::cuda {
namespace {

using token_shift::kMaxHidden;
using token_shift::kPad;
using token_shift::kThreads;
using token_shift::kTileRows;
using token_shift::kUpColumns;
using token_shift::LoadPrev;
using token_shift::StoreShift;

bool Aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 32 == 0; }

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

// --- Data-dependent, of any shape and types --------------------------------------------------------------------------

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
  // fp16 would turn large sums into infinity.
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

// --- Data-dependent, 16-bit, on matrix units -------------------------------------------------------------------------

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
    Launch(stream, token_shift::LerpDownKernel<T, kInner, decltype(fragments)::value>,
           {dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(parts)), dim3(kThreads),
            static_cast<size_t>(shared_bytes(kInner))},
           x, spans, span_count, rows, width, static_cast<const float*>(shift), weights.mix_x.f32(),
           static_cast<const T*>(weights.down.data.data), hidden, split_width, part, h);
  };
  // The last argument is the number of 8-column fragments of a warp, which is even: ldmatrix loads two at once.
  if (inner == 128) {
    start_down(std::integral_constant<int, 128>(), std::integral_constant<int, 160 / 8 / token_shift::kColumnWarps>());
  } else {
    start_down(std::integral_constant<int, 64>(),
               std::integral_constant<int, kMaxHidden / 8 / token_shift::kColumnWarps>());
  }
  GF_CHECK_LE(tiles, 65535);
  Launch(stream, token_shift::LerpUpKernel<T>,
         {dim3(static_cast<unsigned>(width / kUpColumns), static_cast<unsigned>(tiles)), dim3(kThreads),
          static_cast<size_t>(token_shift::UpSharedBytes(hidden, rank))},
         x, spans, span_count, rows, width, static_cast<const float*>(shift), weights.mix.f32(),
         static_cast<const T*>(weights.up.data), targets, rank, static_cast<const float*>(part),
         static_cast<int>(parts), static_cast<const T*>(h), out);
  // Every block above has read the states.
  GF_CHECK_LE(span_count, 65535);
  Launch(stream, token_shift::ShiftKernel<T>,
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
    const int64_t up_bytes = token_shift::UpSharedBytes(hidden, rank);
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
