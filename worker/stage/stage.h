// One stage of the pipeline: a range of layers, the state of its sequences, and the forward pass over ragged batches. A
// single machine runs one stage with all layers.
#ifndef GOLDFINCH_WORKER_STAGE_STAGE_H_
#define GOLDFINCH_WORKER_STAGE_STAGE_H_

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/cache_page.h"
#include "base/stage_extent.h"
#include "base/stage_memory.h"
#include "kernels/backend.h"
#include "worker/model/layers.h"
#include "worker/model/model.h"
#include "worker/model/state_parts.h"
#include "worker/model/workspace.h"
#include "worker/stage/gold_spans.h"
#include "worker/stage/gold_tiers.h"
#include "worker/stage/page_pool.h"
#include "worker/stage/prefill_rule.h"
#include "worker/stage/saved_segment.h"
#include "worker/stage/sequence_state.h"

namespace goldfinch {

struct StageOptions {
  int max_sequences = 1;                  // that may be open at a time: state slots
  int64_t max_sequence_tokens = 1 << 20;  // the longest sequence; its page table is reserved
  int64_t cache_tokens = 1 << 20;         // positions that the caches hold, over all sequences
  int64_t max_step_tokens = 512;          // of one Forward, over all chunks
  int64_t max_logit_rows = 512;           // of one Forward, over all chunks
  DType cache_dtype = DType::kBf16;       // kInt8 only if the compressed cache is the only one
  GoldTier gold_tier = GoldTier::kFull;   // the highest tier that GOLD layers may use: see Stage::ReserveKept

  bool operator==(const StageOptions&) const = default;
};
// What base/stage_memory.h is asked for these layers. `later_stages`: of the pipeline, after this one.
StageSettings MemorySettings(int first_layer, int last_layer, const StageOptions& options, int later_stages = 0);

// The next tokens of one sequence: a part of its prompt, or one token that was drawn.
struct Chunk {
  int slot = 0;
  absl::Span<const int32_t> ids;  // at least one
  int64_t logit_rows = 0;         // how many of the last ids need logits; 0: none; 1: to sample; all: to score
};

// What the stage before sends for a Forward, in the back end's memory. The first stage gets none.
struct StageInput {
  // [rows, D] fp32; overwritten. A row of every token, and then a side row of every token if the model's kinds use
  // them; to a stage whose layers are all GOLD, the rows of the pre-fill rule alone.
  Tensor hidden;
  // [tokens, CompressedRowWidth of D/16] of cache_dtype; only to a stage whose layers are all GOLD.
  ConstTensor compressed;
};

// The numbers of rows in a StageInput.
struct StageRows {
  int64_t hidden = 0;
  int64_t compressed = 0;
  bool operator==(const StageRows&) const = default;
};

// What a Forward leaves: memory of the stage and its back end, valid until the next Forward.
struct StageOutput {
  Tensor hidden;      // as StageInput::hidden, for the next stage; not set by the last stage
  Tensor compressed;  // as StageInput::compressed, for every later stage; only from the stage with the boundary
  Tensor logits;      // [logit rows, vocab] fp32, chunk after chunk; only from the last stage
};

// One thread at a time.
class Stage {
 public:
  // `backend` must outlive the stage. RESOURCE_EXHAUSTED if memory cannot be had, INVALID_ARGUMENT as CheckCacheDType.
  static absl::StatusOr<std::unique_ptr<Stage>> Create(Backend& backend, std::shared_ptr<const Model> model,
                                                       const StageOptions& options);
  // Waits until what Save has queued is done.
  ~Stage();

  // Takes memory for the kept rows of GOLD layers, out of what is left when all else is reserved: no more than the
  // sequences can come to use, nothing for a stage without GOLD layers, and less if the device has less by then;
  // gold_tiers()->reserved_bytes() tells. With `borrow`, kept rows also use the memory of the compressed rows as long
  // as no sequence does. Until this is called, at most once and before any sequence is open, nothing is kept. After an
  // error the stage may only be destroyed.
  absl::Status ReserveKept(int64_t bytes, bool borrow = true);
  // Bytes that ReserveKept takes of so many where the device has as much, but for a part of a block.
  int64_t KeptBytesOf(int64_t bytes) const;

