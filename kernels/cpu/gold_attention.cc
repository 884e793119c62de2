// GOLD attention over the compressed cache (the compressed tier), and the keys and values of the full tier.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gold_attention.cc"
#include <algorithm>

#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/cpu/attend-inl.h"
#include "kernels/cpu/gold_rebuild-inl.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {
namespace {

void GoldAttentionTarget(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                         const GoldKvWeights& weights, const GoldCache& cache, int head_size, Tensor out) {
  TiledAttention(context, q, spans, head_size, TileBuilder(shared, weights, cache, head_size), out);
}

void GoldMakeKeysValuesTarget(Context& context, RowSpans spans, const GoldSharedWeights& shared,
                              const GoldKvWeights& weights, const GoldCache& cache, int head_size, const KvCache& kv) {
  const TileBuilder builder(shared, weights, cache, head_size);
  const int64_t width = kv.keys.dim(2);
  const auto make = [&](const Piece& piece, int64_t part, Scratch& scratch) HWY_ATTR {
    const Made what = part == 0 ? Made::kKeys : Made::kValues;
    float* rows = scratch.Floats(piece.count() * width);
    builder.Make(what, piece, scratch, rows);
    for (int64_t i = 0; i < piece.count(); ++i) {
      Narrow(rows + i * width, width, what == Made::kKeys ? kv.keys : kv.values,
             KeptRow(*piece[i].span, piece[i].position, kv.page_tokens()) * width);
    }
  };
  ForPieces(
      context, spans, [](int64_t) { return 2; }, make);
}

}  // namespace

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace goldfinch::cpu {
HWY_EXPORT(GoldAttentionTarget);
HWY_EXPORT(GoldMakeKeysValuesTarget);

void GoldAttention(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                   const GoldKvWeights& weights, const GoldCache& cache, int head_size, Tensor out) {
  HWY_DYNAMIC_DISPATCH(GoldAttentionTarget)(context, q, spans, shared, weights, cache, head_size, out);
}

void GoldMakeKeysValues(Context& context, RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                        const GoldCache& cache, int head_size, const KvCache& kv) {
  HWY_DYNAMIC_DISPATCH(GoldMakeKeysValuesTarget)(context, spans, shared, weights, cache, head_size, kv);
}

}  // namespace goldfinch::cpu
#endif
