#include "worker/stage/stage.h"

#include <algorithm>
#include <any>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "worker/model/model_memory.h"

namespace goldfinch {
namespace {

constexpr float kLayerNormEpsilon = 1e-5f;
constexpr int64_t kPageTokens = kCachePageTokens;

}  // namespace

StageSettings MemorySettings(int first_layer, int last_layer, const StageOptions& options, int later_stages) {
  return {.first_layer = first_layer,
          .last_layer = last_layer,
          .later_stages = later_stages,
          .max_sequences = options.max_sequences,
          .cache_tokens = options.cache_tokens,
          .max_step_tokens = options.max_step_tokens,
          .max_logit_rows = options.max_logit_rows};
}

Stage::Stage(Backend& backend, std::shared_ptr<const Model> model, const StageOptions& options)
    : backend_(backend),
      model_(std::move(model)),
      options_(options),
      shape_(model_->shape),
      plan_(PlanStageMemory(MemoryOf(*model_, options.cache_dtype, backend),
                            MemorySettings(model_->first_layer, model_->last_layer, options))),
      sequences_(options.max_sequences),
      // Every sequence may leave its last page partly empty.
      pages_(static_cast<int32_t>((options.cache_tokens + kPageTokens - 1) / kPageTokens + options.max_sequences)),
      states_(model_->layers.size()) {}

absl::StatusOr<std::unique_ptr<Stage>> Stage::Create(Backend& backend, std::shared_ptr<const Model> model,
                                                     const StageOptions& options) {
  GF_CHECK_GE(options.max_sequences, 1);
  GF_CHECK_GE(options.max_step_tokens, 1);
  GF_CHECK_GE(options.max_logit_rows, 1);
  GF_CHECK_GE(options.cache_tokens, 1);
  const int64_t pages = options.cache_tokens / kPageTokens + options.max_sequences;
  if (pages >= std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("caches of ", options.cache_tokens, " positions, the limit is ",
                                                   std::numeric_limits<int32_t>::max() * kPageTokens));
  }
  GF_RETURN_IF_ERROR(CheckCacheDType(*model->checkpoint, model->shape, options.cache_dtype));
  std::unique_ptr<Stage> stage(new Stage(backend, std::move(model), options));
  GF_RETURN_IF_ERROR(stage->AllocateMemory());
  return stage;
}

const Stage::Sequence& Stage::OpenSequence(int slot) const {
  GF_CHECK(slot >= 0 && slot < options_.max_sequences && sequences_[slot].open) << "slot " << slot;
  return sequences_[slot];
}

absl::StatusOr<Tensor> Stage::AllocateTensor(const Shape& shape, DType dtype, const char* purpose) {
  Tensor tensor{nullptr, dtype, shape};
  GF_ASSIGN_OR_RETURN(std::shared_ptr<void> memory, backend_.Allocate(tensor.bytes(), purpose));
  reserved_bytes_ += tensor.bytes();
  tensor.data = memory.get();
  memory_.push_back(std::move(memory));
  return tensor;
}

