#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gold_attention.cc"
#include <algorithm>

#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/cpu/attend-inl.h"
#include "kernels/cpu/gemm-inl.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rope.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {
namespace {

constexpr float kLayerNormEpsilon = 1e-5f;

// Runs use(column, count, tile [rows, kBlockOut]) for every block of columns of x[rows, in] times the weight at
// `offset`.
template <class Use>
HWY_INLINE void ForProductTiles(const float* x, int64_t ldx, int64_t rows, ConstTensor weight, int64_t offset,
                                bool out_in, int64_t in, int64_t out, Scratch& scratch, Use use) {
  const Scratch::Frame frame(scratch);
  float* tile = scratch.Floats(rows * kBlockOut);
  for (int64_t column = 0; column < out; column += kBlockOut) {
    const int64_t count = std::min(kBlockOut, out - column);
    VisitWeight(weight.data, weight.dtype, [&](auto* w) HWY_ATTR {
      ProductTile(x, ldx, rows, w + offset, out_in, in, out, column, count, scratch, tile);
    });
    use(column, count, tile);
  }
}

// to[rows, out] = x[rows, in] times the weight.
void Product(const float* x, int64_t ldx, int64_t rows, Matrix weight, Scratch& scratch, float* to) {
  const int64_t out = weight.out();
  ForProductTiles(x, ldx, rows, weight.data, 0, weight.layout == Matrix::Layout::kOutIn, weight.in(), out, scratch,
                  [&](int64_t column, int64_t count, const float* tile) {
                    for (int64_t i = 0; i < rows; ++i) std::copy_n(tile + i * kBlockOut, count, to + i * out + column);
                  });
}

// x0 = LN0(emb[id]).
void EmbedRow(ConstTensor embedding, NormWeights ln0, int32_t id, float* to) {
  const int64_t width = embedding.dim(1);
  Widen(embedding, id * width, width, to);
  LayerNormRow(to, ln0.weight.f32(), ln0.bias.f32(), width, kLayerNormEpsilon, to);
}

// Rebuilds keys and values of one GOLD layer from ids and compressed rows.
class TileBuilder {
 public:
  TileBuilder(const GoldShared& shared, const GoldKvWeights& weights, const GoldCache& cache, int head_size)
      : shared_(shared),
        weights_(weights),
        cache_(cache),
        head_size_(head_size),
        width_(shared.embedding.dim(1)),
        frequencies_(head_size, weights.rope_base) {}

  // k, v [count, D] of the positions first .. first + count.
  void Build(const RowSpan& span, int64_t first, int64_t count, Scratch& scratch, const float** k,
             const float** v) const {
    float* keys = scratch.Floats(count * width_);
    float* values = scratch.Floats(count * width_);
    *k = keys;
    *v = values;
    const Scratch::Frame frame(scratch);
    // Row 0 is the position before the tile: the shift looks one back. Zeros stand before position 0.
    int32_t ids[kTile + 1];
    LoadIds(span, first - 1, count + 1, ids);
    float* xo = scratch.Floats((count + 1) * width_);
    float* kk = scratch.Floats((count + 1) * width_);
    LoadShared(span, first - 1, count + 1, ids, scratch, xo, kk);
    float* hidden = scratch.Floats(count * weights_.mix_table.dim(2));
    LoadHidden(ids, count, hidden);

    Mix(kk, hidden, 0, count, weights_.mix_key, scratch, keys);
    AddLora(weights_.key_down, weights_.key_up, count, scratch, keys);
    Mix(xo, hidden, 1, count, weights_.mix_value, scratch, values);
    AddLora(weights_.value_down, weights_.value_up, count, scratch, values);
    for (int64_t i = 0; i < count; ++i) {
      Norm(weights_.ln_key, keys + i * width_);
      Norm(weights_.ln_value, values + i * width_);
      if (weights_.rope_base != 0) RopeRow(keys + i * width_, width_, head_size_, first + i, frequencies_);
    }
  }

 private:
  // The ids of positions first .. first + count; -1 for position -1.
  void LoadIds(const RowSpan& span, int64_t first, int64_t count, int32_t* ids) const {
    const int64_t vocab = shared_.embedding.dim(0);
    for (int64_t i = 0; i < count; ++i) {
      if (first + i < 0) {
        ids[i] = -1;
        continue;
      }
      const int64_t at = PagedRow(span, first + i, cache_.page_tokens());
      ids[i] = cache_.ids.dtype == DType::kU16 ? static_cast<const uint16_t*>(cache_.ids.data)[at]
                                               : static_cast<const int32_t*>(cache_.ids.data)[at];
      GF_CHECK(ids[i] >= 0 && ids[i] < vocab) << "id " << ids[i] << " at position " << first + i;
    }
  }

