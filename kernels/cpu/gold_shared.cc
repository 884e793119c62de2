// The shared tier of GOLD attention: rows that are kept beside the compressed cache, and attention over them.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gold_shared.cc"
#include <algorithm>

#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/cpu/attend-inl.h"
#include "kernels/cpu/gold_rebuild-inl.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {
namespace {

// How many numbers the shared tier keeps for a layer at a position: the tanh rows of its mix, key and value LoRAs, in
// this order.
int64_t KeptNumbers(const GoldKvWeights& layer) {
  return 2 * layer.mix_up.dim(1) + layer.key_down.out() + layer.value_down.out();
}

// The layout of its pages: rows of fp32, one for each position, with kk and the numbers of each layer, and then the
// ids. xo is not kept: making it from the embedding costs little beside the LoRAs' products, and keeping it would
// double the page.
class SharedPages {
 public:
  SharedPages(const GoldSharedRows& rows, int64_t width, absl::Span<const GoldKvWeights> layers)
      : rows_(rows), row_numbers_(RowNumbers(width, layers)) {}

  static int64_t RowNumbers(int64_t width, absl::Span<const GoldKvWeights> layers) {
    int64_t numbers = width;
    for (const GoldKvWeights& layer : layers) numbers += KeptNumbers(layer);
    return numbers;
  }
  static int64_t PageBytes(int64_t width, absl::Span<const GoldKvWeights> layers, int64_t page_tokens) {
    return page_tokens * (RowNumbers(width, layers) * SizeOf(DType::kF32) + SizeOf(DType::kI32));
  }

  float* Row(const RowSpan& span, int64_t position) const {
    return reinterpret_cast<float*>(Page(span, position)) + position % rows_.page_tokens * row_numbers_;
  }
  int32_t& Id(const RowSpan& span, int64_t position) const {
    char* ids = Page(span, position) + rows_.page_tokens * row_numbers_ * SizeOf(DType::kF32);
    return reinterpret_cast<int32_t*>(ids)[position % rows_.page_tokens];
  }

 private:
  char* Page(const RowSpan& span, int64_t position) const {
    return static_cast<char*>(rows_.data) + span.kept_pages[position / rows_.page_tokens] * rows_.page_bytes;
  }

  const GoldSharedRows& rows_;
  const int64_t row_numbers_;
};

// Rebuilds keys and values of one GOLD layer from the rows that GoldMakeSharedRows has stored: a source of tiles
// (attend-inl.h).
class SharedTileBuilder {
 public:
  SharedTileBuilder(const GoldSharedWeights& shared, absl::Span<const GoldKvWeights> layers, int layer,
                    const GoldSharedRows& rows, int head_size)
      : shared_(shared),
        weights_(layers[layer]),
        pages_(rows, shared.embedding.dim(1), layers),
        offset_(SharedPages::RowNumbers(shared.embedding.dim(1), layers.first(layer))),
        finisher_(weights_, head_size) {}

  static bool Find(const RowSpan&, int64_t, int64_t, const float**, const float**) { return false; }

  void Make(Made what, const RowSpan& span, int64_t first, int64_t count, Scratch& scratch, float* to) const {
    const Scratch::Frame frame(scratch);
    const Piece piece(span, first, count);
    const int64_t width = shared_.embedding.dim(1), mix_width = 2 * weights_.mix_up.dim(1);
    const bool keys = what == Made::kKeys;
    const Matrix& up = keys ? weights_.key_up : weights_.value_up;
    const int64_t hidden_width = up.in();
    const int64_t hidden_offset = offset_ + mix_width + (keys ? 0 : weights_.key_up.in());
    int32_t ids[kTile + 1];
    float* x = scratch.Floats((count + 1) * width);  // kk or xo
    float* mix = scratch.Floats(count * mix_width);
    float* hidden = scratch.Floats(count * hidden_width);
    for (int64_t i = 0; i <= count; ++i) {
      const int64_t position = first - 1 + i;
      if (position < 0) {
        ids[i] = -1;
        std::fill_n(x, width, 0.f);
        continue;
      }
      ids[i] = pages_.Id(span, position);
      const float* row = pages_.Row(span, position);
      if (keys) std::copy_n(row, width, x + i * width);
      if (i == 0) continue;
      std::copy_n(row + offset_, mix_width, mix + (i - 1) * mix_width);
      std::copy_n(row + hidden_offset, hidden_width, hidden + (i - 1) * hidden_width);
    }
    if (!keys) EmbedIds(shared_, ids, count + 1, x);
    Mix(weights_, x, mix, keys ? 0 : 1, piece, keys ? weights_.mix_key : weights_.mix_value, scratch, to);
    AddLora(up, hidden, count, scratch, to);
    finisher_.Run(what, piece, to);
  }

 private:
  const GoldSharedWeights& shared_;
  const GoldKvWeights& weights_;
  const SharedPages pages_;
  const int64_t offset_;  // where the layer's numbers begin in a row
  const Finisher finisher_;
};

// Keys and values from shared rows up to a span's kept_end, and from the compressed cache behind it. A row is the same
// from either.
class PartlySharedTileBuilder {
 public:
  PartlySharedTileBuilder(const SharedTileBuilder& shared, const TileBuilder& rest) : shared_(shared), rest_(rest) {}

  static bool Find(const RowSpan&, int64_t, int64_t, const float**, const float**) { return false; }