absl::Status Stage::AllocateMemory() {
  const int64_t slots = options_.max_sequences, width = shape_.width, n = shape_.head_size;
  for (size_t i = 0; i < states_.size(); ++i) {
    const TimeMixKind& kind = *shape_.kinds[model_->first_layer + i];
    if (kind.has_shift) {
      GF_ASSIGN_OR_RETURN(states_[i].time_shift, AllocateTensor({slots, width}, DType::kF32, "shift states"));
    }
    if (shape_.channel_kinds[model_->first_layer + i]->has_shift) {
      GF_ASSIGN_OR_RETURN(states_[i].channel_shift, AllocateTensor({slots, width}, DType::kF32, "shift states"));
    }
    if (kind.has_wkv) {
      GF_ASSIGN_OR_RETURN(states_[i].wkv, AllocateTensor({slots, width / n, n, n}, DType::kF32, "WKV states"));
    }
    if (kind.has_kv_cache) {
      const Shape pages = {pages_.pages(), kPageTokens, width};
      GF_ASSIGN_OR_RETURN(states_[i].kv.keys, AllocateTensor(pages, options_.cache_dtype, "key cache"));
      GF_ASSIGN_OR_RETURN(states_[i].kv.values, AllocateTensor(pages, options_.cache_dtype, "value cache"));
    }
    if (const auto* gold = std::any_cast<GoldWeights>(&model_->layers[i].time_mix)) {
      GF_ASSIGN_OR_RETURN(states_[i].mix_table,
                          AllocateTensor({shape_.vocab_size, 2, gold->kv.mix_down.out()}, DType::kF32, "mix table"));
    }
  }
  if (model_->has_boundary()) {
    GF_ASSIGN_OR_RETURN(tail_, AllocateTensor({slots * 2 * shape_.gold_layers(), width}, DType::kF32, "tail rows"));
  }
  if (model_->has_gold()) {
    const DType id_type = shape_.vocab_size <= 65536 ? DType::kU16 : DType::kI32;
    GF_ASSIGN_OR_RETURN(gold_cache_.ids, AllocateTensor({pages_.pages(), kPageTokens}, id_type, "compressed cache"));
    const int64_t row_width = CompressedRowWidth(options_.cache_dtype, shape_.compressed);
    GF_ASSIGN_OR_RETURN(gold_cache_.c, AllocateTensor({pages_.pages(), kPageTokens, row_width}, options_.cache_dtype,
                                                      "compressed cache"));
    GF_ASSIGN_OR_RETURN(key_table_,
                        AllocateTensor({shape_.vocab_size, width}, backend_.activation_dtype(), "key table"));
    tables_have_.resize(shape_.vocab_size);
    MakeGoldTiers();
  }
  GF_ASSIGN_OR_RETURN(std::shared_ptr<void> workspace, backend_.Allocate(plan_.activations, "activations"));
  workspace_ = std::make_unique<Workspace>(std::move(workspace), plan_.activations);
  reserved_bytes_ += plan_.activations;

  // What Forward fills: sized once, so that it allocates nothing.
  for (Sequence& sequence : sequences_) sequence.pages.reserve(PagesFor(options_.max_sequence_tokens));
  plans_.reserve(slots);
  ids_.reserve(options_.max_step_tokens);
  new_ids_.reserve(options_.max_step_tokens);
  spans_.reserve(slots);
  gold_spans_.reserve(slots);
  gold_warm_up_.reserve(slots);
  copies_.reserve(options_.max_step_tokens + slots * 2 * shape_.gold_layers());
  return absl::OkStatus();
}

void Stage::MakeGoldTiers() {
  GoldStage gold{.shared = {model_->embedding, model_->ln0, model_->key_compressed, key_table_},
                 .layers = {},
                 .cache = gold_cache_,
                 .head_size = shape_.head_size,
                 .max_sequences = options_.max_sequences,
                 .max_sequence_tokens = options_.max_sequence_tokens,
                 .max_rows = GoldRowsMax(),
                 .most = options_.gold_tier};
  for (size_t i = 0; i < states_.size(); ++i) {
    const auto* weights = std::any_cast<GoldWeights>(&model_->layers[i].time_mix);
    if (weights == nullptr) continue;
    gold.layers.push_back(weights->kv);  // shared by stages, each of which has a table of its own
    gold.layers.back().mix_table = states_[i].mix_table;
  }
  gold_tiers_ = std::make_unique<GoldTiers>(backend_, std::move(gold));
}

absl::Status Stage::ReserveKept(int64_t bytes) {
  if (gold_tiers_ == nullptr) return absl::OkStatus();
  return gold_tiers_->Reserve(bytes, pages_.pages() * kPageTokens);
}

bool Stage::keeps_pages() const {
  if (model_->has_gold()) return true;
  return std::any_of(states_.begin(), states_.end(),
                     [](const LayerState& state) { return static_cast<bool>(state.kv.keys); });
}

int64_t Stage::PagesFor(int64_t tokens) const { return keeps_pages() ? (tokens + kPageTokens - 1) / kPageTokens : 0; }

