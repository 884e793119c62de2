#include "worker/stage/gold_tiers.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/cache_page.h"
#include "base/check.h"

namespace goldfinch {
namespace {

// Where a page of shared rows is larger than keys and values of one layer, a block is rounded up to pages of so many
// positions.
constexpr int64_t kSmallPageTokens = 16;
constexpr GoldTier kTiers[] = {GoldTier::kCompressed, GoldTier::kShared, GoldTier::kFull};

int64_t RoundUp(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
GoldTier Below(GoldTier tier) { return static_cast<GoldTier>(static_cast<int>(tier) - 1); }

}  // namespace

std::optional<GoldTier> ParseGoldTier(std::string_view name) {
  if (name == "auto" || name == "full") return GoldTier::kFull;
  if (name == "shared") return GoldTier::kShared;
  if (name == "compressed") return GoldTier::kCompressed;
  return std::nullopt;
}

GoldTiers::GoldTiers(Backend& backend, GoldStage stage)
    : backend_(backend),
      stage_(std::move(stage)),
      layers_(static_cast<int64_t>(stage_.layers.size())),
      in_part_(backend.shares_in_part()),
      sequences_(stage_.max_sequences) {
  GF_CHECK_GE(layers_, 1);
  const int64_t width = stage_.shared.embedding.dim(1), row_bytes = width * SizeOf(backend.activation_dtype());
  const int64_t shared_bytes = backend.GoldSharedPageBytes(width, stage_.layers, stage_.head_size, kCachePageTokens);
  block_bytes_ = RoundUp(shared_bytes, 256);  // as GoldSharedRows has it
  if (stage_.most == GoldTier::kFull) {
    const int64_t kv_bytes = 2 * kCachePageTokens * row_bytes;
    kv_page_tokens_ = shared_bytes <= kv_bytes ? kCachePageTokens : kSmallPageTokens;
    block_bytes_ = RoundUp(std::max(shared_bytes, kv_bytes), kv_page_tokens_ * row_bytes);
    block_kv_pages_ = block_bytes_ / (kv_page_tokens_ * row_bytes);
  }
  spans_.reserve(stage_.max_sequences);
  gather_.reserve(stage_.max_rows);
  scatter_.reserve(stage_.max_rows);
}

int64_t GoldTiers::BlocksMax() const {
  if (stage_.most == GoldTier::kCompressed) return 0;
  // Page numbers are 32 bits wide.
  return std::numeric_limits<int32_t>::max() / std::max<int64_t>(block_kv_pages_, 1);
}

void GoldTiers::SetMemory(void* data, PagePool& pool, int64_t reserved_bytes, const GoldCache& cache) {
  GF_CHECK(pool_ == nullptr) << "set before";
  stage_.cache = cache;
  reserved_bytes_ = reserved_bytes;
  const int64_t blocks = pool.blocks();
  if (blocks == 0) return;
  pool_ = &pool;
  rows_ = {.data = data, .pages = blocks, .page_bytes = block_bytes_, .page_tokens = kCachePageTokens};

  const bool full = stage_.most == GoldTier::kFull;
  const int64_t most_pages = CachePagesFor(stage_.max_sequence_tokens);
  if (full) {
    // Two views of the blocks: of the same number, a page of keys and the page of values that lies behind the keys.
    const int64_t width = stage_.shared.embedding.dim(1), behind = kCachePageTokens / kv_page_tokens_;
    const Shape shape{blocks * block_kv_pages_ - behind, kv_page_tokens_, width};
    kv_.keys = {data, backend_.activation_dtype(), shape};
    kv_.values = kv_.keys;
    kv_.values.data = static_cast<char*>(data) + behind * kv_page_tokens_ * width * SizeOf(kv_.keys.dtype);
  }
  for (Sequence& sequence : sequences_) {
    sequence.blocks.reserve(std::min(blocks, most_pages * (full ? layers_ : 1)));
    if (!full) continue;
    sequence.kv_pages.resize(layers_);
    for (std::vector<int32_t>& pages : sequence.kv_pages) {
      pages.reserve(std::min(blocks / layers_, most_pages) * (kCachePageTokens / kv_page_tokens_));
    }
  }
}

int64_t GoldTiers::BlocksFor(GoldTier tier, int64_t tokens) const {
  switch (tier) {
    case GoldTier::kCompressed:
      return 0;
    case GoldTier::kShared:
      return CachePagesFor(tokens);
    case GoldTier::kFull:
      return CachePagesFor(tokens) * layers_;
  }
  return 0;
}

// ---- Who keeps what

void GoldTiers::Open(int slot) {
  Sequence& sequence = sequences_[slot];
  GF_CHECK(sequence.blocks.empty());
  sequence.tier = GoldTier::kCompressed;
  sequence.settled = stage_.most;
  sequence.end = 0;
}

void GoldTiers::Fork(int slot, int copy, int64_t tokens) {
  const Sequence& from = sequences_[slot];
  const int64_t shared_tokens = std::min(from.kept, tokens) / kCachePageTokens * kCachePageTokens;
  if (shared_tokens == 0) return;
  Sequence& to = sequences_[copy];
  to.tier = from.tier;
  to.settled = from.settled;
  to.end = to.kept = shared_tokens;
  for (int64_t i = 0; i < BlocksFor(from.tier, shared_tokens); ++i) {
    pool_->ShareBlock(from.blocks[i]);
    to.blocks.push_back(from.blocks[i]);
  }
  if (from.tier != GoldTier::kFull) return;
  for (int64_t layer = 0; layer < layers_; ++layer) {
    const std::vector<int32_t>& pages = from.kv_pages[layer];
    to.kv_pages[layer].assign(pages.begin(), pages.begin() + shared_tokens / kv_page_tokens_);
  }
}

void GoldTiers::Close(int slot) { Release(sequences_[slot]); }

void GoldTiers::Release(Sequence& sequence) {
  for (const int32_t block : sequence.blocks) pool_->ReleaseBlock(block);
  sequence.blocks.clear();
  for (std::vector<int32_t>& pages : sequence.kv_pages) pages.clear();
  sequence.kept = 0;
  sequence.tier = GoldTier::kCompressed;
}

// Takes the blocks that the sequence lacks up to `end`, as far as they are free. All must be at the full tier, and
// where the back end takes no sequence in part.
void GoldTiers::Take(Sequence& sequence) {
  const bool full = sequence.tier == GoldTier::kFull;
  const int64_t wanted = BlocksFor(sequence.tier, sequence.end);
  while (static_cast<int64_t>(sequence.blocks.size()) < wanted && (free_blocks() > 0 || full || !in_part_)) {
    const int32_t block = pool_->TakeBlock();
    if (full) {
      std::vector<int32_t>& pages = sequence.kv_pages[sequence.blocks.size() % layers_];
      for (int64_t i = 0; i < kCachePageTokens / kv_page_tokens_; ++i) {
        pages.push_back(static_cast<int32_t>(block * block_kv_pages_ + i));
      }
    }
    sequence.blocks.push_back(block);
  }
}

// Gives the sequence a higher tier if one can be had without taking from others. A sequence without kept rows gets the
// shared tier even if others have to go down from the full tier to the shared one for it.
void GoldTiers::Choose(Sequence& sequence) {
  for (GoldTier tier = stage_.most; tier > sequence.tier; tier = Below(tier)) {
    const int64_t need = BlocksFor(tier, sequence.end);
    if (free_blocks() < (tier <= sequence.settled ? need : 2 * need)) continue;
    Release(sequence);
    sequence.tier = sequence.settled = tier;
    return;
  }
  if (sequence.tier != GoldTier::kCompressed) return;
  const GoldTier settled = std::exchange(sequence.settled, GoldTier::kCompressed);
  if (settled < GoldTier::kShared && !in_part_) return;
  const int64_t need = BlocksFor(GoldTier::kShared, sequence.end);
  int64_t possible = free_blocks();
  for (const Sequence& other : sequences_) {
    const auto held = static_cast<int64_t>(other.blocks.size());
    if (other.tier == GoldTier::kFull) possible += held - held / layers_;
  }
  while (possible >= need && free_blocks() < need) {
    Sequence* other = Largest(GoldTier::kFull);
    if (other == nullptr) break;  // what it could have given was shared
    Drop(*other);
  }
  if (free_blocks() >= need || in_part_) sequence.tier = sequence.settled = GoldTier::kShared;
}

// Takes the blocks that the sequence's tier lacks. Where too few are free, sequences give way: this one too.
void GoldTiers::Grow(Sequence& sequence) {
  while (sequence.tier != GoldTier::kCompressed) {
    const int64_t missing = BlocksFor(sequence.tier, sequence.end) - static_cast<int64_t>(sequence.blocks.size());
    if (missing <= free_blocks()) return Take(sequence);
    if (in_part_ && sequence.tier == GoldTier::kShared) return GrowInPart(sequence, missing);
    Sequence* largest = Largest();
    if (largest == nullptr) {
      Drop(sequence);
    } else {
      GiveWay(*largest, missing - free_blocks());
    }
  }
}

// At the shared tier: others give blocks only if they hold more than twice what this one needs, and it does without the
// rest.
void GoldTiers::GrowInPart(Sequence& sequence, int64_t missing) {
  const int64_t need = static_cast<int64_t>(sequence.blocks.size()) + missing;
  while (missing > free_blocks()) {
    Sequence* largest = Largest();
    if (largest == nullptr || largest == &sequence) break;
    if (static_cast<int64_t>(largest->blocks.size()) <= 2 * need) break;
    if (!GiveWay(*largest, missing - free_blocks())) break;
  }
  Take(sequence);
  if (sequence.blocks.empty()) sequence.tier = sequence.settled = GoldTier::kCompressed;
}

// Frees up to `blocks` blocks of a sequence, or more. Returns false if none has become free, as others share them.
bool GoldTiers::GiveWay(Sequence& sequence, int64_t blocks) {
  const int64_t free_before = free_blocks();
  if (in_part_ && sequence.tier == GoldTier::kShared) {
    Shorten(sequence, blocks);
  } else {
    Drop(sequence);
  }
  return free_blocks() > free_before;
}

// Gives up the last `blocks` blocks of a sequence at the shared tier: their positions go down to the compressed tier.
void GoldTiers::Shorten(Sequence& sequence, int64_t blocks) {
  for (; blocks > 0 && !sequence.blocks.empty(); --blocks) {
    pool_->ReleaseBlock(sequence.blocks.back());
    sequence.blocks.pop_back();
  }
  sequence.kept = std::min<int64_t>(sequence.kept, static_cast<int64_t>(sequence.blocks.size()) * kCachePageTokens);
  if (!sequence.blocks.empty()) return;
  sequence.tier = sequence.settled = GoldTier::kCompressed;
  ++drops_;
}

GoldTiers::Sequence* GoldTiers::Largest(GoldTier tier) {
  Sequence* largest = nullptr;
  for (Sequence& sequence : sequences_) {
    if (sequence.tier != tier || sequence.blocks.empty()) continue;
    if (largest == nullptr || sequence.blocks.size() > largest->blocks.size()) largest = &sequence;
  }
  return largest;
}

// The sequence that gives way: of those at the highest tier, the one with the most blocks; or, where sequences can give
// some of them, the one with the most at any tier. Null if none has blocks.
GoldTiers::Sequence* GoldTiers::Largest() {
  Sequence* const full = Largest(GoldTier::kFull);
  if (full != nullptr && !in_part_) return full;
  Sequence* const shared = Largest(GoldTier::kShared);
  if (full == nullptr || shared == nullptr) return full != nullptr ? full : shared;
  return shared->blocks.size() > full->blocks.size() ? shared : full;
}

void GoldTiers::MakeRoom(int64_t pages) {
  if (pool_ == nullptr || pool_->pages() == 0) return;
  while (pool_->open_pages() < pages) {
    Sequence* largest = Largest();
    GF_CHECK(largest != nullptr) << pages << " pages";
    GiveWay(*largest, 1);
  }
}

// From the full tier a sequence goes to the shared tier, in part if need be; but to the compressed tier where shared
// rows save nothing, or where the blocks that it gives up are shared with others and so do not become free.
void GoldTiers::Drop(Sequence& sequence) {
  const bool to_shared = sequence.tier == GoldTier::kFull && layers_ > 1;
  Release(sequence);
  if (to_shared && free_blocks() >= (in_part_ ? 1 : BlocksFor(GoldTier::kShared, sequence.end))) {
    sequence.tier = GoldTier::kShared;
    Take(sequence);
  }
  sequence.settled = sequence.tier;
  ++drops_;
}

// ---- Rows

void GoldTiers::Prepare(RowSpans spans, RowSpans attending) {
  if (pool_ == nullptr) return;
  for (const RowSpan& span : spans) sequences_[span.slot].end = span.position + span.row_count;
  for (const RowSpan& span : spans) {
    Choose(sequences_[span.slot]);
    Grow(sequences_[span.slot]);
  }
  // Only when all have their tiers, as one may have dropped another.
  const auto kept_max = [&](const Sequence& sequence) {
    if (sequence.tier == GoldTier::kFull) return sequence.end;
    return std::min(sequence.end, static_cast<int64_t>(sequence.blocks.size()) * kCachePageTokens);
  };
  for (const RowSpan& span : spans) {
    Sequence& sequence = sequences_[span.slot];
    sequence.derive_from = sequence.kept;
    sequence.kept = std::min(kept_max(sequence), sequence.kept + kDerivedRows * span.row_count);
  }
  for (const RowSpan& span : attending) sequences_[span.slot].kept = kept_max(sequences_[span.slot]);
}

RowSpan GoldTiers::Kept(RowSpan span, GoldTier tier, int layer) const {
  const Sequence& sequence = sequences_[span.slot];
  if (tier == GoldTier::kShared) {
    span.kept_pages = sequence.blocks.data();
    if (sequence.kept < sequence.end) span.kept_end = sequence.kept;
  }
  if (tier == GoldTier::kFull) span.kept_pages = sequence.kv_pages[layer].data();
  return span;
}

void GoldTiers::Derive(RowSpans spans) {
  for (const GoldTier tier : {GoldTier::kShared, GoldTier::kFull}) {
    for (int layer = 0; layer < (tier == GoldTier::kFull ? layers_ : 1); ++layer) {
      spans_.clear();
      int64_t row = 0;
      for (RowSpan span : spans) {
        const Sequence& sequence = sequences_[span.slot];
        if (sequence.tier != tier || sequence.derive_from == sequence.kept) continue;
        span.row_begin = static_cast<int32_t>(row);
        span.row_count = static_cast<int32_t>(sequence.kept - sequence.derive_from);
        span.position = sequence.derive_from;
        spans_.push_back(Kept(span, tier, layer));
        row += span.row_count;
      }
      if (spans_.empty()) break;
      if (tier == GoldTier::kShared) {
        backend_.GoldMakeSharedRows(spans_, stage_.shared, stage_.layers, stage_.cache, stage_.head_size, rows_);
      } else {
        backend_.GoldMakeKeysValues(spans_, stage_.shared, stage_.layers[layer], stage_.cache, stage_.head_size, kv_);
      }
    }
  }
}

void GoldTiers::Attend(ConstTensor q, RowSpans spans, int layer, Workspace& workspace, Tensor out) {
  int runs = 0;
  bool present[std::size(kTiers)] = {};
  for (size_t i = 0; i < spans.size(); ++i) {
    const GoldTier tier = sequences_[spans[i].slot].tier;
    if (i == 0 || tier != sequences_[spans[i - 1].slot].tier) ++runs;
    present[static_cast<int>(tier)] = true;
  }
  const Workspace::Frame frame(workspace);
  // Rows of a tier must lie together: they do in place, or else in a copy.
  const bool together = runs <= std::count(std::begin(present), std::end(present), true);
  ConstTensor from = q;
  Tensor to = out;
  if (!together) {
    gather_.clear();
    scatter_.clear();
    for (const GoldTier tier : kTiers) {
      for (const RowSpan& span : spans) {
        if (sequences_[span.slot].tier != tier) continue;
        for (int64_t row = span.row_begin; row < span.row_begin + span.row_count; ++row) {
          const auto at = static_cast<int64_t>(gather_.size());
          gather_.push_back({row, at});
          scatter_.push_back({at, row});
        }
      }
    }
    const Tensor gathered = workspace.Take(q.shape, q.dtype);
    backend_.CopyRows(q, gather_, gathered);
    from = gathered;
    to = workspace.Take(out.shape, out.dtype);
  }
  int64_t begin = 0;  // where the tier's rows begin in `from`
  for (const GoldTier tier : kTiers) {
    if (!present[static_cast<int>(tier)]) continue;
    spans_.clear();
    int32_t rows = 0;
    for (RowSpan span : spans) {
      if (sequences_[span.slot].tier != tier) continue;
      if (together && spans_.empty()) begin = span.row_begin;
      span.row_begin = rows;
      rows += span.row_count;
      span = Kept(span, tier, layer);
      if (tier == GoldTier::kFull) span.pages = span.kept_pages;  // they are keys and values like any others
      spans_.push_back(span);
    }
    AttendTier(tier, Rows(from, begin, rows), spans_, layer, Rows(to, begin, rows));
    begin += rows;
  }
  if (!together) backend_.CopyRows(to, scatter_, out);
}

void GoldTiers::AttendTier(GoldTier tier, ConstTensor q, RowSpans spans, int layer, Tensor out) {
  switch (tier) {
    case GoldTier::kCompressed:
      return backend_.GoldAttention(q, spans, stage_.shared, stage_.layers[layer], stage_.cache, stage_.head_size, out);
    case GoldTier::kShared: {
      GoldSharedRows rows = rows_;
      const auto in_part = [](const RowSpan& span) { return span.kept_end < span.position + span.row_count; };
      if (std::any_of(spans.begin(), spans.end(), in_part)) rows.rest = &stage_.cache;
      return backend_.GoldSharedAttention(q, spans, stage_.shared, stage_.layers, layer, rows, stage_.head_size, out);
    }
    case GoldTier::kFull:
      return backend_.KvAttention(q, spans, kv_, stage_.head_size, out);
  }
}

}  // namespace goldfinch
