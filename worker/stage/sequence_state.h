// The state of a stage's sequences: everything that the stage remembers of a sequence from one step to the next, and
// the one place that its bytes live in. Allocation, opening, forking, closing and counting are loops over the parts
// that worker/model/state_parts.h lists. Beside its lines there, a new part needs a case in SequenceStates::SetView,
// which gives the forward pass its view, and one in AddStatePart (worker/model/model_memory.cc), which plans its
// memory.
//
// Parts that a sequence has one of, whatever its length, lie in tensors over slots; parts that it has one of for each
// token lie in pages of kCachePageTokens positions. Full ones are shared: by forked sequences, and by sequences that
// begin with the same kept text. The kept rows of GOLD tiers are not state: worker/stage/gold_tiers.h derives them from
// ids and compressed rows.
#ifndef GOLDFINCH_WORKER_STAGE_SEQUENCE_STATE_H_
#define GOLDFINCH_WORKER_STAGE_SEQUENCE_STATE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/cache_page.h"
#include "kernels/backend.h"
#include "worker/model/layers.h"
#include "worker/model/model.h"
#include "worker/model/state_parts.h"
#include "worker/stage/page_pool.h"

namespace goldfinch {

struct SequenceStateOptions {
  int max_sequences = 1;            // slots
  int64_t max_sequence_tokens = 1;  // of one sequence: its page table is reserved
  int64_t cache_tokens = 1;         // positions that the pages hold, over all sequences
  DType cache_dtype = DType::kBf16;
};

// Full pages of a kept text, by their index in a sequence: those whose last positions are a segment's. Whoever knows
// the number of the segment and the first page knows all that they hold.
struct SegmentPages {
  uint64_t segment = 0;  // its number; 0: it has none, and nothing is shared
  int64_t begin = 0;     // pages [begin, end)
  int64_t end = 0;
};

// One thread at a time. Operations on tensors are queued at the back end. Allocates nothing after Create and Lend.
class SequenceStates {
 public:
  // One sequence. Closed ones are all zero.
  struct Sequence {
    bool open = false;
    int64_t position = 0;        // tokens that it has taken
    int64_t gold_position = 0;   // the GOLD layers have run all positions before it
    std::vector<int32_t> pages;  // page i holds positions from i * kCachePageTokens on
  };
  // A part of all sequences.
  struct Part {
    StatePart part;
    Tensor tensor;        // [slots, ...] or, where it is per token, [pages, kCachePageTokens, ...]
    ConstTensor initial;  // the value for a new sequence; empty: zeros
  };

  // `backend` and the model's weights, which hold the initial states, must outlive the object. RESOURCE_EXHAUSTED if
  // memory cannot be had, INVALID_ARGUMENT if cache_tokens are too many.
  static absl::StatusOr<std::unique_ptr<SequenceStates>> Create(Backend& backend, const Model& model,
                                                                const SequenceStateOptions& options);

  // Lets blocks of kept rows use the memory of the compressed rows that no page holds, and `own_blocks` blocks that are
  // taken for them behind it: fewer where the back end does not have so much. To be called at most once, before any
  // sequence is open; without a compressed cache, there are no blocks. The memory of the rows may lie elsewhere
  // afterwards. Returns the bytes that were taken. Errors are those of Create; after one, the rows have no memory
  // and the object may only be destroyed.
  absl::StatusOr<int64_t> Lend(int64_t block_bytes, int64_t own_blocks, int64_t blocks_max);
  // The pages, and the blocks if there are any; block 0 lies at gold_cache().c.
  PagePool& pool() { return pool_; }

