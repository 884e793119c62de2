// Matrix products. Many rows go to the matrix units (gemm.h), in the weight's type. With a few rows all the time goes
// to reading the weight: kernels of our own read it once and do the epilogue too (docs/cuda-predictions.md).
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"

namespace goldfinch::cuda {
namespace {

constexpr int kFewRows = 8;
constexpr int kThreads = 256;

// Whether vectors of eight elements of any type can be read from `p`.
bool Aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 32 == 0; }

// The epilogue of a product.
template <typename Act>
struct Finish {
  Activation activation;
  const float* bias;     // [columns] or null
  const void* multiply;  // [rows, columns] or null
  bool multiply_wide;    // fp32, else Act
  bool accumulate;
  void* out;  // [rows, columns]
  bool out_wide;
  int64_t columns;

  // V columns from `column` on.
  template <int V>
  __device__ void Store(int64_t row, int64_t column, float (&sums)[V]) const {
    if (bias != nullptr) {
      float values[V];
      LoadFloats<V>(bias + column, values);
#pragma unroll
      for (int i = 0; i < V; ++i) sums[i] += values[i];
    }
#pragma unroll
    for (int i = 0; i < V; ++i) sums[i] = Activate(sums[i]);
    const int64_t at = row * columns + column;
    if (multiply != nullptr) {
      float values[V];
      if (multiply_wide) {
        LoadFloats<V>(static_cast<const float*>(multiply) + at, values);
      } else {
        LoadFloats<V>(static_cast<const Act*>(multiply) + at, values);
      }
#pragma unroll
      for (int i = 0; i < V; ++i) sums[i] *= values[i];
    }
    if (out_wide) {
      StoreTo<V>(static_cast<float*>(out) + at, sums);
    } else {
      StoreTo<V>(static_cast<Act*>(out) + at, sums);
    }
  }

