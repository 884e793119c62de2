// How keys and values of a GOLD layer are rebuilt from ids and compressed rows (arXiv 2407.12077 section 3.3), step by
// step; included once per SIMD target. gold_attention.cc and gold_shared.cc put the steps together, gold_tables.cc
// fills the tables that they start from.

#include <algorithm>
#include <cstdint>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rope.h"
#include "kernels/cpu/scratch.h"

#if defined(GOLDFINCH_KERNELS_CPU_GOLD_REBUILD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GOLDFINCH_KERNELS_CPU_GOLD_REBUILD_INL_H_
#undef GOLDFINCH_KERNELS_CPU_GOLD_REBUILD_INL_H_
#else
#define GOLDFINCH_KERNELS_CPU_GOLD_REBUILD_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/cpu/attend-inl.h"
#include "kernels/cpu/gemm-inl.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {

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
inline void Product(const float* x, int64_t ldx, int64_t rows, Matrix weight, Scratch& scratch, float* to) {
  const int64_t out = weight.out();
  ForProductTiles(x, ldx, rows, weight.data, 0, weight.layout == Matrix::Layout::kOutIn, weight.in(), out, scratch,
                  [&](int64_t column, int64_t count, const float* tile) {
                    for (int64_t i = 0; i < rows; ++i) std::copy_n(tile + i * kBlockOut, count, to + i * out + column);
                  });
}

// x0 = LN0(emb[id]).
inline void EmbedRow(ConstTensor embedding, NormWeights ln0, int32_t id, float* to) {
  const int64_t width = embedding.dim(1);
  Widen(embedding, id * width, width, to);
  LayerNormRow(to, ln0.weight.f32(), ln0.bias.f32(), width, kLayerNormEpsilon, to);
}

// xo = rms(x0) of each id; zeros for -1, which stands before position 0.
inline void EmbedIds(const GoldSharedWeights& shared, const int32_t* ids, int64_t count, float* xo) {
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

// Positions whose keys and values are rebuilt together, at most kTile of them: runs of neighbors, of one sequence or of
// several. Their inputs are the rows of the same positions and, before each run, of the position before it, because the
// token shift looks one back. The row before position 0 is zeros.
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
  // The index of position i among the inputs; the input before it is that of the position before.
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
inline void LoadIds(const GoldSharedWeights& shared, const GoldCache& cache, const Piece& piece, int32_t* ids) {
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
inline void LoadKeys(const GoldSharedWeights& shared, const GoldCache& cache, const Piece& piece, const int32_t* ids,
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

// The tanh rows of a layer's mix LoRA at a piece's positions, from the ids of its inputs. What goes into the tanh is
// linear in xo and prev(xo), and so is the sum of two rows of the table.
inline void MixHidden(const GoldKvWeights& weights, const int32_t* ids, const Piece& piece, float* hidden) {
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
inline void Mix(const GoldKvWeights& weights, const float* x, const float* hidden, int64_t group, const Piece& piece,
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
inline void LoraHidden(Matrix down, const float* x, int64_t count, Scratch& scratch, float* hidden) {
  Product(x, down.in(), count, down, scratch, hidden);
  TanhRow(hidden, count * down.out());
}

// x += hidden up.
inline void AddLora(Matrix up, const float* hidden, int64_t count, Scratch& scratch, float* x) {
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

// The last steps of keys and values: norms, and the rotation of keys.
class Finisher {
 public:
  Finisher(const GoldKvWeights& weights, int head_size)
      : weights_(weights), head_size_(head_size), frequencies_(head_size, weights.rope_base) {}

  // In place, for the rows of a piece's positions.
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
  int64_t width() const { return shared_.embedding.dim(1); }

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

// Calls use(piece, part, scratch) for pieces of the spans' positions and every part of them, in parallel.
// `parts_of(pieces)` returns how many parts each of so many pieces has.
template <class PartsOf, class Use>
void ForPieces(Context& context, RowSpans spans, PartsOf parts_of, Use use) {
  constexpr int64_t kFewest = 8;  // fewer do not repay reading the weights
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

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // GOLDFINCH_KERNELS_CPU_GOLD_REBUILD_INL_H_