  // xo = rms(x0) and kk = rms(W_b [x0; c]) of positions first .. first + count; zeros for position -1.
  void LoadShared(const RowSpan& span, int64_t first, int64_t count, const int32_t* ids, Scratch& scratch, float* xo,
                  float* kk) const {
    const Scratch::Frame frame(scratch);
    const int64_t c_width = cache_.c.dim(2), skipped = first < 0 ? 1 : 0;
    float* c = scratch.Floats(count * c_width);
    std::fill_n(c, skipped * c_width, 0.f);
    for (int64_t i = skipped; i < count; ++i) {
      Widen(cache_.c, PagedRow(span, first + i, cache_.page_tokens()) * c_width, c_width, c + i * c_width);
    }
    Product(c, c_width, count, shared_.key_compressed, scratch, kk);
    for (int64_t i = skipped; i < count; ++i) {
      float* kk_row = kk + i * width_;
      const float* from_x0 = shared_.key_table.f32() + ids[i] * width_;
      FillRow(kk_row, width_, [&](size_t j, size_t left) HWY_ATTR {
        return hn::Add(LoadN(kk_row + j, left), LoadN(from_x0 + j, left));
      });
      RmsRow(kk_row, width_);
      EmbedRow(shared_.embedding, shared_.ln0, ids[i], xo + i * width_);
      RmsRow(xo + i * width_, width_);
    }
    if (skipped == 1) std::fill_n(xo, width_, 0.f);  // kk is zero already: c was, and the table was not added
  }

  // The tanh rows of the mix LoRA. Its input is linear in xo and prev(xo), and so the sum of two rows of the table.
  void LoadHidden(const int32_t* ids, int64_t count, float* hidden) const {
    const int64_t hidden_width = weights_.mix_table.dim(2);
    const float* table = weights_.mix_table.f32();
    for (int64_t i = 0; i < count; ++i) {
      float* to = hidden + i * hidden_width;
      const int64_t prev_id = ids[i], id = ids[i + 1];
      const float* own = table + 2 * id * hidden_width;
      if (prev_id < 0) {
        std::copy_n(own, hidden_width, to);
        continue;
      }
      const float* prev = table + (2 * prev_id + 1) * hidden_width;
      FillRow(to, hidden_width,
              [&](size_t j, size_t left) HWY_ATTR { return hn::Add(LoadN(own + j, left), LoadN(prev + j, left)); });
    }
    TanhRow(hidden, count * hidden_width);
  }

  // to_i = x_i + (x_{i-1} - x_i) * (mix + hidden_group up[group]); row 0 of x is the one before.
  void Mix(const float* x, const float* hidden, int64_t group, int64_t count, ConstTensor mix, Scratch& scratch,
           float* to) const {
    const int64_t rank = weights_.mix_up.dim(1);
    ForProductTiles(hidden + group * rank, 2 * rank, count, weights_.mix_up, group * rank * width_, false, rank, width_,
                    scratch, [&](int64_t column, int64_t columns, const float* tile) HWY_ATTR {
                      const float* m = mix.f32() + column;
                      for (int64_t i = 0; i < count; ++i) {
                        const float* prev = x + i * width_ + column;
                        const float* here = prev + width_;
                        FillRow(to + i * width_ + column, columns, [&](size_t j, size_t left) HWY_ATTR {
                          const VF xv = LoadN(here + j, left);
                          const VF amount = hn::Add(LoadN(m + j, left), LoadN(tile + i * kBlockOut + j, left));
                          return hn::MulAdd(hn::Sub(LoadN(prev + j, left), xv), amount, xv);
                        });
                      }
                    });
  }

  // x += tanh(x down) up.
  void AddLora(Matrix down, Matrix up, int64_t count, Scratch& scratch, float* x) const {
    const Scratch::Frame frame(scratch);
    float* hidden = scratch.Floats(count * down.out());
    Product(x, width_, count, down, scratch, hidden);
    TanhRow(hidden, count * down.out());
    ForProductTiles(hidden, down.out(), count, up.data, 0, false, up.in(), width_, scratch,
                    [&](int64_t column, int64_t columns, const float* tile) HWY_ATTR {
                      for (int64_t i = 0; i < count; ++i) {
                        float* to = x + i * width_ + column;
                        FillRow(to, columns, [&](size_t j, size_t left) HWY_ATTR {
                          return hn::Add(LoadN(to + j, left), LoadN(tile + i * kBlockOut + j, left));
                        });
                      }
                    });
  }

  void Norm(const NormWeights& norm, float* x) const {
    LayerNormRow(x, norm.weight.f32(), norm.bias.f32(), width_, kLayerNormEpsilon, x);
  }

