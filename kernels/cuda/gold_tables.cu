// Rows of the tables by id that rebuilding keys and values starts from. The rows of an id are made once, so products of
// many rows at a time through the matrix library are fast enough.
#include <algorithm>
#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gold_inputs.h"
#include "kernels/cuda/ops.h"

namespace goldfinch::cuda {
namespace {

constexpr int64_t kScratchFloats = int64_t{1} << 23;  // for the rows of ids that are made at once

// x0 = LN0(emb[id]).
template <typename Emb, typename To>
__global__ void __launch_bounds__(kRowThreads)
    InputKernel(const int32_t* ids, const Emb* embedding, const float* weight, const float* bias, int64_t width,
                To* x) {
  float* scratch = DynamicShared<float>();  // [kWarp]
  const int64_t row = blockIdx.x;
  const Emb* from = embedding + ids[row] * width;
  const InputRow input = InputRowOf(from, weight, bias, width, scratch);
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) {
    x[row * width + i] = FromFloat<To>(input.Normed(ToFloat(from[i]), weight[i], bias[i]));
  }
}

// Rows 2i and 2i + 1: what xo = rms(x0) of an id contributes to the mix at its own position, and at the next.
template <typename Emb, typename To>
__global__ void __launch_bounds__(kRowThreads)
    SharesKernel(const int32_t* ids, const Emb* embedding, const float* weight, const float* bias, const float* mix,
                 int64_t width, To* shares) {
  float* scratch = DynamicShared<float>();  // [kWarp]
  const int64_t row = blockIdx.x;
  const Emb* from = embedding + ids[row] * width;
  const InputRow input = InputRowOf(from, weight, bias, width, scratch);
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) {
    const float x = input.Normed(ToFloat(from[i]), weight[i], bias[i]) * input.rms_scale;
    shares[2 * row * width + i] = FromFloat<To>(x * (1 - mix[i]));
    shares[(2 * row + 1) * width + i] = FromFloat<To>(x * mix[i]);
  }
}

// table[ids[row / per_id] * per_id + row % per_id] = from[row].
template <typename To>
__global__ void __launch_bounds__(kRowThreads)
    ScatterKernel(const int32_t* ids, const float* from, int per_id, int64_t width, To* table) {
  const int64_t row = blockIdx.x, to = int64_t{ids[row / per_id]} * per_id + row % per_id;
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) {
    table[to * width + i] = FromFloat<To>(from[row * width + i]);
  }
}

// table[id] = the `per_id` rows of x that make_rows(ids, count, x) makes for the id, times the weight.
template <typename MakeRows>
void FillTable(Context& context, absl::Span<const int32_t> ids, const Matrix& weight, int per_id, Tensor table,
               MakeRows make_rows) {
  const auto stream = static_cast<Stream>(context.stream());
  const int64_t in = weight.in(), out = weight.out();
  const auto at_once = static_cast<size_t>(std::max<int64_t>(1, kScratchFloats / per_id / (in + out)));
  for (size_t begin = 0; begin < ids.size(); begin += at_once) {
    const Context::Frame frame(context);
    const absl::Span<const int32_t> chunk = ids.subspan(begin, at_once);
    const auto count = static_cast<int64_t>(chunk.size()), rows = count * per_id;
    const int32_t* device_ids = context.UploadShared(chunk);
    void* x = context.Scratch(rows * in * SizeOf(weight.data.dtype));
    float* product = context.Scratch<float>(rows * out);
    make_rows(device_ids, count, x);
    RunProduct(context, x, weight, rows, product, false);
    VisitFloatType(table.dtype, [&](auto tag) {
      using To = typename decltype(tag)::type;
      Launch(stream, ScatterKernel<To>, {dim3(static_cast<unsigned>(rows)), dim3(kRowThreads)}, device_ids, product,
             per_id, out, static_cast<To*>(table.data));
    });
  }
}

}  // namespace

void GoldKeyTableRows(Context& context, absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0,
                      Matrix key_x0, Tensor table) {
  const auto make_rows = [&](const int32_t* device_ids, int64_t count, void* x) {
    VisitFloatType(embedding.dtype, [&](auto emb_tag) {
      VisitFloatType(key_x0.data.dtype, [&](auto tag) {
        using Emb = typename decltype(emb_tag)::type;
        using To = typename decltype(tag)::type;
        Launch(static_cast<Stream>(context.stream()), InputKernel<Emb, To>, RowShape(count), device_ids,
               static_cast<const Emb*>(embedding.data), ln0.weight.f32(), ln0.bias.f32(), embedding.dim(1),
               static_cast<To*>(x));
      });
    });
  };
  FillTable(context, ids, key_x0, 1, table, make_rows);
}

void GoldMixTableRows(Context& context, absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0,
                      ConstTensor mix_lora, Matrix mix_down, Tensor table) {
  const auto make_rows = [&](const int32_t* device_ids, int64_t count, void* x) {
    VisitFloatType(embedding.dtype, [&](auto emb_tag) {
      VisitFloatType(mix_down.data.dtype, [&](auto tag) {
        using Emb = typename decltype(emb_tag)::type;
        using To = typename decltype(tag)::type;
        Launch(static_cast<Stream>(context.stream()), SharesKernel<Emb, To>, RowShape(count), device_ids,
               static_cast<const Emb*>(embedding.data), ln0.weight.f32(), ln0.bias.f32(), mix_lora.f32(),
               embedding.dim(1), static_cast<To*>(x));
      });
    });
  };
  FillTable(context, ids, mix_down, 2, table, make_rows);
}

}  // namespace goldfinch::cuda