  // A free slot with the state of an empty sequence. RESOURCE_EXHAUSTED if max_sequences are open.
  absl::StatusOr<int> Open();
  // A new sequence that is at the same point as the one in `slot`; full cache pages are shared. RESOURCE_EXHAUSTED as
  // Open, or if the caches are full.
  absl::StatusOr<int> Fork(int slot);
  void Close(int slot);
  // Tokens that the sequence has taken.
  int64_t position(int slot) const { return sequences_->at(slot).position; }

  // ---- Contexts: segments of texts in the host's memory, which is staging memory of the back end.

  // What Save saves and Restore reads: StageSavedParts.
  absl::Span<const StatePart> saved_parts() const { return saved_parts_; }
  // Takes memory of the device for two snapshots, so that steps do not wait until Save has copied them; where there is
  // none, they wait. To be called before ReserveKept, if anything is to be saved. Does nothing where the host can read
  // the back end's memory.
  void ReserveSaving();
  // Queues copies of what the stage has of the sequence, of those of saved_parts() that `to` has: rows of the positions
  // [to.begin, to.end), and the snapshot at to.end, which must be where the sequence is. `logits` [1, vocab]: those
  // that follow its last token, if `to` has them. `to` must stay until the mark that is returned is reached. Steps may
  // go on at once.
  std::shared_ptr<const Mark> Save(int slot, ConstTensor logits, const SavedSegment& to);
  // Opens a sequence that stands where the last segment of `chain` ends, as if it had taken all tokens up to there; on
  // the CPU, what it computes from then on has the same bits. Of saved_parts() it reads all but the logits:
  //   - those that are per token from every segment. So the first one begins at position 0, and each of the others
  //     where the one before it ends. A stage without such parts needs the last segment alone, wherever that begins.
  //   - the rest, which is the snapshot, from the last segment.
  // Full pages of a segment with a number, and their kept rows, are shared with open sequences that were restored from
  // it with the same pages, and with forks of these, for as long as any of them is open.
  // Token ids in the parts must be in the vocabulary, as nobody checks them here. The parts must stay until a mark is
  // reached that was recorded after this call.
  // NOT_FOUND names a part that is lacking, INVALID_ARGUMENT says which segment does not fit and why, and
  // RESOURCE_EXHAUSTED is as for Open, or says that the caches are full. After an error there is no new sequence.
  absl::StatusOr<int> Restore(absl::Span<const SavedSegment* const> chain);
  // The GOLD layers have run all positions of the sequence before this one.
  int64_t gold_position(int slot) const { return sequences_->at(slot).gold_position; }

  // What StageInput must have for a Forward of these chunks, so that it can be received. Chunks as for Forward.
  StageRows InputRows(absl::Span<const Chunk> chunks) const;

  // Queues the chunks, at most one a slot, through the stage's layers. A caller that needs values on the host waits for
  // them, and asks the back end for its status then. On an error nothing has changed:
  // INVALID_ARGUMENT for ids outside the vocabulary, or more tokens or logit rows than the options allow in a call or
  // in a sequence; RESOURCE_EXHAUSTED if the caches are full.
  absl::Status Forward(absl::Span<const Chunk> chunks, const StageInput& input, StageOutput* output);

  const Model& model() const { return *model_; }
  const StageExtent& extent() const { return extent_; }
  const StageOptions& options() const { return options_; }
  // Cache pages in use, in bytes and in positions; a page that several sequences share counts once.
  int64_t CacheBytes() const { return sequences_->used_pages() * sequences_->page_bytes(); }
  int64_t CacheTokens() const { return sequences_->used_pages() * kCachePageTokens; }
  // The state of the sequences, part by part.
  const SequenceStates& sequences() const { return *sequences_; }
  // The kept rows; null without GOLD layers.
  const GoldTiers* gold_tiers() const { return gold_tiers_.get(); }
  // The plan of what the stage and its back end take of the back end's memory, without kept rows and copies of
  // snapshots, and as if there were no other stages.
  const StageMemory& memory() const { return memory_plan_; }
  // What was taken of it: states, caches, tables, activations, and kept rows, and copies of snapshots beside. Pages of
  // memory are committed as they are used.
  int64_t ReservedBytes() const;

