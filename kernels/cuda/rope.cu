// Rotary embedding. Bound by memory: every row is read and written once, in 16-byte pieces (docs/cuda-predictions.md).
// A block rotates one row, so that angles are computed once for all of its heads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"

namespace goldfinch::cuda {
namespace {

constexpr int kThreads = 256;

// The angle in [-pi, pi]. Two pi is in two parts, so that the error of the fused products is 2^-52 of that which the
// angle's own rounding has made.
__device__ inline double ReduceAngle(double angle) {
  constexpr double kTurnHigh = 0x1.921fb54442d18p2, kTurnLow = 0x1.1a62633145c07p-52;
  constexpr double kTurns = 0x1.45f306dc9c883p-3;  // in a radian
  const double turns = rint(angle * kTurns);
  return fma(-turns, kTurnLow, fma(-turns, kTurnHigh, angle));
}

// `frequencies` [head_size / 2]. Shared: cosine and sine of each pair of a head.
template <typename T, int V>
__global__ void RopeKernel(T* x, const DeviceSpan* spans, int span_count, int width, int head_size,
                           const double* frequencies) {
  const int row = static_cast<int>(blockIdx.x);
  const DeviceSpan span = spans[FindSpan(spans, span_count, row)];
  // Angles are taken in double: at position 10^6 an fp32 angle has lost its fraction.
  const auto position = static_cast<double>(span.position + row - span.row_begin);
  float2* const turns = DynamicShared<float2>();
  for (int pair = static_cast<int>(threadIdx.x); pair < head_size / 2; pair += static_cast<int>(blockDim.x)) {
    double sine, cosine;
    sincos(ReduceAngle(position * frequencies[pair]), &sine, &cosine);
    turns[pair] = make_float2(static_cast<float>(cosine), static_cast<float>(sine));
  }
  __syncthreads();

  T* const values = x + int64_t{row} * width;
  for (int i = static_cast<int>(threadIdx.x) * V; i < width; i += static_cast<int>(blockDim.x) * V) {
    float v[V];
    LoadFloats<V>(values + i, v);
#pragma unroll
    for (int j = 0; j < V; j += 2) {
      const float2 turn = turns[(i + j) % head_size / 2];
      const float a = v[j], b = v[j + 1];
      v[j] = a * turn.x - b * turn.y;
      v[j + 1] = a * turn.y + b * turn.x;
    }
    StoreFloats<V>(v, values + i);
  }
}

}  // namespace

void Rope(Context& context, Tensor x, RowSpans spans, int head_size, double base) {
  const Context::Frame frame(context);
  const int rows = static_cast<int>(x.dim(0)), width = static_cast<int>(x.dim(1));
  std::vector<double> frequencies(head_size / 2);
  for (int i = 0; i < head_size; i += 2) frequencies[i / 2] = std::pow(base, -static_cast<double>(i) / head_size);
  const double* device_frequencies = context.UploadShared(absl::MakeConstSpan(frequencies));
  const DeviceSpan* device_spans = context.UploadSpans(spans, 0);

  VisitFloatType(x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kVector = 16 / static_cast<int>(sizeof(T));
    // Heads are multiples of 16 wide: rows are aligned if the first one is.
    const bool vectors = reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
    const int threads = CeilDiv(CeilDiv(width, kVector), kWarp) * kWarp;
    Launch(static_cast<Stream>(context.stream()), vectors ? RopeKernel<T, kVector> : RopeKernel<T, 2>,
           {dim3(static_cast<unsigned>(rows)), dim3(static_cast<unsigned>(std::min(kThreads, threads))),
            frequencies.size() * sizeof(float2)},
           static_cast<T*>(x.data), device_spans, static_cast<int>(spans.size()), width, head_size, device_frequencies);
  });
}

}  // namespace goldfinch::cuda
