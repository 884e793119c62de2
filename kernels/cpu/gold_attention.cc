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

// xo = rms(x0) of each id; zeros for -1, which stands before position 0.
void EmbedIds(const GoldSharedWeights& shared, const int32_t* ids, int64_t count, float* xo) {
  const int64_t width = shared.embedding.dim(1);
  for (int64_t i = 0; i < count; ++i) {
    float* row = xo + i * width;
    if (ids[i] < 0) {
      std::fill_n(row, width, 0.f);
      continue;
    }
    EmbedRow(shared.embedding, shared.ln0, ids[i], row);
    RmsRow(row, width);
  }
}

// Positions that are made together, at most kTile of them: runs of neighbors, of one sequence or of several. What they
// are made of are the rows of their `inputs`, which are they and, before each run, the position before it, for the
// shift looks one back. Zeros stand before position 0.
class Piece {
 public:
  struct Input {
    const RowSpan* span;
    int64_t position;  // -1 before a sequence
  };

  Piece() = default;
  Piece(const RowSpan& span, int64_t first, int64_t count) { Add(span, first, count); }

  void Add(const RowSpan& span, int64_t first, int64_t count) {
    inputs_[input_count_++] = {&span, first - 1};
    for (int64_t i = 0; i < count; ++i) {
      here_[count_++] = input_count_;
      inputs_[input_count_++] = {&span, first + i};
    }
  }

  int64_t count() const { return count_; }
  // Which input position i is; the one before it is that of the position before.
  int64_t here(int64_t i) const { return here_[i]; }
  const Input& operator[](int64_t i) const { return inputs_[here_[i]]; }
  absl::Span<const Input> inputs() const { return absl::MakeConstSpan(inputs_, input_count_); }

  static constexpr int64_t kMostInputs = 2 * kTile;

 private:
  int64_t count_ = 0, input_count_ = 0;
  int64_t here_[kTile];
  Input inputs_[kMostInputs];
};

// The ids of a piece's inputs; -1 for position -1.
void LoadIds(const GoldSharedWeights& shared, const GoldCache& cache, const Piece& piece, int32_t* ids) {
  const int64_t vocab = shared.embedding.dim(0);
  for (const Piece::Input& input : piece.inputs()) {
    int32_t& id = *ids++;
    if (input.position < 0) {
      id = -1;
      continue;
    }
    const int64_t at = PagedRow(*input.span, input.position, cache.page_tokens());
    id = cache.ids.dtype == DType::kU16 ? static_cast<const uint16_t*>(cache.ids.data)[at]
                                        : static_cast<const int32_t*>(cache.ids.data)[at];
    GF_CHECK(id >= 0 && id < vocab) << "id " << id << " at position " << input.position;
  }
}

// kk = rms(W_b [x0; c]) of a piece's inputs; zeros for position -1.
void LoadKeys(const GoldSharedWeights& shared, const GoldCache& cache, const Piece& piece, const int32_t* ids,
              Scratch& scratch, float* kk) {
  const Scratch::Frame frame(scratch);
  const int64_t width = shared.embedding.dim(1), c_width = shared.key_compressed.in();
  const auto count = static_cast<int64_t>(piece.inputs().size());
  float* c = scratch.Floats(count * c_width);
  for (int64_t i = 0; i < count; ++i) {
    const auto& [span, position] = piece.inputs()[i];
    if (position < 0) {
      std::fill_n(c + i * c_width, c_width, 0.f);
    } else {
      WidenCompressedRow(cache.c, PagedRow(*span, position, cache.page_tokens()), c_width, c + i * c_width);
    }
  }
  Product(c, c_width, count, shared.key_compressed, scratch, kk);  // zeros of position -1 stay so
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0) continue;
    float* row = kk + i * width;
    const float* from_x0 = shared.key_table.f32() + ids[i] * width;
    FillRow(row, width,
            [&](size_t j, size_t left) HWY_ATTR { return hn::Add(LoadN(row + j, left), LoadN(from_x0 + j, left)); });
    RmsRow(row, width);
  }
}