  const GoldShared& shared_;
  const GoldKvWeights& weights_;
  const GoldCache& cache_;
  const int head_size_;
  const int64_t width_;
  const RopeFrequencies frequencies_;
};

void GoldAttentionTarget(Context& context, ConstTensor q, RowSpans spans, const GoldShared& shared,
                         const GoldKvWeights& weights, const GoldCache& cache, int head_size, Tensor out) {
  const TileBuilder builder(shared, weights, cache, head_size);
  const auto make_tile = [&](const RowSpan& span, int64_t first, int64_t count, Scratch& scratch, const float** k,
                             const float** v) { builder.Build(span, first, count, scratch, k, v); };
  TiledAttention(context, q, spans, head_size, make_tile, out);
}

void GoldKeysValuesTarget(Context& context, RowSpans spans, const GoldShared& shared, const GoldKvWeights& weights,
                          const GoldCache& cache, int head_size, const KvCache& kv) {
  const TileBuilder builder(shared, weights, cache, head_size);
  const auto tiles_of = [](const RowSpan& span) { return (span.row_count + kTile - 1) / kTile; };
  const int64_t width = kv.keys.dim(2);
  int64_t tiles = 0;
  for (const RowSpan& span : spans) tiles += tiles_of(span);
  context.pool.ParallelFor(tiles, [&](int64_t task, int thread) HWY_ATTR {
    const RowSpan* span = spans.data();
    for (; task >= tiles_of(*span); ++span) task -= tiles_of(*span);
    const int64_t first = span->position + task * kTile;
    const int64_t count = std::min(kTile, span->row_count - task * kTile);
    Scratch& scratch = context.scratch[thread];
    const Scratch::Frame frame(scratch);
    const float* keys;
    const float* values;
    builder.Build(*span, first, count, scratch, &keys, &values);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t to = PagedRow(*span, first + i, kv.page_tokens()) * width;
      Narrow(keys + i * width, width, kv.keys, to);
      Narrow(values + i * width, width, kv.values, to);
    }
  });
}

constexpr int64_t kTableIds = 48;  // rows that share a widened panel

// Calls fill(ids, count, thread) for blocks of the ids, in parallel.
template <class Fill>
void ForTableIds(Context& context, absl::Span<const int32_t> ids, Fill fill) {
  const auto total = static_cast<int64_t>(ids.size());
  context.pool.ParallelFor((total + kTableIds - 1) / kTableIds, [&](int64_t block, int thread) {
    const int64_t begin = block * kTableIds;
    fill(ids.data() + begin, std::min(kTableIds, total - begin), thread);
  });
}

void GoldKeyTableRowsTarget(Context& context, absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0,
                            Matrix key_x0, Tensor table) {
  const int64_t width = embedding.dim(1);
  ForTableIds(context, ids, [&](const int32_t* block, int64_t count, int thread) HWY_ATTR {
    Scratch& scratch = context.scratch[thread];
    const Scratch::Frame frame(scratch);
    float* x0 = scratch.Floats(count * width);
    for (int64_t i = 0; i < count; ++i) EmbedRow(embedding, ln0, block[i], x0 + i * width);
    ForProductTiles(x0, width, count, key_x0.data, 0, true, width, width, scratch,
                    [&](int64_t column, int64_t columns, const float* tile) {
                      for (int64_t i = 0; i < count; ++i) {
                        std::copy_n(tile + i * kBlockOut, columns, table.f32() + block[i] * width + column);
                      }
                    });
  });
}

void GoldMixTableRowsTarget(Context& context, absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0,
                            ConstTensor mix_lora, Matrix mix_down, Tensor table) {
  const int64_t width = embedding.dim(1), hidden_width = table.dim(2);
  ForTableIds(context, ids, [&](const int32_t* block, int64_t count, int thread) HWY_ATTR {
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
HWY_EXPORT(GoldAttentionTarget);
HWY_EXPORT(GoldKeysValuesTarget);
HWY_EXPORT(GoldKeyTableRowsTarget);
HWY_EXPORT(GoldMixTableRowsTarget);

void GoldAttention(Context& context, ConstTensor q, RowSpans spans, const GoldShared& shared,
                   const GoldKvWeights& weights, const GoldCache& cache, int head_size, Tensor out) {
  HWY_DYNAMIC_DISPATCH(GoldAttentionTarget)(context, q, spans, shared, weights, cache, head_size, out);
}

void GoldKeysValues(Context& context, RowSpans spans, const GoldShared& shared, const GoldKvWeights& weights,
                    const GoldCache& cache, int head_size, const KvCache& kv) {
  HWY_DYNAMIC_DISPATCH(GoldKeysValuesTarget)(context, spans, shared, weights, cache, head_size, kv);
}

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
