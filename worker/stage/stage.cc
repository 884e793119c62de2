#include "worker/stage/stage.h"

#include <algorithm>
#include <any>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "worker/model/model_memory.h"

namespace goldfinch {

StageSettings MemorySettings(int first_layer, int last_layer, const StageOptions& options, int later_stages) {
  return {.first_layer = first_layer,
          .last_layer = last_layer,
          .later_stages = later_stages,
          .max_sequences = options.max_sequences,
          .cache_tokens = options.cache_tokens,
          .max_step_tokens = options.max_step_tokens,
          .max_logit_rows = options.max_logit_rows};
}

// ---- Memory

Stage::Stage(Backend& backend, std::shared_ptr<const Model> model, const StageOptions& options)
    : backend_(backend),
      model_(std::move(model)),
      options_(options),
      shape_(model_->shape),
      extent_(model_->extent()),
      memory_plan_(PlanStageMemory(MemoryOf(*model_, options.cache_dtype, backend),
                                   MemorySettings(model_->first_layer, model_->last_layer, options))),
      saved_parts_(StageSavedParts(shape_, options.cache_dtype, extent_)),
      gold_spans_(extent_, options.max_sequences) {}

Stage::~Stage() {
  if (last_save_ != nullptr) last_save_->Wait();
}

absl::StatusOr<std::unique_ptr<Stage>> Stage::Create(Backend& backend, std::shared_ptr<const Model> model,
                                                     const StageOptions& options) {
  GF_CHECK_GE(options.max_sequences, 1);
  GF_CHECK_GE(options.max_step_tokens, 1);
  GF_CHECK_GE(options.max_logit_rows, 1);
  GF_RETURN_IF_ERROR(CheckCacheDType(*model->checkpoint, model->shape, options.cache_dtype));
  std::unique_ptr<Stage> stage(new Stage(backend, std::move(model), options));
  GF_RETURN_IF_ERROR(stage->AllocateMemory());
  return stage;
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
  GF_ASSIGN_OR_RETURN(sequences_, SequenceStates::Create(backend_, *model_,
                                                         {.max_sequences = options_.max_sequences,
                                                          .max_sequence_tokens = options_.max_sequence_tokens,
                                                          .cache_tokens = options_.cache_tokens,
                                                          .cache_dtype = options_.cache_dtype}));
  if (extent_.has_gold()) {
    GF_RETURN_IF_ERROR(AllocateTables());
    MakeGoldTiers();
  }
  const int64_t workspace_bytes = memory_plan_.activations;
  GF_ASSIGN_OR_RETURN(std::shared_ptr<void> workspace, backend_.Allocate(workspace_bytes, "activations"));
  workspace_ = std::make_unique<Workspace>(std::move(workspace), workspace_bytes);
  reserved_bytes_ += workspace_bytes;

  // What Forward fills: sized once, so that it allocates nothing.
  chunks_.reserve(options_.max_sequences);
  ids_.reserve(options_.max_step_tokens);
  new_ids_.reserve(options_.max_step_tokens);
  spans_.reserve(options_.max_sequences);
  copies_.reserve(StepRowsMax(options_.max_step_tokens, options_.max_sequences, shape_.gold_layers()));
  return absl::OkStatus();
}

absl::Status Stage::AllocateTables() {
  for (int index = extent_.gold_begin(); index < extent_.last_layer; ++index) {
    const auto& gold = *std::any_cast<GoldWeights>(&model_->layers[index - extent_.first_layer].time_mix);
    const Shape table_shape = {shape_.vocab_size, 2, gold.kv.mix_down.out()};
    GF_ASSIGN_OR_RETURN(const Tensor table, AllocateTensor(table_shape, DType::kF32, "mix table"));
    mix_tables_.push_back(table);
  }
  GF_ASSIGN_OR_RETURN(key_table_,
                      AllocateTensor({shape_.vocab_size, shape_.width}, backend_.activation_dtype(), "key table"));
  tables_have_.resize(shape_.vocab_size);
  return absl::OkStatus();
}

void Stage::MakeGoldTiers() {
  GoldStage gold{.shared = {model_->embedding, model_->ln0, model_->key_compressed, key_table_},
                 .layers = {},
                 .cache = sequences_->gold_cache(),
                 .head_size = shape_.head_size,
                 .max_sequences = options_.max_sequences,
                 .max_sequence_tokens = options_.max_sequence_tokens,
                 .max_rows = StepRowsMax(options_.max_step_tokens, options_.max_sequences, shape_.gold_layers()),
                 .most = options_.gold_tier};
  for (int index = extent_.gold_begin(); index < extent_.last_layer; ++index) {
    // The weights are shared by stages, each of which has a table of its own.
    gold.layers.push_back(std::any_cast<GoldWeights>(&model_->layers[index - extent_.first_layer].time_mix)->kv);
    gold.layers.back().mix_table = mix_tables_[index - extent_.gold_begin()];
  }
  gold_tiers_ = std::make_unique<GoldTiers>(backend_, std::move(gold));
}

int64_t Stage::KeptBytesOf(int64_t bytes) const {
  if (gold_tiers_ == nullptr) return 0;
  const int64_t block_bytes = gold_tiers_->block_bytes(), positions = sequences_->pages() * kCachePageTokens;
  return std::min(bytes / block_bytes, gold_tiers_->BlocksMax(positions)) * block_bytes;
}

absl::Status Stage::ReserveKept(int64_t bytes, bool borrow) {
  if (gold_tiers_ == nullptr) return absl::OkStatus();
  const int64_t block_bytes = gold_tiers_->block_bytes();
  int64_t own_blocks = KeptBytesOf(bytes) / block_bytes;
  if (borrow) {
    GF_ASSIGN_OR_RETURN(const int64_t own_bytes, sequences_->Lend(block_bytes, own_blocks, gold_tiers_->BlocksMax()));
    gold_tiers_->SetMemory(sequences_->gold_cache().c.data, sequences_->pool(), own_bytes, sequences_->gold_cache());
    return absl::OkStatus();
  }
  // A half, a quarter and so on where the back end does not have so much, as the compressed tier needs none.
  std::shared_ptr<void> memory;
  for (; own_blocks > 0; own_blocks /= 2) {
    absl::StatusOr<std::shared_ptr<void>> taken = backend_.Allocate(own_blocks * block_bytes, "kept rows");
    if (taken.ok()) memory = *std::move(taken);
    if (memory != nullptr) break;
    if (taken.status().code() != absl::StatusCode::kResourceExhausted) return taken.status();
  }
  own_kept_.SetBlocks({.blocks = static_cast<int32_t>(std::max<int64_t>(own_blocks, 0)), .block_bytes = block_bytes});
  gold_tiers_->SetMemory(memory.get(), own_kept_, own_kept_.blocks() * block_bytes, sequences_->gold_cache());
  memory_.push_back(std::move(memory));
  return absl::OkStatus();
}

int64_t Stage::ReservedBytes() const {
  return reserved_bytes_ + sequences_->reserved_bytes() + (gold_tiers_ ? gold_tiers_->reserved_bytes() : 0);
}

// ---- Sequences

absl::StatusOr<int> Stage::Open() {
  GF_ASSIGN_OR_RETURN(const int slot, sequences_->Open());
  if (gold_tiers_) gold_tiers_->Open(slot);
  return slot;
}

absl::StatusOr<int> Stage::Fork(int slot) {
  const int64_t pages = sequences_->PagesToFork(slot);
  if (gold_tiers_ && pages <= sequences_->free_pages()) gold_tiers_->MakeRoom(pages);
  GF_ASSIGN_OR_RETURN(const int copy, sequences_->Fork(slot));
  if (gold_tiers_) {
    gold_tiers_->Open(copy);
    gold_tiers_->Fork(slot, copy, position(slot));
  }
  return copy;
}

void Stage::Close(int slot) {
  FinishSaves();  // the rows of its pages may be on their way
  sequences_->Close(slot);
  if (gold_tiers_) gold_tiers_->Close(slot);
}

// ---- What a call means

absl::Status Stage::CheckChunks(absl::Span<const Chunk> chunks) const {
  int64_t tokens = 0, logit_rows = 0, new_pages = 0;
  for (const Chunk& chunk : chunks) {
    const auto count = static_cast<int64_t>(chunk.ids.size());
    const int64_t end = position(chunk.slot) + count;
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
    if (end > options_.max_sequence_tokens) {
      return absl::InvalidArgumentError(
          absl::StrCat("a sequence of ", end, " tokens, the limit is ", options_.max_sequence_tokens));
    }
    new_pages += sequences_->MissingPages(chunk.slot, count);
  }
  if (tokens > options_.max_step_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("a step of ", tokens, " tokens, the limit is ", options_.max_step_tokens));
  }
  if (logit_rows > options_.max_logit_rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("logits of ", logit_rows, " tokens, the limit is ", options_.max_logit_rows));
  }
  if (new_pages > sequences_->free_pages()) return sequences_->FullError();
  return absl::OkStatus();
}

