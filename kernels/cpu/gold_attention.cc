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

// Rebuilds keys and values of one GOLD layer from ids and compressed rows: a source of tiles (attend-inl.h).
class TileBuilder {
 public:
  TileBuilder(const GoldSharedWeights& shared, const GoldKvWeights& weights, const GoldCache& cache, int head_size)
      : shared_(shared), weights_(weights), cache_(cache), finisher_(weights, head_size) {}

  static bool Find(const RowSpan&, int64_t, int64_t, const float**, const float**) { return false; }

  void Make(Made what, const RowSpan& span, int64_t first, int64_t count, Scratch& scratch, float* to) const {
    Make(what, Piece(span, first, count), scratch, to);
  }
  void Make(Made what, const Piece& piece, Scratch& scratch, float* to) const {
    const Scratch::Frame frame(scratch);
    const auto inputs = static_cast<int64_t>(piece.inputs().size());
    int32_t ids[Piece::kMostInputs];
    LoadIds(shared_, cache_, piece, ids);
    float* mix = scratch.Floats(piece.count() * weights_.mix_table.dim(2));
    MixHidden(weights_, ids, piece, mix);
    float* x = scratch.Floats(inputs * shared_.embedding.dim(1));  // kk or xo
    if (what == Made::kKeys) {
      LoadKeys(shared_, cache_, piece, ids, scratch, x);
      Mix(weights_, x, mix, 0, piece, weights_.mix_key, scratch, to);
      Lora(weights_.key_down, weights_.key_up, piece.count(), scratch, to);
    } else {
      EmbedIds(shared_, ids, inputs, x);
      Mix(weights_, x, mix, 1, piece, weights_.mix_value, scratch, to);
      Lora(weights_.value_down, weights_.value_up, piece.count(), scratch, to);
    }
    finisher_.Run(what, piece, to);
  }

 private:
  // x += tanh(x down) up.
  static void Lora(Matrix down, Matrix up, int64_t count, Scratch& scratch, float* x) {
    float* hidden = scratch.Floats(count * down.out());
    LoraHidden(down, x, count, scratch, hidden);
    AddLora(up, hidden, count, scratch, x);
  }

  const GoldSharedWeights& shared_;
  const GoldKvWeights& weights_;
  const GoldCache& cache_;
  const Finisher finisher_;
};

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
