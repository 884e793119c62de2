// What the GOLD layers of a stage attend to. The compressed cache has the id and the row c of every position, and keys
// and values can be rebuilt from these (the compressed tier). Memory that is left is spent on kept rows, which make
// attention faster: what all layers derive from ids and c before it is spread over D columns (the shared tier), or keys
// and values themselves (the full tier). Kept rows can be derived again at any time, so they are dropped when other
// sequences need their place, and they are no part of a sequence's state. docs/decisions/0013-gold-tiers.md has the
// rule.
#ifndef GOLDFINCH_WORKER_STAGE_GOLD_TIERS_H_
#define GOLDFINCH_WORKER_STAGE_GOLD_TIERS_H_

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "kernels/backend.h"
#include "worker/model/layers.h"
#include "worker/model/workspace.h"
#include "worker/stage/page_pool.h"

namespace goldfinch {

// Ascending by what is kept of a position.
enum class GoldTier : uint8_t {
  kCompressed,  // nothing beside the compressed cache
  kShared,      // the shared rows, which Backend::GoldMakeSharedRows derives once for all layers; where the back end
                // allows it, of the first positions alone, as far as memory goes
  kFull,        // keys and values of every layer
};
// The highest tier that a user allows: "compressed", "shared", "full", or "auto", which is "full".
std::optional<GoldTier> ParseGoldTier(std::string_view name);

// The GOLD side of one stage.
struct GoldStage {
  GoldSharedWeights shared;
  std::vector<GoldKvWeights> layers;  // the stage's GOLD layers, at least one
  GoldCache cache;
  int head_size = 0;
  int max_sequences = 0;
  int64_t max_sequence_tokens = 0;
  int64_t max_rows = 0;             // of one Attend
  GoldTier most = GoldTier::kFull;  // the highest tier
};

// Sequences are known by their slots. One thread at a time. Allocates nothing after SetMemory.
class GoldTiers final : public GoldAttention {
 public:
  // `backend` must outlive the object. All sequences are at the compressed tier until there is memory.
  GoldTiers(Backend& backend, GoldStage stage);

  // Kept rows lie in blocks of `pool`, and block 0 at `data`; both must outlive the object. Of it, `reserved_bytes` are
  // for kept rows alone. `cache` is where the compressed cache lies now. To be called at most once.
  void SetMemory(void* data, PagePool& pool, int64_t reserved_bytes, const GoldCache& cache);
  int64_t block_bytes() const { return block_bytes_; }
  // The most blocks that have numbers, and the most that sequences of so many positions can use.
  int64_t BlocksMax() const;
  int64_t BlocksMax(int64_t positions) const { return std::min(BlocksMax(), BlocksFor(stage_.most, positions)); }

  // Drops kept rows until the pool has so many open pages, if it has pages at all. It must have as many free ones.
  void MakeRoom(int64_t pages);

  // A new sequence in the slot, which is free.
  void Open(int slot);
  // `copy`, which is open and new, has the same first `tokens` positions as `slot`: full pages of their kept rows are
  // shared, and the rows of the last page are derived again.
  void Fork(int slot, int copy, int64_t tokens);
  void Close(int slot);

  // Chooses the tiers of the sequences for a step whose chunks are `spans`. Of these, the sequences of `attending` will
  // attend to all their positions. Derive follows with the same spans, and then Attend with those of `attending`. Never
  // fails: a sequence that gets no memory is at the compressed tier.
  void Prepare(RowSpans spans, RowSpans attending);
  // Derives kept rows for the tiers chosen by the last Prepare: all that are lacking of sequences that attend, and of
  // the others, which only read a part of their prompt, kDerivedRows rows for each row of the chunk at most. So the end
  // of a prompt finds most of its rows derived, and no step takes much longer than its tokens do. For those that
  // attend, a limit would save nothing: to attend to a position without its row takes longer than to derive the row.
  // Only queues ops, so it may be called again (Backend::Submit). All positions up to the spans' ends must be in the
  // compressed cache.
  void Derive(RowSpans spans);
  static constexpr int64_t kDerivedRows = 4;
  // GOLD attention with layer `layer` of the stage, as Backend::GoldAttention, for each sequence by its tier. Takes two
  // tensors of q's shape from the workspace for the time of the call.
  void Attend(ConstTensor q,  // [rows, D] act
              RowSpans spans, int layer, Workspace& workspace,
              Tensor out) override;  // [rows, D] act

  // The tier of a sequence that is open, and how many of its positions have kept rows.
  int64_t kept(int slot) const { return sequences_[slot].kept; }
  GoldTier tier(int slot) const { return sequences_[slot].tier; }
  // Bytes of kept rows for `tokens` tokens of one sequence at a tier.
  int64_t TierBytes(GoldTier tier, int64_t tokens) const { return BlocksFor(tier, tokens) * block_bytes_; }
  // Bytes of kept rows in use, and memory that is for kept rows alone.
  int64_t kept_bytes() const { return pool_ != nullptr ? pool_->used_blocks() * block_bytes_ : 0; }
  int64_t reserved_bytes() const { return reserved_bytes_; }
  // How often a sequence has lost a tier.
  int64_t drops() const { return drops_; }

 private:
  struct Sequence {
    GoldTier tier = GoldTier::kCompressed;
    // The tier that it takes as soon as it fits; it takes higher ones only if there is twice the memory for them.
    GoldTier settled = GoldTier::kCompressed;
    int64_t end = 0;              // positions in the compressed cache, those of this step included
    int64_t kept = 0;             // positions [0, kept) have kept rows, those of the next Derive included
    int64_t derive_from = 0;      // the first position of the next Derive, which goes up to `kept`
    std::vector<int32_t> blocks;  // shared tier: one a page; full tier: one a page and layer, page after page
    std::vector<std::vector<int32_t>> kv_pages;  // full tier: page table of each layer, in the view of keys
  };

  int64_t BlocksFor(GoldTier tier, int64_t tokens) const;
  int64_t free_blocks() const { return pool_->free_blocks(); }
  void Choose(Sequence& sequence);
  void Grow(Sequence& sequence);
  void GrowInPart(Sequence& sequence, int64_t missing);
  void Take(Sequence& sequence);
  void Release(Sequence& sequence);
  void Drop(Sequence& sequence);
  bool GiveWay(Sequence& sequence, int64_t blocks);
  void Shorten(Sequence& sequence, int64_t blocks);
  Sequence* Largest(GoldTier tier);
  Sequence* Largest();
  void AttendTier(GoldTier tier, ConstTensor q, RowSpans spans, int layer, Tensor out);
  RowSpan Kept(RowSpan span, GoldTier tier, int layer) const;

  Backend& backend_;
  GoldStage stage_;
  const int64_t layers_;
  const bool in_part_;  // the shared tier may end before a sequence does
  // A block holds a page of shared rows, or a page of keys and values of one layer.
  int64_t block_bytes_ = 0;
  int64_t kv_page_tokens_ = 0;
  int64_t block_kv_pages_ = 0;  // how many pages of keys or of values, of kv_page_tokens_, fit a block

  PagePool* pool_ = nullptr;  // of the blocks
  int64_t reserved_bytes_ = 0;
  GoldSharedRows rows_;
  KvCache kv_;
  std::vector<Sequence> sequences_;  // by slot
  int64_t drops_ = 0;

  // Scratch vectors of the current call, kept to reuse their memory.
  std::vector<RowSpan> spans_;
  std::vector<RowCopy> gather_, scatter_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_GOLD_TIERS_H_