  void Make(Made what, const RowSpan& span, int64_t first, int64_t count, Scratch& scratch, float* to) const {
    const int64_t kept = std::clamp<int64_t>(span.kept_end - first, 0, count);
    if (kept > 0) shared_.Make(what, span, first, kept, scratch, to);
    if (kept < count) rest_.Make(what, span, first + kept, count - kept, scratch, to + kept * rest_.width());
  }

 private:
  const SharedTileBuilder& shared_;
  const TileBuilder& rest_;
};

void GoldSharedAttentionTarget(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                               absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows,
                               int head_size, Tensor out) {
  const SharedTileBuilder builder(shared, layers, layer, rows, head_size);
  if (rows.rest == nullptr) return TiledAttention(context, q, spans, head_size, builder, out);
  const TileBuilder rest(shared, layers[layer], *rows.rest, head_size);
  TiledAttention(context, q, spans, head_size, PartlySharedTileBuilder(builder, rest), out);
}

void GoldMakeSharedRowsTarget(Context& context, RowSpans spans, const GoldSharedWeights& shared,
                              absl::Span<const GoldKvWeights> layers, const GoldCache& cache,
                              const GoldSharedRows& rows) {
  const int64_t width = shared.embedding.dim(1), threads = context.pool.threads();
  const auto layer_count = static_cast<int64_t>(layers.size());
  const SharedPages pages(rows, width, layers);
  // With fewer pieces than threads, the layers of a piece are shared out among threads; each of them then makes what
  // the layers have in common.
  int64_t parts = 1;
  const auto parts_of = [&](int64_t pieces) {
    if (pieces > 0) parts = std::min(layer_count, (threads + pieces - 1) / pieces);
    return parts;
  };
  const auto make = [&](const Piece& piece, int64_t part, Scratch& scratch) HWY_ATTR {
    const auto inputs = static_cast<int64_t>(piece.inputs().size());
    int32_t ids[Piece::kMostInputs];
    LoadIds(shared, cache, piece, ids);
    float* xo = scratch.Floats(inputs * width);
    float* kk = scratch.Floats(inputs * width);
    EmbedIds(shared, ids, inputs, xo);
    LoadKeys(shared, cache, piece, ids, scratch, kk);
    const int64_t count = piece.count();
    const auto row_of = [&](int64_t i) { return pages.Row(*piece[i].span, piece[i].position); };
    if (part == 0) {
      for (int64_t i = 0; i < count; ++i) {
        pages.Id(*piece[i].span, piece[i].position) = ids[piece.here(i)];
        std::copy_n(kk + piece.here(i) * width, width, row_of(i));
      }
    }
    const Share share(layer_count, parts, part);
    float* mixed = scratch.Floats(count * width);
    int64_t offset = SharedPages::RowNumbers(width, layers.first(share.begin));
    const auto keep = [&](const float* hidden, int64_t numbers) {
      for (int64_t i = 0; i < count; ++i) {
        std::copy_n(hidden + i * numbers, numbers, row_of(i) + offset);
      }
      offset += numbers;
    };
    for (const GoldKvWeights& layer : layers.subspan(share.begin, share.end - share.begin)) {
      const Scratch::Frame layer_frame(scratch);
      const int64_t mix_width = 2 * layer.mix_up.dim(1);
      float* mix = scratch.Floats(count * mix_width);
      float* hidden = scratch.Floats(count * std::max(layer.key_down.out(), layer.value_down.out()));
      MixHidden(layer, ids, piece, mix);
      keep(mix, mix_width);
      Mix(layer, kk, mix, 0, piece, layer.mix_key, scratch, mixed);
      LoraHidden(layer.key_down, mixed, count, scratch, hidden);
      keep(hidden, layer.key_down.out());
      Mix(layer, xo, mix, 1, piece, layer.mix_value, scratch, mixed);
      LoraHidden(layer.value_down, mixed, count, scratch, hidden);
      keep(hidden, layer.value_down.out());
    }
  };
  ForPieces(context, spans, parts_of, make);
}

int64_t GoldSharedPageBytesTarget(int64_t width, absl::Span<const GoldKvWeights> layers, int64_t page_tokens) {
  return SharedPages::PageBytes(width, layers, page_tokens);
}

}  // namespace

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace goldfinch::cpu {
HWY_EXPORT(GoldSharedPageBytesTarget);
HWY_EXPORT(GoldMakeSharedRowsTarget);
HWY_EXPORT(GoldSharedAttentionTarget);

int64_t GoldSharedPageBytes(int64_t width, absl::Span<const GoldKvWeights> layers, int64_t page_tokens) {
  return HWY_DYNAMIC_DISPATCH(GoldSharedPageBytesTarget)(width, layers, page_tokens);
}

void GoldMakeSharedRows(Context& context, RowSpans spans, const GoldSharedWeights& shared,
                        absl::Span<const GoldKvWeights> layers, const GoldCache& cache, const GoldSharedRows& rows) {
  HWY_DYNAMIC_DISPATCH(GoldMakeSharedRowsTarget)(context, spans, shared, layers, cache, rows);
}

void GoldSharedAttention(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                         absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows, int head_size,
                         Tensor out) {
  HWY_DYNAMIC_DISPATCH(GoldSharedAttentionTarget)(context, q, spans, shared, layers, layer, rows, head_size, out);
}

}  // namespace goldfinch::cpu
#endif