// Pages have the right of way.
void Stage::MakeRoom(absl::Span<const Chunk> chunks) {
  if (gold_tiers_ == nullptr) return;
  int64_t pages = 0;
  for (const Chunk& chunk : chunks) {
    pages += sequences_->MissingPages(chunk.slot, static_cast<int64_t>(chunk.ids.size()));
  }
  gold_tiers_->MakeRoom(pages);
}

GoldInputRows Stage::GoldInputRowsOf(const Chunk& chunk) const {
  if (shape_.gold_layers() == 0) return {};
  const SequenceStates::Sequence& sequence = sequences_->at(chunk.slot);
  return ApplyPrefillRule(sequence.gold_position, sequence.position + static_cast<int64_t>(chunk.ids.size()),
                          chunk.logit_rows, shape_.gold_layers());
}

StageRows Stage::InputRows(absl::Span<const Chunk> chunks) const {
  StageRows rows;
  for (const Chunk& chunk : chunks) {
    const auto tokens = static_cast<int64_t>(chunk.ids.size());
    if (extent_.receives_gold_hidden()) {
      rows.hidden += gold_spans_.EntryRows(GoldInputRowsOf(chunk));
    } else if (extent_.receives_hidden()) {
      rows.hidden += tokens;
      if (shape_.uses_side_rows() && extent_.receives_side()) rows.hidden += tokens;
    }
    if (extent_.receives_compressed()) rows.compressed += tokens;
  }
  return rows;
}