 private:
  // A chunk of the current call and its rows.
  struct ChunkRows {
    const Chunk* chunk;
    int64_t row_begin;  // among the rows of all tokens
    int64_t begin;      // its positions: [begin, end)
    int64_t end;
    GoldInputRows gold;
  };

  Stage(Backend& backend, std::shared_ptr<const Model> model, const StageOptions& options);
  absl::Status AllocateMemory();
  absl::StatusOr<Tensor> AllocateTensor(const Shape& shape, DType dtype, const char* purpose);
  absl::Status AllocateTables();
  void MakeGoldTiers();

  // ---- stage.cc: what a call means, decided before its ops
  GoldInputRows GoldInputRowsOf(const Chunk& chunk) const;
  absl::Status CheckChunks(absl::Span<const Chunk> chunks) const;
  void MakeRoom(absl::Span<const Chunk> chunks);
  void PlanChunks(absl::Span<const Chunk> chunks);

  // ---- stage_contexts.cc
  void FinishSaves();
  absl::Status CheckChain(absl::Span<const SavedSegment* const> chain) const;
  void FillTables(int slot, const SavedSegment& segment);
  void ShareKeptRows(int slot);

  // ---- stage_forward.cc: the ops of a call
  void FillTables();
  void AddTableId(int32_t id);
  void FillNewTableRows();
  void RunLayers(const StageInput& input, StageOutput* output);
  Tensor RunFinchLayers(const StageInput& input);
  Tensor Compress(ConstTensor hidden);
  Tensor GatherGoldRows(Tensor finch_rows);
  void RunGoldLayers(Tensor* hidden);
  void SpendRows(int shift, ConstTensor normed, Tensor state, Tensor* hidden, Tensor* x);
  Tensor Logits(ConstTensor hidden);
  Tensor Norm(ConstTensor x, const NormWeights& norm);

  Backend& backend_;
  const std::shared_ptr<const Model> model_;
  const StageOptions options_;
  const ModelShape& shape_;
  const StageExtent extent_;
  const StageMemory memory_plan_;
  const std::vector<StatePart> saved_parts_;

  std::vector<std::shared_ptr<void>> memory_;
  int64_t reserved_bytes_ = 0;
  std::unique_ptr<Workspace> workspace_;
  std::unique_ptr<SequenceStates> sequences_;
  PagePool own_kept_{0};  // blocks of kept rows that borrow nothing
  std::unique_ptr<GoldTiers> gold_tiers_;

  // Tables by token id, only with GOLD layers. Rows are filled as ids appear: tables_have_ tells, for all tables.
  Tensor key_table_;                // [vocab, D] act: see GoldSharedWeights
  std::vector<Tensor> mix_tables_;  // [vocab, 2, 2m] fp32, one a GOLD layer of the stage: see GoldKvWeights
  std::vector<bool> tables_have_;   // by id

  // Copies of snapshots on their way to the host, on a device: the parts in the order of saved_parts_. Without memory
  // for them, there is no queue either.
  struct SnapshotBuffer {
    char* data = nullptr;
    std::shared_ptr<const Mark> copied;  // null before its first use
  };
  std::unique_ptr<Queue> save_queue_;
  std::array<SnapshotBuffer, kSnapshotCopies> snapshot_buffers_;
  int next_snapshot_buffer_ = 0;
  std::shared_ptr<const Mark> last_save_;  // on save_queue_; null if none can be under way

  // The plan of the current Forward call, whose memory is kept to be reused. Ops read it and may run more than once
  // (Backend::Submit), so they change none of it.
  std::vector<ChunkRows> chunks_;
  std::vector<int32_t> ids_;
  std::vector<int32_t> new_ids_;
  std::vector<RowSpan> spans_;  // rows of all tokens
  GoldSpans gold_spans_;        // rows in the GOLD layers
  // Scratch vector of the op that is being queued.
  std::vector<RowCopy> copies_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_STAGE_H_