int64_t Stage::CacheBytes() const {
  int64_t page_bytes = 0;
  for (const LayerState& state : states_) {
    if (state.kv.keys) page_bytes += Slice(state.kv.keys, 0).bytes() + Slice(state.kv.values, 0).bytes();
  }
  if (model_->has_gold()) page_bytes += Slice(gold_cache_.ids, 0).bytes() + Slice(gold_cache_.c, 0).bytes();
  return page_bytes * (pages_.pages() - pages_.free_pages());
}

int64_t Stage::CacheTokens() const { return kPageTokens * (pages_.pages() - pages_.free_pages()); }

absl::StatusOr<int> Stage::Open() {
  const auto free = std::find_if(sequences_.begin(), sequences_.end(), [](const Sequence& s) { return !s.open; });
  if (free == sequences_.end()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("all ", sequences_.size(), " sequence slots (--max-num-seqs) are taken"));
  }
  const int slot = static_cast<int>(free - sequences_.begin());
  free->open = true;
  free->position = 0;
  free->gold_position = 0;
  if (gold_tiers_) gold_tiers_->Open(slot);
  for (size_t i = 0; i < states_.size(); ++i) {
    const LayerState& state = states_[i];
    if (state.time_shift) backend_.Zero(Slice(state.time_shift, slot));
    if (state.channel_shift) backend_.Zero(Slice(state.channel_shift, slot));
    if (!state.wkv) continue;
    if (const ConstTensor& initial = model_->layers[i].initial_wkv) {
      backend_.Copy(initial, Slice(state.wkv, slot));
    } else {
      backend_.Zero(Slice(state.wkv, slot));
    }
  }
  return slot;
}

absl::StatusOr<int> Stage::Fork(int slot) {
  const int64_t partial = OpenSequence(slot).position % kPageTokens;
  if (keeps_pages() && partial != 0 && pages_.free_pages() == 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the caches are full: ", pages_.pages() * kPageTokens, " positions"));
  }
  GF_ASSIGN_OR_RETURN(const int copy, Open());
  const Sequence& from = sequences_[slot];
  Sequence& to = sequences_[copy];
  to.position = from.position;
  to.gold_position = from.gold_position;
  for (int32_t page : from.pages) {
    pages_.Share(page);
    to.pages.push_back(page);
  }
  const auto copy_part = [this](const Tensor& tensor, int64_t source, int64_t target) {
    if (tensor) backend_.Copy(Slice(tensor, source), Slice(tensor, target));
  };
  // Both sequences go on writing into the last page, so each needs its own.
  if (!to.pages.empty() && partial != 0) {
    const int32_t shared = to.pages.back(), own = pages_.Take();
    pages_.Release(shared);
    to.pages.back() = own;
    copy_part(gold_cache_.ids, shared, own);
    copy_part(gold_cache_.c, shared, own);
    for (const LayerState& state : states_) {
      copy_part(state.kv.keys, shared, own);
      copy_part(state.kv.values, shared, own);
    }
  }
  for (const LayerState& state : states_) {
    copy_part(state.time_shift, slot, copy);
    copy_part(state.channel_shift, slot, copy);
    copy_part(state.wkv, slot, copy);
  }
  if (gold_tiers_) gold_tiers_->Fork(slot, copy);
  const int64_t ring = 2 * shape_.gold_layers();
  if (tail_) {
    for (int64_t i = 0; i < ring; ++i) copy_part(tail_, slot * ring + i, copy * ring + i);
  }
  return copy;
}

void Stage::Close(int slot) {
  GF_CHECK(OpenSequence(slot).open);
  Sequence& sequence = sequences_[slot];
  sequence.open = false;
  if (gold_tiers_) gold_tiers_->Close(slot);
  for (int32_t page : sequence.pages) pages_.Release(page);
  sequence.pages.clear();
}