// The tanh rows of a layer's mix LoRA at a piece's positions; ids are of its inputs. Their input is linear in xo and
// prev(xo), and so the sum of two rows of the table.
void MixHidden(const GoldKvWeights& weights, const int32_t* ids, const Piece& piece, float* hidden) {
  const int64_t hidden_width = weights.mix_table.dim(2);
  const float* table = weights.mix_table.f32();
  for (int64_t i = 0; i < piece.count(); ++i) {
    float* to = hidden + i * hidden_width;
    const int64_t prev_id = ids[piece.here(i) - 1], id = ids[piece.here(i)];
    const float* own = table + 2 * id * hidden_width;
    if (prev_id < 0) {
      std::copy_n(own, hidden_width, to);
      continue;
    }
    const float* prev = table + (2 * prev_id + 1) * hidden_width;
    FillRow(to, hidden_width,
            [&](size_t j, size_t left) HWY_ATTR { return hn::Add(LoadN(own + j, left), LoadN(prev + j, left)); });
  }
  TanhRow(hidden, piece.count() * hidden_width);
}

// to_i = x_i + (x_{i-1} - x_i) * (mix + hidden_group up[group]); x are rows of the piece's inputs.
void Mix(const GoldKvWeights& weights, const float* x, const float* hidden, int64_t group, const Piece& piece,
         ConstTensor mix, Scratch& scratch, float* to) {
  const int64_t rank = weights.mix_up.dim(1), width = weights.mix_up.dim(2);
  ForProductTiles(hidden + group * rank, 2 * rank, piece.count(), weights.mix_up, group * rank * width, false, rank,
                  width, scratch, [&](int64_t column, int64_t columns, const float* tile) HWY_ATTR {
                    const float* m = mix.f32() + column;
                    for (int64_t i = 0; i < piece.count(); ++i) {
                      const float* here = x + piece.here(i) * width + column;
                      const float* prev = here - width;
                      FillRow(to + i * width + column, columns, [&](size_t j, size_t left) HWY_ATTR {
                        const VF xv = LoadN(here + j, left);
                        const VF amount = hn::Add(LoadN(m + j, left), LoadN(tile + i * kBlockOut + j, left));
                        return hn::MulAdd(hn::Sub(LoadN(prev + j, left), xv), amount, xv);
                      });
                    }
                  });
}

// hidden = tanh(x down), the tanh rows of a key or value LoRA.
void LoraHidden(Matrix down, const float* x, int64_t count, Scratch& scratch, float* hidden) {
  Product(x, down.in(), count, down, scratch, hidden);
  TanhRow(hidden, count * down.out());
}

// x += hidden up.
void AddLora(Matrix up, const float* hidden, int64_t count, Scratch& scratch, float* x) {
  const int64_t width = up.out();
  ForProductTiles(hidden, up.in(), count, up.data, 0, false, up.in(), width, scratch,
                  [&](int64_t column, int64_t columns, const float* tile) HWY_ATTR {
                    for (int64_t i = 0; i < count; ++i) {
                      float* to = x + i * width + column;
                      FillRow(to, columns, [&](size_t j, size_t left) HWY_ATTR {
                        return hn::Add(LoadN(to + j, left), LoadN(tile + i * kBlockOut + j, left));
                      });
                    }
                  });
}

// The last of what makes keys and values: norms, and the rotation of keys.
class Finisher {
 public:
  Finisher(const GoldKvWeights& weights, int head_size)
      : weights_(weights), head_size_(head_size), frequencies_(head_size, weights.rope_base) {}

  // Of a piece's positions, in place.
  void Run(Made what, const Piece& piece, float* rows) const {
    const int64_t width = weights_.mix_up.dim(2);
    const NormWeights& norm = what == Made::kKeys ? weights_.ln_key : weights_.ln_value;
    for (int64_t i = 0; i < piece.count(); ++i) {
      float* row = rows + i * width;
      LayerNormRow(row, norm.weight.f32(), norm.bias.f32(), width, kLayerNormEpsilon, row);
      if (what == Made::kKeys && weights_.rope_base != 0) {
        RopeRow(row, width, head_size_, piece[i].position, frequencies_);
      }
    }
  }

 private:
  const GoldKvWeights& weights_;
  const int head_size_;
  const RopeFrequencies frequencies_;
};

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

// Numbers that tier T2 keeps of a layer at a position: the tanh rows of its mix, key and value LoRAs, in this order.
int64_t KeptNumbers(const GoldKvWeights& layer) {
  return 2 * layer.mix_up.dim(1) + layer.key_down.out() + layer.value_down.out();
}

