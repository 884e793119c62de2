// What the GOLD layers of a stage attend to. Of every position the compressed cache has the id and the row c; keys and
// values are rebuilt from these (tier T0). Memory that is left is spent on keeping more of a sequence: what all layers
// derive from ids and c before it is spread over D columns (T2), or keys and values themselves (T3). What is kept can
// be derived again at any time, so it is dropped when others need its place. docs/decisions/0013-gold-tiers.md has the
// rule.
#ifndef GOLDFINCH_WORKER_STAGE_GOLD_TIERS_H_
#define GOLDFINCH_WORKER_STAGE_GOLD_TIERS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "worker/model/layers.h"
#include "worker/model/workspace.h"
#include "worker/stage/page_pool.h"

namespace goldfinch {

// By what is kept of a position, ascending.
enum class GoldTier : uint8_t {
  kCompressed,  // T0: ids and c alone
  kShared,      // T2: and what Backend::GoldMakeSharedRows derives, once for all layers
  kFull,        // T3: and keys and values of every layer
};
// The most that --gold-tier allows: "compressed", "shared", "full", or "auto", which is "full".
std::optional<GoldTier> ParseGoldTier(std::string_view name);

// Of the memory that a process may use, the most that it gives to what is kept on a CPU, unless it is told otherwise.
inline constexpr double kKeptMemoryShare = 0.25;

// The GOLD side of one stage.
struct GoldStage {
  GoldSharedWeights shared;
  std::vector<GoldKvWeights> layers;  // of the stage, at least one
  GoldCache cache;
  int head_size = 0;
  int max_sequences = 0;
  int64_t max_sequence_tokens = 0;
  int64_t max_rows = 0;  // of one Attend
  GoldTier most = GoldTier::kFull;
};

// Sequences are known by their slots. One thread at a time. Allocates nothing after Reserve.
class GoldTiers final : public GoldAttention {
 public:
  // `backend` must outlive the object. Everything is at T0 until memory is reserved.
  GoldTiers(Backend& backend, GoldStage stage);

  // Takes memory for kept rows, at most `bytes` and at most what `positions` need at the highest tier; a half of it, a
  // quarter and so on where the back end has not so much, for there is always T0. Once. Errors as Allocate otherwise.
  absl::Status Reserve(int64_t bytes, int64_t positions);

  // A new sequence in the slot, which is free.
  void Open(int slot);
  // `copy`, which is open and new, goes on from where `slot` is: full pages of what is kept are shared; what is in the
  // last one is derived again.
  void Fork(int slot, int copy);
  void Close(int slot);

  // The spans are the next that Derive and Attend get, all in one call. Chooses tiers. Never fails: with no memory a
  // sequence is at T0.
  void Prepare(RowSpans spans);
  // What the tiers of the spans of the last Prepare lack: ops alone, which may be called again (Backend::Submit). All
  // positions up to the spans' ends are in the cache.
  void Derive(RowSpans spans);
  // GOLD attention with layer `layer` of the stage, as Backend::GoldAttention: each sequence by its tier. Takes two
  // tensors like q from the workspace for the time of the call.
  void Attend(ConstTensor q,  // [rows, D] act
              RowSpans spans, int layer, Workspace& workspace,
              Tensor out) override;  // [rows, D] act

  // Of a sequence that is open.
  GoldTier tier(int slot) const { return sequences_[slot].tier; }
  // What so many tokens of one sequence take at a tier.
  int64_t TierBytes(GoldTier tier, int64_t tokens) const { return BlocksFor(tier, tokens) * block_bytes_; }
  // In use, and reserved.
  int64_t kept_bytes() const { return pool_ ? (pool_->pages() - pool_->free_pages()) * block_bytes_ : 0; }
  int64_t reserved_bytes() const { return pool_ ? pool_->pages() * block_bytes_ : 0; }
  // How often a sequence has lost a tier.
  int64_t drops() const { return drops_; }

 private:
  struct Sequence {
    GoldTier tier = GoldTier::kCompressed;
    // What it may take as soon as it fits: tiers above only if there is plenty.
    GoldTier settled = GoldTier::kCompressed;
    int64_t end = 0;                             // positions that have been attended to, the call at hand included
    int64_t kept = 0;                            // positions [0, kept) are derived, those of the next Derive included
    int64_t derive_from = 0;                     // the first of these
    std::vector<int32_t> blocks;                 // T2: one a page; T3: one a page and layer, page after page
    std::vector<std::vector<int32_t>> kv_pages;  // T3: of each layer, in the view of keys
  };

  int64_t BlocksFor(GoldTier tier, int64_t tokens) const;
  int64_t free_blocks() const { return pool_->free_pages(); }
  void Choose(Sequence& sequence);
  void Grow(Sequence& sequence);
  void Take(Sequence& sequence);
  void Release(Sequence& sequence);
  void Drop(Sequence& sequence);
  Sequence* Largest(GoldTier tier);
  void AttendTier(GoldTier tier, ConstTensor q, RowSpans spans, int layer, Tensor out);
  RowSpan Kept(RowSpan span, GoldTier tier, int layer) const;

  Backend& backend_;
  const GoldStage stage_;
  const int64_t layers_;
  // A block holds a page of T2, or of T3 keys and values of one layer.
  int64_t block_bytes_ = 0;
  int64_t kv_page_tokens_ = 0;
  int64_t block_kv_pages_ = 0;  // pages of keys or of values in a block, and what else fits

  std::shared_ptr<void> memory_;
  std::optional<PagePool> pool_;  // of blocks; none until they are reserved
  GoldSharedRows rows_;
  KvCache kv_;
  std::vector<Sequence> sequences_;  // by slot
  int64_t drops_ = 0;

  // Of the call that runs; kept to reuse their memory.
  std::vector<RowSpan> spans_;
  std::vector<RowCopy> gather_, scatter_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_GOLD_TIERS_H_
