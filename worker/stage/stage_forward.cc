// The ops of a Stage::Forward, from the rows that come in to those that go out.
#include <algorithm>
#include <any>

#include "base/check.h"
#include "worker/stage/stage.h"

namespace goldfinch {
namespace {

constexpr float kLayerNormEpsilon = 1e-5f;

}  // namespace

// Fills the rows of the step's ids that were never in the cache before. They are a submission of their own, so that the
// layers' one stays the same from step to step.
void Stage::FillTables() {
  for (const int32_t id : ids_) AddTableId(id);
  FillNewTableRows();
}

void Stage::AddTableId(int32_t id) {
  GF_CHECK(id >= 0 && id < shape_.vocab_size) << "token id " << id;
  if (tables_have_[id]) return;
  if (static_cast<int64_t>(new_ids_.size()) == options_.max_step_tokens) FillNewTableRows();
  tables_have_[id] = true;
  new_ids_.push_back(id);
}

void Stage::FillNewTableRows() {
  if (new_ids_.empty()) return;
  backend_.Submit(/*repeats=*/false, [this] {
    const Model& model = *model_;
    backend_.GoldKeyTableRows(new_ids_, model.embedding, model.ln0, model.key_x0, key_table_);
    for (int index = extent_.gold_begin(); index < extent_.last_layer; ++index) {
      const GoldKvWeights& kv = std::any_cast<GoldWeights>(&model.layers[index - extent_.first_layer].time_mix)->kv;
      backend_.GoldMixTableRows(new_ids_, model.embedding, model.ln0, kv.mix_lora, kv.mix_down,
                                mix_tables_[index - extent_.gold_begin()]);
    }
  });
  new_ids_.clear();
}

// May run more than once a call: on the host it changes scratch memory alone.
void Stage::RunLayers(const StageInput& input, StageOutput* output) {
  // Outputs stay valid after this returns: the frame is left without anyone taking its memory until the next call.
  const Workspace::Frame frame(*workspace_);

  Tensor hidden = RunFinchLayers(input);
  ConstTensor compressed = input.compressed;
  if (extent_.has_boundary()) {
    output->compressed = Compress(hidden);
    compressed = output->compressed;
    hidden = GatherGoldRows(hidden);
  }
  if (extent_.has_gold()) {
    backend_.GoldAppend(ids_, compressed, spans_, sequences_->gold_cache());
    RunGoldLayers(&hidden);
  }
  if (extent_.has_head()) {
    output->logits = Logits(hidden);
  } else {
    output->hidden = hidden;
  }
}

Tensor Stage::Norm(ConstTensor x, const NormWeights& norm) {
  const Tensor out = workspace_->Take(x.shape, backend_.activation_dtype());
  backend_.GroupNorm(x, 1, norm, kLayerNormEpsilon, {}, out);
  return out;
}

Tensor Stage::RunFinchLayers(const StageInput& input) {
  if (extent_.receives_gold_hidden()) return input.hidden;
  const auto tokens = static_cast<int64_t>(ids_.size());
  const bool has_side = shape_.uses_side_rows();
  // The rows of all tokens and, behind them, the side rows.
  const Tensor all =
      extent_.is_first() ? workspace_->Take({has_side ? 2 * tokens : tokens, shape_.width}) : input.hidden;
  Tensor hidden = all, side = {};
  hidden.shape = {tokens, shape_.width};
  if (has_side) side = Tensor{static_cast<char*>(all.data) + hidden.bytes(), DType::kF32, hidden.shape};
  if (extent_.is_first()) {
    backend_.Embed(model_->embedding, ids_, hidden);
    backend_.GroupNorm(hidden, 1, model_->ln0, kLayerNormEpsilon, {}, hidden);
  }
  const LayerContext context{
      .backend = backend_, .workspace = *workspace_, .head_size = shape_.head_size, .spans = spans_, .side = side};
  for (int index = extent_.first_layer; index < extent_.finch_end(); ++index) {
    const Layer& layer = model_->layers[index - extent_.first_layer];
    const LayerState& state = sequences_->layer(index - extent_.first_layer);
    const Workspace::Frame frame(*workspace_);
    shape_.kinds[index]->forward(context, layer.time_mix, Norm(hidden, layer.ln1), state, hidden);
    shape_.channel_kinds[index]->forward(context, layer.channel_mix, Norm(hidden, layer.ln2), state, hidden);
  }
  return has_side && extent_.sends_side() ? all : hidden;
}

// The compressed rows c = W_a x, rounded to the cache's type once, here: so every stage stores the same bits.
Tensor Stage::Compress(ConstTensor hidden) {
  const Tensor c = workspace_->Take({hidden.dim(0), shape_.compressed});  // fp32
  backend_.MatMul(hidden, model_->compress, {}, c);
  const DType dtype = options_.cache_dtype;
  const Tensor narrow = workspace_->Take({c.dim(0), CompressedRowWidth(dtype, shape_.compressed)}, dtype);
  backend_.Convert(c, narrow);
  return narrow;
}

// Picks the rows that enter the GOLD layers, from this call's rows and the tail rows, and keeps the newest as tail
// rows.
Tensor Stage::GatherGoldRows(Tensor finch_rows) {
  const int64_t tail = TokenShiftReach(shape_.gold_layers());  // rows a sequence
  int64_t total = 0;
  for (const ChunkRows& rows : chunks_) total += rows.gold.count();
  Tensor gold_rows{};
  if (total > 0) {
    gold_rows = workspace_->Take({total, shape_.width});
    for (const bool from_tail : {true, false}) {
      copies_.clear();
      int64_t to = 0;
      for (const ChunkRows& rows : chunks_) {
        for (int64_t position = rows.gold.begin; position < rows.gold.end; ++position, ++to) {
          if ((position < rows.begin) != from_tail) continue;
          const int64_t from =
              from_tail ? rows.chunk->slot * tail + position % tail : rows.row_begin + position - rows.begin;
          copies_.push_back({from, to});
        }
      }
      backend_.CopyRows(from_tail ? sequences_->tail_rows() : finch_rows, copies_, gold_rows);
    }
  }
  copies_.clear();
  for (const ChunkRows& rows : chunks_) {
    for (int64_t position = std::max(rows.begin, rows.end - tail); position < rows.end; ++position) {
      copies_.push_back({rows.row_begin + position - rows.begin, rows.chunk->slot * tail + position % tail});
    }
  }
  backend_.CopyRows(finch_rows, copies_, sequences_->tail_rows());
  return gold_rows;
}

void Stage::RunGoldLayers(Tensor* hidden) {
  gold_tiers_->Derive(spans_);
  if (gold_spans_.empty()) return;
  int shift = 0;
  for (int index = extent_.gold_begin(); index < extent_.last_layer; ++index) {
    const Layer& layer = model_->layers[index - extent_.first_layer];
    const LayerState& state = sequences_->layer(index - extent_.first_layer);
    const Workspace::Frame frame(*workspace_);
    LayerContext context{backend_, *workspace_, shape_.head_size, {}, gold_tiers_.get(), index - extent_.gold_begin()};
    Tensor x = Norm(*hidden, layer.ln1);
    SpendRows(shift++, x, state.time_shift, hidden, &x);
    context.spans = gold_spans_.at(shift);
    shape_.kinds[index]->forward(context, layer.time_mix, x, state, *hidden);
    x = Norm(*hidden, layer.ln2);
    SpendRows(shift++, x, state.channel_shift, hidden, &x);
    context.spans = gold_spans_.at(shift);
    shape_.channel_kinds[index]->forward(context, layer.channel_mix, x, state, *hidden);
  }
}

// Before token shift `shift`: in spans that warm up, the first row of `normed` becomes the shift's state and leaves
// `hidden` and `x`.
void Stage::SpendRows(int shift, ConstTensor normed, Tensor state, Tensor* hidden, Tensor* x) {
  gold_spans_.SpentRows(shift, &copies_);
  if (copies_.empty()) return;
  backend_.CopyRows(normed, copies_, state);
  gold_spans_.RemainingRows(shift, &copies_);
  backend_.CopyRows(*hidden, copies_, *hidden);
  backend_.CopyRows(*x, copies_, *x);
  hidden->shape = x->shape = {gold_spans_.rows(shift + 1), shape_.width};
}

// The rows that want logits are the last ones of their spans.
Tensor Stage::Logits(ConstTensor hidden) {
  const bool gold = extent_.has_gold();
  const RowSpans spans = gold ? gold_spans_.at(gold_spans_.shifts()) : RowSpans(spans_);
  copies_.clear();
  size_t gold_span = 0;
  for (size_t i = 0; i < chunks_.size(); ++i) {
    const int64_t wanted = chunks_[i].chunk->logit_rows;
    if (wanted == 0) continue;
    const RowSpan& span = spans[gold ? gold_span++ : i];
    for (int64_t row = span.row_begin + span.row_count - wanted; row < span.row_begin + span.row_count; ++row) {
      copies_.push_back({row, static_cast<int64_t>(copies_.size())});
    }
  }
  if (copies_.empty()) return {};
  const Tensor rows = workspace_->Take({static_cast<int64_t>(copies_.size()), shape_.width});  // fp32: they are few
  backend_.CopyRows(hidden, copies_, rows);
  backend_.GroupNorm(rows, 1, model_->ln_out, kLayerNormEpsilon, {}, rows);
  const Tensor logits = workspace_->Take({rows.dim(0), shape_.vocab_size});
  backend_.MatMul(rows, model_->head, {}, logits);
  return logits;
}

}  // namespace goldfinch
