// One stage of the pipeline: a range of layers, the states and caches of its sequences, and the forward pass over
// ragged batches. A single machine runs one stage with all layers.
#ifndef GOLDFINCH_WORKER_STAGE_STAGE_H_
#define GOLDFINCH_WORKER_STAGE_STAGE_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/stage_memory.h"
#include "kernels/backend.h"
#include "worker/model/layers.h"
#include "worker/model/model.h"
#include "worker/model/workspace.h"
#include "worker/stage/gold_tiers.h"
#include "worker/stage/page_pool.h"
#include "worker/stage/prefill_rule.h"

namespace goldfinch {

struct StageOptions {
  int max_sequences = 1;                  // state slots
  int64_t max_sequence_tokens = 1 << 20;  // of one sequence: its page table is reserved
  int64_t cache_tokens = 1 << 20;         // positions that the caches hold, over all sequences
  int64_t max_step_tokens = 512;          // in one Forward, over all chunks
  int64_t max_logit_rows = 512;           // that may want logits in one Forward
  DType cache_dtype = DType::kBf16;       // kInt8: of the compressed cache; the model keeps no keys and values
  GoldTier gold_tier = GoldTier::kFull;   // the most that GOLD layers keep of a sequence: see Stage::ReserveKept

  bool operator==(const StageOptions&) const = default;
};
StageSettings MemorySettings(int first_layer, int last_layer, const StageOptions& options, int later_stages = 0);

// The next tokens of one sequence: a part of its prompt, or one token that was drawn.
struct Chunk {
  int slot = 0;
  absl::Span<const int32_t> ids;  // at least one
  int64_t logit_rows = 0;         // how many of the last ids want logits: 0 none, 1 to sample, all to score
};

// What the stage before sends for a Forward, in the back end's memory; a first stage gets none.
struct StageInput {
  Tensor hidden;  // [rows, D] fp32; overwritten. Rows of every token; to GOLD layers, the rows of the pre-fill rule.
  // [tokens, CompressedRowWidth of D/16] of cache_dtype; only if this stage's first layer is GOLD
  ConstTensor compressed;
};

// How many rows of each.
struct StageRows {
  int64_t hidden = 0;
  int64_t compressed = 0;
  bool operator==(const StageRows&) const = default;
};

// What it leaves: memory of the stage and its back end, valid until its next Forward.
struct StageOutput {
  Tensor hidden;      // as StageInput::hidden, for the next stage; not set by the last stage
  Tensor compressed;  // as StageInput::compressed, for every later stage; only from that of the last Finch-side layer
  Tensor logits;      // [logit rows, vocab] fp32, chunk after chunk; only from the last stage
};

// One thread at a time.
class Stage {
 public:
  // `backend` must outlive the stage. RESOURCE_EXHAUSTED if memory cannot be had, INVALID_ARGUMENT as CheckCacheDType.
  static absl::StatusOr<std::unique_ptr<Stage>> Create(Backend& backend, std::shared_ptr<const Model> model,
                                                       const StageOptions& options);

  // Memory for what GOLD layers keep beside the compressed cache, of what is left when all else is reserved: none until
  // this is called, once, before any sequence is open. No more is taken than the sequences can come to use, none by a
  // stage without GOLD layers, and less where the device has less by then: gold_tiers()->reserved_bytes() tells.
  absl::Status ReserveKept(int64_t bytes);

  // A free slot with the state of an empty sequence. RESOURCE_EXHAUSTED when all --max-num-seqs are taken.
  absl::StatusOr<int> Open();
  // A new sequence that is at the same point as `slot`; full cache pages are shared.
  absl::StatusOr<int> Fork(int slot);
  void Close(int slot);
  // Tokens that the sequence has taken.
  int64_t position(int slot) const { return OpenSequence(slot).position; }

  // What StageInput must have for a Forward of these chunks, so that it can be received. Chunks as for Forward.
  StageRows InputRows(absl::Span<const Chunk> chunks) const;

  // Queues the chunks, at most one a slot, through the stage's layers; who needs values on the host waits for them, and
  // asks the back end for its status then. On an error nothing has changed:
  // INVALID_ARGUMENT for ids outside the vocabulary or more tokens or logit rows than the options allow, of the call
  // or of a sequence,
  // RESOURCE_EXHAUSTED when the caches are full.
  absl::Status Forward(absl::Span<const Chunk> chunks, const StageInput& input, StageOutput* output);