 private:
  __device__ float Activate(float x) const {
    switch (activation) {
      case Activation::kNone:
        return x;
      case Activation::kRelu2:
        return x < 0 ? 0.f : x * x;  // NaN stays
      case Activation::kSilu:
        return x / (1 + expf(-x));
      case Activation::kSigmoid:
        return 1 / (1 + expf(-x));
      case Activation::kTanh:
        return tanhf(x);
    }
    return x;
  }
  template <int V, typename Out>
  __device__ void StoreTo(Out* to, float (&sums)[V]) const {
    if (accumulate) {
      float values[V];
      LoadFloats<V>(to, values);
#pragma unroll
      for (int i = 0; i < V; ++i) sums[i] += values[i];
    }
    StoreFloats<V>(sums, to);
  }
};

// --- A few rows ------------------------------------------------------------------------------------------------------

constexpr int kWarpColumns = 2;  // of the weight, that one warp takes at once: halves the reads of x

// Weight [columns, inner]: `split` warps of a block share a pair of columns, each taking every split-th part of
// `inner`. Shared memory: [warps, kWarpColumns, Rows].
template <typename X, typename W, typename Act, int Rows, int V>
__global__ void __launch_bounds__(kThreads)
    FewRowsOutInKernel(const X* x, const W* weight, int64_t inner, int rows, int split, Finish<Act> finish) {
  float* const partial = DynamicShared<float>();
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int pairs = kThreads / kWarp / split, part = warp % split;
  const int64_t column = (int64_t{blockIdx.x} * pairs + warp / split) * kWarpColumns;
  float sums[kWarpColumns][Rows] = {};
  for (int64_t i = (int64_t{part} * kWarp + lane) * V; i < inner; i += int64_t{split} * kWarp * V) {
    float w[kWarpColumns][V];
#pragma unroll
    for (int c = 0; c < kWarpColumns; ++c) {
      // The last pair may lack its second column: the first stands in for it.
      const int64_t from = column + c < finish.columns ? column + c : finish.columns - 1;
      LoadFloats<V>(weight + from * inner + i, w[c]);
    }
#pragma unroll
    for (int row = 0; row < Rows; ++row) {
      if (row >= rows) break;
      float values[V];
      LoadFloats<V>(x + row * inner + i, values);
#pragma unroll
      for (int c = 0; c < kWarpColumns; ++c) {
#pragma unroll
        for (int j = 0; j < V; ++j) sums[c][row] += values[j] * w[c][j];
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kWarpColumns; ++c) {
#pragma unroll
    for (int row = 0; row < Rows; ++row) {
      const float sum = WarpSum(sums[c][row]);
      if (lane == 0) partial[(warp * kWarpColumns + c) * Rows + row] = sum;
    }
  }
  __syncthreads();
  // One thread an output.
  const int outputs = pairs * kWarpColumns * Rows;
  for (int i = static_cast<int>(threadIdx.x); i < outputs; i += kThreads) {
    const int row = i % Rows, c = i / Rows % kWarpColumns, pair = i / Rows / kWarpColumns;
    const int64_t to = (int64_t{blockIdx.x} * pairs + pair) * kWarpColumns + c;
    if (row >= rows || to >= finish.columns) continue;
    float sum = 0;
    for (int p = 0; p < split; ++p) sum += partial[((pair * split + p) * kWarpColumns + c) * Rows + row];
    float sums_of_one[1] = {sum};
    finish.template Store<1>(row, to, sums_of_one);
  }
}

// Weight [inner, columns]: a warp takes 32 V columns of every warps-th row. Shared memory: [warps, 32 V, Rows].
template <typename X, typename W, typename Act, int Rows, int V>
__global__ void __launch_bounds__(1024)
    FewRowsInOutKernel(const X* x, const W* weight, int64_t inner, int rows, Finish<Act> finish) {
  float* const partial = DynamicShared<float>();
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  constexpr int kColumns = kWarp * V;
  const int64_t column = int64_t{blockIdx.x} * kColumns + lane * V;
  float sums[V][Rows] = {};
  if (column < finish.columns) {
#pragma unroll 4
    for (int64_t i = warp; i < inner; i += warps) {
      float w[V];
      LoadFloats<V>(weight + i * finish.columns + column, w);
#pragma unroll
      for (int row = 0; row < Rows; ++row) {
        if (row >= rows) break;
        const float value = ToFloat(x[row * inner + i]);
#pragma unroll
        for (int j = 0; j < V; ++j) sums[j][row] += value * w[j];
      }
    }
  }
#pragma unroll
  for (int j = 0; j < V; ++j) {
#pragma unroll
    for (int row = 0; row < Rows; ++row) partial[(warp * kColumns + lane * V + j) * Rows + row] = sums[j][row];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kColumns * Rows; i += static_cast<int>(blockDim.x)) {
    const int row = i % Rows;
    const int64_t to = int64_t{blockIdx.x} * kColumns + i / Rows;
    if (row >= rows || to >= finish.columns) continue;
    float sum = 0;
    for (int p = 0; p < warps; ++p) sum += partial[p * kColumns * Rows + i];
    float sums_of_one[1] = {sum};
    finish.template Store<1>(row, to, sums_of_one);
  }
}

template <typename X, typename W, typename Act>
void StartFewRows(Context& context, const X* x, const W* weight, bool out_in, int64_t inner, int rows,
                  const Finish<Act>& finish) {
  const auto stream = static_cast<Stream>(context.stream());
  const auto start = [&](auto row_tag) {
    constexpr int kRows = decltype(row_tag)::value;
    if (out_in) {
      constexpr int kVector = 16 / static_cast<int>(sizeof(W));
      const bool vectors = inner % kVector == 0 && Aligned(x) && Aligned(weight);
      // As many warps as it takes to give every multiprocessor eight.
      int split = 1;
      while (split < kThreads / kWarp &&
             CeilDiv<int64_t>(finish.columns, kWarpColumns) * split < int64_t{8} * context.multiprocessors()) {
        split *= 2;
      }
      const int64_t columns = int64_t{kThreads / kWarp / split} * kWarpColumns;
      Launch(stream, vectors ? FewRowsOutInKernel<X, W, Act, kRows, kVector> : FewRowsOutInKernel<X, W, Act, kRows, 1>,
             {dim3(static_cast<unsigned>(CeilDiv<int64_t>(finish.columns, columns))), dim3(kThreads),
              kThreads / kWarp * kWarpColumns * kRows * sizeof(float)},
             x, weight, inner, rows, split, finish);
    } else {
      const bool pairs = finish.columns % 2 == 0 && Aligned(weight);
      const int64_t columns = pairs ? 2 * kWarp : kWarp;
      const int warps = static_cast<int>(std::clamp<int64_t>(inner / 8, 1, kRows == 1 ? 32 : 16));
      Launch(stream, pairs ? FewRowsInOutKernel<X, W, Act, kRows, 2> : FewRowsInOutKernel<X, W, Act, kRows, 1>,
             {dim3(static_cast<unsigned>(CeilDiv<int64_t>(finish.columns, columns))),
              dim3(static_cast<unsigned>(warps * kWarp)), static_cast<size_t>(warps * columns * kRows) * sizeof(float)},
             x, weight, inner, rows, finish);
    }
  };
  if (rows == 1) {
    start(std::integral_constant<int, 1>());
  } else {
    start(std::integral_constant<int, kFewRows>());
  }
}

// --- Many rows -------------------------------------------------------------------------------------------------------

// The epilogue alone. The sums, of type Sum, may be in the same memory as the output.
template <typename Sum, typename Act, int V>
__global__ void FinishKernel(const Sum* sums, int64_t count, Finish<Act> finish) {
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * V; i < count;
       i += int64_t{gridDim.x} * kThreads * V) {
    float values[V];
    LoadFloats<V>(sums + i, values);
    finish.template Store<V>(i / finish.columns, i % finish.columns, values);
  }
}

template <typename Act>
void ManyRows(Context& context, ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out,
              const Finish<Act>& finish) {
  const Context::Frame frame(context);
  const int64_t rows = x.dim(0), inner = weight.in(), columns = weight.out();
  const DType dtype = weight.data.dtype;
  if (x.dtype != dtype) {
    Tensor rounded{nullptr, dtype, x.shape};
    rounded.data = context.Scratch(rounded.bytes());
    Convert(context, x, rounded);
    x = rounded;
  }
  Gemm gemm;
  gemm.x = x.data;
  gemm.weight = weight.data.data;
  gemm.in_dtype = dtype;
  gemm.out_in = weight.layout == Matrix::Layout::kOutIn;
  gemm.rows = rows;
  gemm.columns = columns;
  gemm.inner = inner;
  gemm.ldx = inner;
  gemm.ldweight = gemm.out_in ? inner : columns;
  gemm.ldout = columns;
  const bool plain = epilogue.activation == Activation::kNone && !epilogue.multiply;
  // Sums beyond fp16's range would be infinite in fp16; the epilogue stores the largest fp16 number instead.
  const bool narrow_sums = dtype != DType::kF16;
  const bool fits = (out.dtype == dtype && narrow_sums && !epilogue.bias) || out.dtype == DType::kF32;
  if (plain && fits) {
    gemm.out = out.data;
    gemm.out_dtype = out.dtype;
    gemm.bias = finish.bias;
    gemm.accumulate = epilogue.accumulate;
    context.RunGemm(gemm);
    return;
  }
  // Sums are stored in the output itself if that loses nothing; else in fp32, or in the weight's type if the factor
  // that they are multiplied with is of that type, because it is rounded as much.
  const bool in_place = out.dtype == dtype && narrow_sums && !epilogue.accumulate && epilogue.multiply.data != out.data;
  Tensor sums = out;
  if (!in_place) {
    const bool narrow = narrow_sums && epilogue.multiply && epilogue.multiply.dtype == dtype;
    sums = {nullptr, narrow ? dtype : DType::kF32, out.shape};
    sums.data = context.Scratch(sums.bytes());
  }
  gemm.out = sums.data;
  gemm.out_dtype = sums.dtype;
  context.RunGemm(gemm);
  constexpr int kVector = 8;
  const bool vectors = columns % kVector == 0 && Aligned(sums.data) && Aligned(out.data) && Aligned(finish.bias) &&
                       Aligned(finish.multiply);
  const int64_t count = rows * columns;
  const int64_t blocks = std::min<int64_t>(CeilDiv<int64_t>(count, int64_t{kThreads} * (vectors ? kVector : 1)),
                                           int64_t{32} * context.multiprocessors());
  VisitFloatType(sums.dtype, [&](auto tag) {
    using Sum = typename decltype(tag)::type;
    Launch(static_cast<Stream>(context.stream()), vectors ? FinishKernel<Sum, Act, kVector> : FinishKernel<Sum, Act, 1>,
           {dim3(static_cast<unsigned>(blocks)), dim3(kThreads)}, static_cast<const Sum*>(sums.data), count, finish);
  });
}

}  // namespace

void MatMul(Context& context, ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out) {
  VisitFloatType(context.activation_dtype(), [&](auto act_tag) {
    using Act = typename decltype(act_tag)::type;
    const Finish<Act> finish{epilogue.activation,      epilogue.bias ? epilogue.bias.f32() : nullptr,
                             epilogue.multiply.data,   epilogue.multiply.dtype == DType::kF32,
                             epilogue.accumulate,      out.data,
                             out.dtype == DType::kF32, weight.out()};
    if (x.dim(0) > kFewRows) return ManyRows<Act>(context, x, weight, epilogue, out, finish);
    VisitFloatType(weight.data.dtype, [&](auto weight_tag) {
      using W = typename decltype(weight_tag)::type;
      const auto start = [&](auto row) {
        using X = decltype(row);
        StartFewRows<X, W, Act>(context, static_cast<const X*>(x.data), static_cast<const W*>(weight.data.data),
                                weight.layout == Matrix::Layout::kOutIn, weight.in(), static_cast<int>(x.dim(0)),
                                finish);
      };
      if (x.dtype == DType::kF32) {
        start(float{});
      } else {
        start(Act{});
      }
    });
  });
}

}  // namespace goldfinch::cuda