absl::Status Stage::CheckChunks(absl::Span<const Chunk> chunks) const {
  int64_t tokens = 0, logit_rows = 0, new_pages = 0;
  for (const Chunk& chunk : chunks) {
    const auto count = static_cast<int64_t>(chunk.ids.size());
    const Sequence& sequence = OpenSequence(chunk.slot);
    for (const Chunk* other = chunks.data(); other != &chunk; ++other) GF_CHECK_NE(other->slot, chunk.slot);
    GF_CHECK_GE(count, 1);
    GF_CHECK(chunk.logit_rows >= 0 && chunk.logit_rows <= count);
    for (int32_t id : chunk.ids) {
      if (id < 0 || id >= shape_.vocab_size) {
        return absl::InvalidArgumentError(
            absl::StrCat("token id ", id, " is outside the model's vocabulary of ", shape_.vocab_size));
      }
    }
    tokens += count;
    logit_rows += chunk.logit_rows;
    if (sequence.position + count > options_.max_sequence_tokens) {
      return absl::InvalidArgumentError(absl::StrCat("a sequence of ", sequence.position + count,
                                                     " tokens, the limit is ", options_.max_sequence_tokens));
    }
    new_pages += PagesFor(sequence.position + count) - static_cast<int64_t>(sequence.pages.size());
  }
  if (tokens > options_.max_step_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("a step of ", tokens, " tokens, the limit is ", options_.max_step_tokens));
  }
  if (logit_rows > options_.max_logit_rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("logits of ", logit_rows, " tokens, the limit is ", options_.max_logit_rows));
  }
  if (new_pages > pages_.free_pages()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the caches are full: ", pages_.pages() * kPageTokens, " positions"));
  }
  return absl::OkStatus();
}

GoldRows Stage::GoldRowsOf(const Chunk& chunk) const {
  const Sequence& sequence = OpenSequence(chunk.slot);
  return PlanGoldRows(sequence.gold_position, sequence.position + static_cast<int64_t>(chunk.ids.size()),
                      chunk.logit_rows, shape_.gold_layers());
}

StageRows Stage::InputRows(absl::Span<const Chunk> chunks) const {
  if (model_->first_layer == 0) return {};
  const bool gold_only = model_->first_layer >= shape_.finch_layers();
  StageRows rows;
  for (const Chunk& chunk : chunks) {
    const auto tokens = static_cast<int64_t>(chunk.ids.size());
    if (!gold_only) {
      rows.hidden += tokens;
      continue;
    }
    const GoldRows gold = GoldRowsOf(chunk);
    rows.hidden += gold.count() - (gold.warm_up ? SpentBefore() : 0);
    rows.compressed += tokens;
  }
  return rows;
}

void Stage::PlanChunks(absl::Span<const Chunk> chunks) {
  plans_.clear();
  ids_.clear();
  spans_.clear();
  for (const Chunk& chunk : chunks) {
    Sequence& sequence = sequences_[chunk.slot];
    const auto row_begin = static_cast<int64_t>(ids_.size()), count = static_cast<int64_t>(chunk.ids.size());
    const int64_t begin = sequence.position, end = begin + count;
    while (static_cast<int64_t>(sequence.pages.size()) < PagesFor(end)) sequence.pages.push_back(pages_.Take());
    plans_.push_back({&chunk, row_begin, begin, end, {}});
    if (shape_.gold_layers() > 0) {
      GoldRows& gold = plans_.back().gold;
      gold = GoldRowsOf(chunk);
      if (gold.count() > 0) sequence.gold_position = end;
    }
    ids_.insert(ids_.end(), chunk.ids.begin(), chunk.ids.end());
    spans_.push_back(
        {chunk.slot, static_cast<int32_t>(row_begin), static_cast<int32_t>(count), begin, sequence.pages.data()});
    sequence.position = end;
  }
}

absl::Status Stage::Forward(absl::Span<const Chunk> chunks, const StageInput& input, StageOutput* output) {
  GF_RETURN_IF_ERROR(CheckChunks(chunks));
  *output = {};
  if (chunks.empty()) return absl::OkStatus();
  const StageRows rows = InputRows(chunks);
  GF_CHECK_EQ(input.hidden ? input.hidden.dim(0) : 0, rows.hidden) << "hidden rows";
  GF_CHECK_EQ(input.compressed ? input.compressed.dim(0) : 0, rows.compressed) << "compressed rows";
  PlanChunks(chunks);
  if (model_->has_gold()) {
    FillTables();
    PlanGoldSpans();
    gold_tiers_->Prepare(gold_spans_);
  }
  const bool decodes =
      std::all_of(chunks.begin(), chunks.end(), [](const Chunk& chunk) { return chunk.ids.size() == 1; });
  backend_.Submit(/*repeats=*/decodes, [&] { RunLayers(input, output); });
  return absl::OkStatus();
}