  const Model& model() const { return *model_; }
  const StageOptions& options() const { return options_; }
  // Pages in use, in bytes and in positions; a page that forked sequences share counts once.
  int64_t CacheBytes() const;
  int64_t CacheTokens() const;
  // What the GOLD layers keep; null without such layers.
  const GoldTiers* gold_tiers() const { return gold_tiers_.get(); }
  // What the stage and its back end take of the back end's memory, but for kept rows; a pipeline's other stages are not
  // counted on.
  const StageMemory& memory() const { return plan_; }
  // What was taken of it: states, caches, tables, activations, and by ReserveKept. Pages are committed as they are
  // used.
  int64_t ReservedBytes() const { return reserved_bytes_ + (gold_tiers_ ? gold_tiers_->reserved_bytes() : 0); }

 private:
  struct Sequence {
    bool open = false;
    int64_t position = 0;
    int64_t gold_position = 0;  // the GOLD layers have run all positions before it
    std::vector<int32_t> pages;
  };
  // What one chunk means for this call.
  struct Plan {
    const Chunk* chunk;
    int64_t row_begin;  // among the rows of all tokens
    int64_t begin;      // its positions: [begin, end)
    int64_t end;
    GoldRows gold;
  };

  Stage(Backend& backend, std::shared_ptr<const Model> model, const StageOptions& options);
  // The slot must be one that Open or Fork gave.
  const Sequence& OpenSequence(int slot) const;
  absl::Status AllocateMemory();
  absl::StatusOr<Tensor> AllocateTensor(const Shape& shape, DType dtype, const char* purpose);
  void MakeGoldTiers();
  // In the GOLD layers, of one Forward: the pre-fill rule adds rows of earlier chunks.
  int64_t GoldRowsMax() const {
    return options_.max_step_tokens + int64_t{2} * shape_.gold_layers() * options_.max_sequences;
  }
  bool keeps_pages() const;

  // Rows of a GOLD layer's input that GOLD layers of earlier stages have spent, where the rule warms up.
  int64_t SpentBefore() const { return int64_t{2} * std::max(0, model_->first_layer - shape_.finch_layers()); }
  GoldRows GoldRowsOf(const Chunk& chunk) const;
  absl::Status CheckChunks(absl::Span<const Chunk> chunks) const;
  void PlanChunks(absl::Span<const Chunk> chunks);
  void RunLayers(const StageInput& input, StageOutput* output);
  Tensor RunFinchLayers(const StageInput& input);
  void FillTables();
  Tensor GatherGoldRows(Tensor finch_rows);
  void PlanGoldSpans();
  void RunGoldLayers(Tensor* hidden);
  Tensor Logits(ConstTensor hidden);
  void SpendFirstRows(ConstTensor normed, Tensor LayerState::*shift, const LayerState& state, Tensor* hidden,
                      Tensor* x);
  Tensor Norm(ConstTensor x, const NormWeights& norm);
  int64_t PagesFor(int64_t tokens) const;

  Backend& backend_;
  const std::shared_ptr<const Model> model_;
  const StageOptions options_;
  const ModelShape& shape_;
  const StageMemory plan_;

  std::vector<std::shared_ptr<void>> memory_;
  int64_t reserved_bytes_ = 0;
  std::unique_ptr<Workspace> workspace_;
  std::vector<Sequence> sequences_;
  PagePool pages_;

  std::vector<LayerState> states_;  // one a layer of this stage
  Tensor tail_;                     // [slots * 2G, D] fp32: newest Finch-side rows, position p of a slot at p mod 2G
  GoldCache gold_cache_;
  std::unique_ptr<GoldTiers> gold_tiers_;
  Tensor key_table_;               // [vocab, D]
  std::vector<bool> tables_have_;  // by id: in the key table and in each GOLD layer's mix table

  // Of the call that runs; kept to reuse their memory.
  std::vector<Plan> plans_;
  std::vector<int32_t> ids_;
  std::vector<int32_t> new_ids_;
  std::vector<RowSpan> spans_;       // rows of all tokens
  std::vector<RowSpan> gold_spans_;  // rows in the GOLD layers
  std::vector<bool> gold_warm_up_;   // one a gold span
  std::vector<RowCopy> copies_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_STAGE_H_
