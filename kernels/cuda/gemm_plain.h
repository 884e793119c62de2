// A product without matrix units, one thread for each number of the result: for shapes that the library has no kernel
// for.
#ifndef GOLDFINCH_KERNELS_CUDA_GEMM_PLAIN_H_
#define GOLDFINCH_KERNELS_CUDA_GEMM_PLAIN_H_

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm.h"

namespace goldfinch::cuda {

template <typename In, typename Out>
__global__ void PlainGemmKernel(Gemm g) {
  const int64_t count = g.batch * g.rows * g.columns;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t column = i % g.columns, row = i / g.columns % g.rows, product = i / g.columns / g.rows;
    const In* const x = static_cast<const In*>(g.x) + product * g.x_stride + row * g.ldx;
    const In* const weight = static_cast<const In*>(g.weight) + product * g.weight_stride;
    Out* const out = static_cast<Out*>(g.out) + product * g.out_stride + row * g.ldout + column;
    float sum = 0;
    for (int64_t k = 0; k < g.inner; ++k) {
      sum += ToFloat(x[k]) * ToFloat(weight[g.out_in ? column * g.ldweight + k : k * g.ldweight + column]);
    }
    if (g.bias != nullptr) sum += g.bias[column];
    if (g.accumulate) sum += ToFloat(*out);
    *out = FromFloat<Out>(sum);
  }
}

inline void RunPlainGemm(Stream stream, const Gemm& gemm) {
  constexpr int kThreads = 128;
  const int64_t blocks =
      std::min<int64_t>(CeilDiv<int64_t>(gemm.batch * gemm.rows * gemm.columns, kThreads), int64_t{1} << 16);
  const LaunchShape shape{dim3(static_cast<unsigned>(blocks)), dim3(kThreads)};
  VisitFloatType(gemm.in_dtype, [&](auto tag) {
    using In = typename decltype(tag)::type;
    if (gemm.out_dtype == DType::kF32) {
      Launch(stream, PlainGemmKernel<In, float>, shape, gemm);
    } else {
      Launch(stream, PlainGemmKernel<In, In>, shape, gemm);
    }
  });
}

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_GEMM_PLAIN_H_