  // A free slot with the state of an empty sequence. RESOURCE_EXHAUSTED if all are taken.
  absl::StatusOr<int> Open();
  // A new sequence that is at the same point as the one in `slot`; full pages are shared. RESOURCE_EXHAUSTED if there
  // is no slot, or no free page for the copy of a last page that is not full. Where a page is free, the caller has seen
  // to it that one is open, too: free pages that lie under blocks of kept rows cannot be taken (PagePool::open_pages).
  absl::StatusOr<int> Fork(int slot);
  // A new sequence that has taken `position` tokens, of which the GOLD layers have run `gold_position`. Pages of
  // `texts` (ascending, of its first position / kCachePageTokens pages) are shared with an open sequence that was
  // opened with the same ones, or with a fork of it. All other values are for the caller to write: Walk shows where.
  // Errors are those of Open, and RESOURCE_EXHAUSTED if there are not so many pages; pages that are free must be open.
  absl::StatusOr<int> OpenAt(int64_t position, int64_t gold_position, absl::Span<const SegmentPages> texts = {});
  // Pages that OpenAt would take, beside those that it would share.
  int64_t PagesToOpen(int64_t position, absl::Span<const SegmentPages> texts) const;
  void Close(int slot);

  // The slot must be one that Open or Fork gave.
  const Sequence& at(int slot) const;
  // Pages that the sequence lacks for `tokens` more tokens.
  int64_t MissingPages(int slot, int64_t tokens) const;
  // Pages of a sequence that has taken so many tokens.
  int64_t PagesFor(int64_t tokens) const;
  // Pages that its fork takes: one for a last page that is not full.
  int64_t PagesToFork(int slot) const;
  // So many of the first positions of both sequences lie in pages that they share.
  int64_t SharedTokens(int slot, int other) const;
  bool is_open(int slot) const { return sequences_[slot].open; }
  // Whether another sequence has the page with this position, too.
  bool IsShared(int slot, int64_t position) const {
    return pool_.uses(at(slot).pages[position / kCachePageTokens]) > 1;
  }
  // The sequence takes `tokens` tokens: moves its position, and takes the pages that it lacks. They must be open.
  void Advance(int slot, int64_t tokens);
  // The GOLD layers have run all of the sequence's positions.
  void AdvanceGold(int slot);

  // All parts, in the order of their layers.
  absl::Span<const Part> parts() const { return parts_; }
  // Walks the state of one sequence, part by part, and within a part that is per token page by page, from position
  // `from` on. `values` are the part's rows of positions [begin, begin + values.dim(0)), or for other parts its value,
  // with `begin` 0.
  void Walk(int slot, absl::FunctionRef<void(const StatePart& part, int64_t begin, Tensor values)> use,
            int64_t from = 0) const;

  // Views for the forward pass. Layers count from the stage's first one.
  const LayerState& layer(int index) const { return layers_[index]; }
  const GoldCache& gold_cache() const { return gold_cache_; }
  Tensor tail_rows() const { return tail_rows_; }  // [slots * 2G, D] fp32; empty without the boundary

  // There are pages only if some part is per token. Free ones may lie under blocks (PagePool::open_pages).
  int64_t pages() const { return pool_.pages(); }
  int64_t free_pages() const { return pool_.free_pages(); }
  int64_t page_bytes() const { return page_bytes_; }
  int64_t used_pages() const { return pages() - free_pages(); }
  // Bytes of all tensors, without blocks behind them.
  int64_t reserved_bytes() const { return reserved_bytes_; }
  // RESOURCE_EXHAUSTED, that says how many positions there are.
  absl::Status FullError() const;

 private:
  SequenceStates(Backend& backend, int max_sequences) : backend_(backend), sequences_(max_sequences) {}
  absl::Status Allocate(const StatePart& part, int64_t pages, const Model& model);
  void SetView(const Part& part, int first_layer);
  // Its values are uninitialized.
  absl::StatusOr<int> TakeSlot();
  // There must be an open page.
  int32_t TakePage(uint64_t segment = 0);
  // An open sequence that has these pages; null: there is none.
  const Sequence* Holder(const SegmentPages& text) const;

  Backend& backend_;
  std::vector<std::shared_ptr<void>> memory_;  // of each part
  int64_t reserved_bytes_ = 0;
  int64_t page_bytes_ = 0;  // over all parts
  std::vector<Part> parts_;
  std::vector<Sequence> sequences_;  // by slot
  PagePool pool_{0};
  std::vector<uint64_t> page_segments_;  // SegmentPages::segment of each page in use

  std::vector<LayerState> layers_;
  GoldCache gold_cache_;
  Tensor tail_rows_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_SEQUENCE_STATE_H_
