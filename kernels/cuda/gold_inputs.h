// What keys and values of GOLD are made from, for all kernels that make them: rows of a chunk, input rows
// x0 = LN0(emb[id]), rows of the compressed cache; and products with a layer's weights.
#ifndef GOLDFINCH_KERNELS_CUDA_GOLD_INPUTS_H_
#define GOLDFINCH_KERNELS_CUDA_GOLD_INPUTS_H_

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/device.h"

namespace goldfinch::cuda {

constexpr float kLayerNormEpsilon = 1e-5f;
constexpr float kRmsEpsilon = 1e-8f;
constexpr int kRowThreads = 256;  // of a block that computes one row

inline LaunchShape RowShape(int64_t rows) {
  return {dim3(static_cast<unsigned>(rows)), dim3(kRowThreads), kWarp * sizeof(float)};
}

// A row of a chunk of positions that is rebuilt.
struct ChunkRow {
  int32_t id;       // -1 at position -1
  int32_t prev_id;  // of the row before; -1 where there is none or it is not needed
  int64_t stored;   // row of the compressed cache, or of shared rows if it is rebuilt from these; -1 at position -1
  int64_t kept;     // row of the tier that is filled; -1 if none is, or only_before
  int64_t position;
  int32_t only_before;  // 1 if the row is there only for the next one to look back to
};

struct RowMoments {
  float mean;
  float scale;  // 1 / sqrt(variance + epsilon)
};

// Over the values value(0) to value(width - 1), in two passes: a variance as a difference of squares would lose digits.
// `scratch` [32] shared; all threads of the block call.
template <typename Value>
__device__ inline RowMoments MomentsOf(int64_t width, float* scratch, Value value) {
  float sum = 0;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) sum += value(i);
  const float mean = BlockSum(sum, scratch) / static_cast<float>(width);
  float square = 0;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    const float apart = value(i) - mean;
    square += apart * apart;
  }
  return {mean, 1 / sqrtf(BlockSum(square, scratch) / static_cast<float>(width) + kLayerNormEpsilon)};
}

// 1 / (sqrt(mean of squares) + 1e-8).
__device__ inline float RmsScale(float square_sum, int64_t width) {
  return 1 / (sqrtf(square_sum / static_cast<float>(width)) + kRmsEpsilon);
}

// The statistics that turn a row of the embedding into x0 and xo = rms(x0).
struct InputRow {
  RowMoments moments;
  float rms_scale;

  __device__ float Normed(float x, float weight, float bias) const {
    return (x - moments.mean) * moments.scale * weight + bias;
  }
};

template <typename Emb>
__device__ inline InputRow InputRowOf(const Emb* from, const float* weight, const float* bias, int64_t width,
                                      float* scratch) {
  InputRow row{MomentsOf(width, scratch, [&](int64_t i) { return ToFloat(from[i]); }), 0};
  float square = 0;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    const float x = row.Normed(ToFloat(from[i]), weight[i], bias[i]);
    square += x * x;
  }
  row.rms_scale = RmsScale(BlockSum(square, scratch), width);
  return row;
}

// Rows c of the compressed cache, laid out as CompressedRowWidth says.
struct CompressedRows {
  const void* data;
  DType dtype;
  int64_t width;  // numbers of a row

  __device__ float At(int64_t row, int64_t i) const {
    if (dtype == DType::kInt8) {
      const auto* bytes = static_cast<const uint8_t*>(data) + row * CompressedRowWidth(DType::kInt8, width);
      const float scale = Unpack2<bf16_t>(bytes[width] | uint32_t{bytes[width + 1]} << 8).x;
      return static_cast<float>(static_cast<int8_t>(bytes[i])) * scale;
    }
    const int64_t at = row * width + i;
    return dtype == DType::kF32   ? static_cast<const float*>(data)[at]
           : dtype == DType::kF16 ? ToFloat(static_cast<const f16_t*>(data)[at])
                                  : ToFloat(static_cast<const bf16_t*>(data)[at]);
  }
};

// to [rows, out] fp32 = x [rows, in] times the weight, + `to` if it accumulates. x is of the weight's type.
inline void RunProduct(Context& context, const void* x, const Matrix& weight, int64_t rows, float* to,
                       bool accumulate) {
  const int64_t in = weight.in(), out = weight.out();
  const bool out_in = weight.layout == Matrix::Layout::kOutIn;
  context.RunGemm({.x = x,
                   .weight = weight.data.data,
                   .out = to,
                   .in_dtype = weight.data.dtype,
                   .out_dtype = DType::kF32,
                   .out_in = out_in,
                   .accumulate = accumulate,
                   .rows = rows,
                   .columns = out,
                   .inner = in,
                   .ldx = in,
                   .ldweight = out_in ? in : out,
                   .ldout = out});
}

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_GOLD_INPUTS_H_