// May run more than once a call: what it changes on the host is the same each time.
void Stage::RunLayers(const StageInput& input, StageOutput* output) {
  // Outputs stay valid after this returns: the frame is left without anyone taking its memory until the next call.
  const Workspace::Frame frame(*workspace_);

  Tensor hidden = RunFinchLayers(input);
  ConstTensor compressed = input.compressed;
  if (model_->has_boundary()) {
    const Tensor c = workspace_->Take({hidden.dim(0), shape_.compressed});  // fp32
    backend_.MatMul(hidden, model_->compress, {}, c);
    // Rounded once, here: every stage stores the same bits.
    const DType dtype = options_.cache_dtype;
    const Tensor narrow = workspace_->Take({c.dim(0), CompressedRowWidth(dtype, shape_.compressed)}, dtype);
    backend_.Convert(c, narrow);
    output->compressed = narrow;
    compressed = narrow;
    hidden = GatherGoldRows(hidden);
  }
  if (model_->has_gold()) {
    backend_.GoldAppend(ids_, compressed, spans_, gold_cache_);
    RunGoldLayers(&hidden);
  }
  if (model_->is_last()) {
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
  Tensor hidden = input.hidden;
  if (model_->first_layer == 0) {
    hidden = workspace_->Take({static_cast<int64_t>(ids_.size()), shape_.width});
    backend_.Embed(model_->embedding, ids_, hidden);
    backend_.GroupNorm(hidden, 1, model_->ln0, kLayerNormEpsilon, {}, hidden);
  }
  const LayerContext context{backend_, *workspace_, shape_.head_size, spans_};
  const int last = std::min(model_->last_layer, shape_.finch_layers());
  for (int index = model_->first_layer; index < last; ++index) {
    const Layer& layer = model_->layers[index - model_->first_layer];
    const LayerState& state = states_[index - model_->first_layer];
    const Workspace::Frame frame(*workspace_);
    shape_.kinds[index]->forward(context, layer.time_mix, Norm(hidden, layer.ln1), state, hidden);
    shape_.channel_kinds[index]->forward(context, layer.channel_mix, Norm(hidden, layer.ln2), state, hidden);
  }
  return hidden;
}

// Picks the rows that enter the GOLD layers, from this call's and the kept ones, and keeps the newest.
Tensor Stage::GatherGoldRows(Tensor finch_rows) {
  const int64_t ring = 2 * shape_.gold_layers();
  int64_t total = 0;
  for (const Plan& plan : plans_) total += plan.gold.count();
  Tensor rows{};
  if (total > 0) {
    rows = workspace_->Take({total, shape_.width});
    for (const bool from_tail : {true, false}) {
      copies_.clear();
      int64_t to = 0;
      for (const Plan& plan : plans_) {
        for (int64_t position = plan.gold.begin; position < plan.gold.end; ++position, ++to) {
          if ((position < plan.begin) != from_tail) continue;
          const int64_t from =
              from_tail ? plan.chunk->slot * ring + position % ring : plan.row_begin + position - plan.begin;
          copies_.push_back({from, to});
        }
      }
      backend_.CopyRows(from_tail ? tail_ : finch_rows, copies_, rows);
    }
  }
  copies_.clear();
  for (const Plan& plan : plans_) {
    for (int64_t position = std::max(plan.begin, plan.end - ring); position < plan.end; ++position) {
      copies_.push_back({plan.row_begin + position - plan.begin, plan.chunk->slot * ring + position % ring});
    }
  }
  backend_.CopyRows(finch_rows, copies_, tail_);
  return rows;
}

// The rows of ids that were never in the cache before. In a step of their own: that of the layers then stays the same.
void Stage::FillTables() {
  new_ids_.clear();
  for (int32_t id : ids_) {
    if (tables_have_[id]) continue;
    tables_have_[id] = true;
    new_ids_.push_back(id);
  }
  if (new_ids_.empty()) return;
  backend_.Submit(/*repeats=*/false, [this] {
    const Model& model = *model_;
    backend_.GoldKeyTableRows(new_ids_, model.embedding, model.ln0, model.key_x0, key_table_);
    for (size_t i = 0; i < states_.size(); ++i) {
      if (!states_[i].mix_table) continue;
      const GoldKvWeights& kv = std::any_cast<GoldWeights>(&model.layers[i].time_mix)->kv;
      backend_.GoldMixTableRows(new_ids_, model.embedding, model.ln0, kv.mix_lora, kv.mix_down, states_[i].mix_table);
    }
  });
}

// In spans that warm up, the first row of `normed` becomes the shift state and leaves `hidden` and `normed`.
void Stage::SpendFirstRows(ConstTensor normed, Tensor LayerState::*shift, const LayerState& state, Tensor* hidden,
                           Tensor* x) {
  copies_.clear();
  for (size_t i = 0; i < gold_spans_.size(); ++i) {
    if (gold_warm_up_[i]) copies_.push_back({gold_spans_[i].row_begin, gold_spans_[i].slot});
  }
  if (copies_.empty()) return;
  backend_.CopyRows(normed, copies_, state.*shift);
  copies_.clear();
  int32_t to = 0;
  for (size_t i = 0; i < gold_spans_.size(); ++i) {
    RowSpan& span = gold_spans_[i];
    const int32_t spent = gold_warm_up_[i] ? 1 : 0;
    for (int32_t row = spent; row < span.row_count; ++row) copies_.push_back({span.row_begin + row, to + row - spent});
    span.row_begin = to;
    span.row_count -= spent;
    span.position += spent;
    to += span.row_count;
  }
  backend_.CopyRows(*hidden, copies_, *hidden);
  backend_.CopyRows(*x, copies_, *x);
  hidden->shape = {to, shape_.width};
  x->shape = {to, shape_.width};
}

void Stage::PlanGoldSpans() {
  gold_spans_.clear();
  gold_warm_up_.clear();
  int32_t row = 0;
  for (size_t i = 0; i < plans_.size(); ++i) {
    const GoldRows& gold = plans_[i].gold;
    if (gold.count() == 0) continue;
    const int64_t spent = gold.warm_up ? SpentBefore() : 0;
    const auto count = static_cast<int32_t>(gold.count() - spent);
    gold_spans_.push_back({plans_[i].chunk->slot, row, count, gold.begin + spent, spans_[i].pages});
    gold_warm_up_.push_back(gold.warm_up);
    row += count;
  }
}

void Stage::RunGoldLayers(Tensor* hidden) {
  PlanGoldSpans();  // anew: layers that warm up take rows away
  if (gold_spans_.empty()) return;
  gold_tiers_->Derive(gold_spans_);
  const int first = std::max(model_->first_layer, shape_.finch_layers());
  for (int index = first; index < model_->last_layer; ++index) {
    const Layer& layer = model_->layers[index - model_->first_layer];
    const LayerState& state = states_[index - model_->first_layer];
    const Workspace::Frame frame(*workspace_);
    Tensor x = Norm(*hidden, layer.ln1);
    SpendFirstRows(x, &LayerState::time_shift, state, hidden, &x);
    const LayerContext context{backend_, *workspace_, shape_.head_size, gold_spans_, gold_tiers_.get(), index - first};
    shape_.kinds[index]->forward(context, layer.time_mix, x, state, *hidden);
    x = Norm(*hidden, layer.ln2);
    SpendFirstRows(x, &LayerState::channel_shift, state, hidden, &x);
    shape_.channel_kinds[index]->forward(context, layer.channel_mix, x, state, *hidden);
  }
}

Tensor Stage::Logits(ConstTensor hidden) {
  const bool gold = model_->has_gold();
  copies_.clear();
  size_t gold_span = 0;
  for (size_t i = 0; i < plans_.size(); ++i) {
    const int64_t wanted = plans_[i].chunk->logit_rows;
    if (wanted == 0) continue;
    const RowSpan& span = gold ? gold_spans_[gold_span++] : spans_[i];
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