void Stage::PlanChunks(absl::Span<const Chunk> chunks) {
  chunks_.clear();
  ids_.clear();
  spans_.clear();
  gold_spans_.Clear();
  for (const Chunk& chunk : chunks) {
    const auto row_begin = static_cast<int64_t>(ids_.size()), count = static_cast<int64_t>(chunk.ids.size());
    const GoldInputRows gold = GoldInputRowsOf(chunk);
    const SequenceStates::Sequence& sequence = sequences_->at(chunk.slot);
    const int64_t begin = sequence.position;
    sequences_->Advance(chunk.slot, count);
    if (gold.count() > 0) sequences_->AdvanceGold(chunk.slot);
    chunks_.push_back({&chunk, row_begin, begin, begin + count, gold});
    ids_.insert(ids_.end(), chunk.ids.begin(), chunk.ids.end());
    spans_.push_back(
        {chunk.slot, static_cast<int32_t>(row_begin), static_cast<int32_t>(count), begin, sequence.pages.data()});
    if (extent_.has_gold()) gold_spans_.Add(chunk.slot, gold, sequence.pages.data());
  }
  gold_spans_.Finish();
}

absl::Status Stage::Forward(absl::Span<const Chunk> chunks, const StageInput& input, StageOutput* output) {
  GF_RETURN_IF_ERROR(CheckChunks(chunks));
  *output = {};
  if (chunks.empty()) return absl::OkStatus();
  const StageRows rows = InputRows(chunks);
  GF_CHECK_EQ(input.hidden ? input.hidden.dim(0) : 0, rows.hidden) << "hidden rows";
  GF_CHECK_EQ(input.compressed ? input.compressed.dim(0) : 0, rows.compressed) << "compressed rows";
  MakeRoom(chunks);
  PlanChunks(chunks);
  if (extent_.has_gold()) {
    FillTables();
    gold_tiers_->Prepare(spans_, gold_spans_.at(0));
  }
  const bool decodes =
      std::all_of(chunks.begin(), chunks.end(), [](const Chunk& chunk) { return chunk.ids.size() == 1; });
  backend_.Submit(/*repeats=*/decodes, [&] { RunLayers(input, output); });
  return absl::OkStatus();
}

}  // namespace goldfinch