// Where they are: a page is rows of fp32, one a position, that hold kk and the numbers of each layer; behind the rows
// are the ids. xo is not kept: to make it of the embedding is little beside the LoRAs' products, to keep it would
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
    return static_cast<char*>(rows_.data) + span.kept[position / rows_.page_tokens] * rows_.page_bytes;
  }

  const GoldSharedRows& rows_;
  const int64_t row_numbers_;
};

// Rebuilds them from what GoldMakeSharedRows has kept.
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
  const int64_t offset_;  // of the layer's numbers in a row
  const Finisher finisher_;
};

void GoldAttentionTarget(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                         const GoldKvWeights& weights, const GoldCache& cache, int head_size, Tensor out) {
  TiledAttention(context, q, spans, head_size, TileBuilder(shared, weights, cache, head_size), out);
}

void GoldSharedAttentionTarget(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                               absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows,
                               int head_size, Tensor out) {
  TiledAttention(context, q, spans, head_size, SharedTileBuilder(shared, layers, layer, rows, head_size), out);
}

// Calls use(piece, part, scratch) for pieces of the spans' positions and every part of them, in parallel.
// `parts_of(pieces)` says how many parts a piece has.
template <class PartsOf, class Use>
void ForPieces(Context& context, RowSpans spans, PartsOf parts_of, Use use) {
  constexpr int64_t kFewest = 8;  // fewer would not be worth the weights that they read
  int64_t positions = 0;
  for (const RowSpan& span : spans) positions += span.row_count;
  const int64_t threads = context.pool.threads();
  const int64_t length = std::clamp((positions + threads - 1) / threads, kFewest, kTile);
  const int64_t pieces = (positions + length - 1) / length, parts = parts_of(pieces);
  context.pool.ParallelFor(pieces * parts, [&](int64_t task, int thread) {
    int64_t begin = task / parts * length, left = length;  // of all spans' positions, one after the other
    Piece piece;
    for (const RowSpan& span : spans) {
      const int64_t count = std::min(left, span.row_count - begin);
      if (count > 0) {
        piece.Add(span, span.position + begin, count);
        left -= count;
      }
      begin = std::max<int64_t>(0, begin - span.row_count);
      if (left == 0) break;
    }
    Scratch& scratch = context.scratch[thread];
    const Scratch::Frame frame(scratch);
    use(piece, task % parts, scratch);
  });
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

void GoldMakeSharedRowsTarget(Context& context, RowSpans spans, const GoldSharedWeights& shared,
                              absl::Span<const GoldKvWeights> layers, const GoldCache& cache,
                              const GoldSharedRows& rows) {
  const int64_t width = shared.embedding.dim(1), threads = context.pool.threads();
  const auto layer_count = static_cast<int64_t>(layers.size());
  const SharedPages pages(rows, width, layers);
  // With fewer pieces than threads, each piece is dealt out by layers; what layers share is then made several times.
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

void GoldKeyTableRowsTarget(Context& context, absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0,
                            Matrix key_x0, Tensor table) {
  const auto total = static_cast<int64_t>(ids.size());
  const int64_t width = embedding.dim(1), column_blocks = (width + kBlockOut - 1) / kBlockOut;
  constexpr int64_t kIds = 264;  // that share a widened panel
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
  constexpr int64_t kIds = 48;  // that share a widened panel
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
HWY_EXPORT(GoldAttentionTarget);
HWY_EXPORT(GoldMakeKeysValuesTarget);
HWY_EXPORT(GoldSharedPageBytesTarget);
HWY_EXPORT(GoldMakeSharedRowsTarget);
HWY_EXPORT(GoldSharedAttentionTarget);
HWY_EXPORT(GoldKeyTableRowsTarget);
HWY_EXPORT(GoldMixTableRowsTarget);

void GoldAttention(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                   const GoldKvWeights& weights, const GoldCache& cache, int head_size, Tensor out) {
  HWY_DYNAMIC_DISPATCH(GoldAttentionTarget)(context, q, spans, shared, weights, cache, head_size, out);
}

void GoldMakeKeysValues(Context& context, RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                        const GoldCache& cache, int head_size, const KvCache& kv) {
  HWY_DYNAMIC_DISPATCH(GoldMakeKeysValuesTarget)(context, spans, shared, weights, cache, head_size, kv);
}

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
