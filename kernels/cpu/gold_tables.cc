// The tables by token id that GOLD attention starts from: W_b x0, and the inputs of the mix LoRAs.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gold_tables.cc"
#include <algorithm>

#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/cpu/gemm-inl.h"
#include "kernels/cpu/gold_rebuild-inl.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {
namespace {

void GoldKeyTableRowsTarget(Context& context, absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0,
                            Matrix key_x0, Tensor table) {
  const auto total = static_cast<int64_t>(ids.size());
  const int64_t width = embedding.dim(1), column_blocks = (width + kBlockOut - 1) / kBlockOut;
  constexpr int64_t kIds = 264;  // ids that share a widened panel
  for (int64_t begin = 0; begin < total; begin += kIds) {
    const int32_t* block = ids.data() + begin;
    const int64_t count = std::min(kIds, total - begin);
    const Scratch::Frame frame(context.scratch[0]);
    float* x0 = context.scratch[0].Floats(count * width);
    context.pool.ParallelFor(
        count, [&](int64_t i, int) HWY_ATTR { EmbedRow(embedding, ln0, block[i], x0 + i * width); }, 4 * width);
    context.pool.ParallelFor(
        column_blocks,
        [&](int64_t task, int thread) HWY_ATTR {
          Scratch& scratch = context.scratch[thread];
          const Scratch::Frame task_frame(scratch);
          const int64_t column = task * kBlockOut, columns = std::min(kBlockOut, width - column);
          float* tile = scratch.Floats(count * kBlockOut);
          VisitWeight(key_x0.data.data, key_x0.data.dtype, [&](auto* w) HWY_ATTR {
            ProductTile(x0, width, count, w, true, width, width, column, columns, scratch, tile);
          });
          for (int64_t i = 0; i < count; ++i) {
            std::copy_n(tile + i * kBlockOut, columns, table.f32() + block[i] * width + column);
          }
        },
        count * width * kBlockOut);
  }
}

void GoldMixTableRowsTarget(Context& context, absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0,
                            ConstTensor mix_lora, Matrix mix_down, Tensor table) {
  const int64_t width = embedding.dim(1), hidden_width = table.dim(2);
  const auto total = static_cast<int64_t>(ids.size());
  constexpr int64_t kIds = 48;  // ids that share a widened panel
  context.pool.ParallelFor((total + kIds - 1) / kIds, [&](int64_t task, int thread) HWY_ATTR {
    const int32_t* block = ids.data() + task * kIds;
    const int64_t count = std::min(kIds, total - task * kIds);
    Scratch& scratch = context.scratch[thread];
    const Scratch::Frame frame(scratch);
    // Rows 2i and 2i + 1: the shares of xo that an id has in the mix at its own position and at the next.
    float* shares = scratch.Floats(2 * count * width);
    for (int64_t i = 0; i < count; ++i) {
      float* own = shares + 2 * i * width;
      float* next = own + width;
      EmbedRow(embedding, ln0, block[i], own);
      RmsRow(own, width);
      FillRow(next, width, [&](size_t j, size_t left) HWY_ATTR {
        return hn::Mul(LoadN(own + j, left), LoadN(mix_lora.f32() + j, left));
      });
      FillRow(own, width, [&](size_t j, size_t left) HWY_ATTR {
        return hn::Mul(LoadN(own + j, left), hn::Sub(hn::Set(DF(), 1.f), LoadN(mix_lora.f32() + j, left)));
      });
    }
    ForProductTiles(shares, width, 2 * count, mix_down.data, 0, false, width, hidden_width, scratch,
                    [&](int64_t column, int64_t columns, const float* tile) {
                      for (int64_t i = 0; i < 2 * count; ++i) {
                        const int64_t row = 2 * block[i / 2] + i % 2;
                        std::copy_n(tile + i * kBlockOut, columns, table.f32() + row * hidden_width + column);
                      }
                    });
  });
}

}  // namespace

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace goldfinch::cpu {
HWY_EXPORT(GoldKeyTableRowsTarget);
HWY_EXPORT(GoldMixTableRowsTarget);

void GoldKeyTableRows(Context& context, absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0,
                      Matrix key_x0, Tensor table) {
  HWY_DYNAMIC_DISPATCH(GoldKeyTableRowsTarget)(context, ids, embedding, ln0, key_x0, table);
}

void GoldMixTableRows(Context& context, absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0,
                      ConstTensor mix_lora, Matrix mix_down, Tensor table) {
  HWY_DYNAMIC_DISPATCH(GoldMixTableRowsTarget)(context, ids, embedding, ln0, mix_lora, mix_down, table);
}

}  // namespace goldfinch::cpu
#endif
