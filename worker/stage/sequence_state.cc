#include "worker/stage/sequence_state.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/cache_page.h"
#include "base/check.h"
#include "base/status.h"

namespace goldfinch {
namespace {

// [count, ...] for [...]: `shape` has at most three axes.
Shape Prepend(int64_t count, const Shape& shape) {
  switch (shape.rank()) {
    case 0:
      return {count};
    case 1:
      return {count, shape[0]};
    case 2:
      return {count, shape[0], shape[1]};
    default:
      GF_CHECK_EQ(shape.rank(), 3);
      return {count, shape[0], shape[1], shape[2]};
  }
}

// Rows [first, end) of a page.
Tensor PageRows(Tensor page, int64_t first, int64_t end) {
  page.data = static_cast<char*>(page.data) + page.bytes() / page.dim(0) * first;
  page.shape = Prepend(end - first, page.shape.WithoutFirstAxis());
  return page;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SequenceStates>> SequenceStates::Create(Backend& backend, const Model& model,
                                                                       const SequenceStateOptions& options) {
  GF_CHECK_GE(options.max_sequences, 1);
  GF_CHECK_GE(options.cache_tokens, 1);
  constexpr int64_t kPagesMax = std::numeric_limits<int32_t>::max();  // page tables hold 32 bits
  const int64_t tokens_max = (kPagesMax - 1 - options.max_sequences) * kCachePageTokens;
  if (options.cache_tokens > tokens_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("cache_tokens is ", options.cache_tokens, ", the limit is ", tokens_max));
  }
  std::unique_ptr<SequenceStates> states(new SequenceStates(backend, options.max_sequences));
  const int64_t pages = CachePagesToReserve(options.cache_tokens, options.max_sequences);
  states->layers_.resize(model.layers.size());
  for (const StatePart& part : StageStateParts(model.shape, options.cache_dtype, model.extent())) {
    GF_RETURN_IF_ERROR(states->Allocate(part, pages, model));
  }
  if (states->page_bytes_ > 0) {
    states->pool_ = PagePool(static_cast<int32_t>(pages));
    states->page_segments_.resize(pages);
  }
  for (Sequence& sequence : states->sequences_) sequence.pages.reserve(states->PagesFor(options.max_sequence_tokens));
  return states;
}

absl::Status SequenceStates::Allocate(const StatePart& part, int64_t pages, const Model& model) {
  const auto slots = static_cast<int64_t>(sequences_.size());
  Part& added = parts_.emplace_back(Part{.part = part, .tensor = {}, .initial = {}});
  added.tensor.dtype = part.dtype;
  added.tensor.shape =
      part.per_token() ? Prepend(pages, Prepend(kCachePageTokens, part.shape)) : Prepend(slots, part.shape);
  GF_ASSIGN_OR_RETURN(std::shared_ptr<void> memory, backend_.Allocate(added.tensor.bytes(), MemoryName(part.kind)));
  added.tensor.data = memory.get();
  memory_.push_back(std::move(memory));
  reserved_bytes_ += added.tensor.bytes();
  if (part.per_token()) page_bytes_ += kCachePageTokens * part.bytes();
  if (part.kind == StatePartKind::kWkv) added.initial = model.layers[part.layer - model.first_layer].initial_wkv;
  SetView(added, model.first_layer);
  return absl::OkStatus();
}

void SequenceStates::SetView(const Part& part, int first_layer) {
  const auto layer = [&]() -> LayerState& { return layers_[part.part.layer - first_layer]; };
  switch (part.part.kind) {
    case StatePartKind::kTimeShift:
      layer().time_shift = part.tensor;
      break;
    case StatePartKind::kChannelShift:
      layer().channel_shift = part.tensor;
      break;
    case StatePartKind::kWkv:
      layer().wkv = part.tensor;
      break;
    case StatePartKind::kKeys:
      layer().kv.keys = part.tensor;
      break;
    case StatePartKind::kValues:
      layer().kv.values = part.tensor;
      break;
    case StatePartKind::kTailRows:
      tail_rows_ = part.tensor;
      tail_rows_.shape = {part.tensor.dim(0) * part.tensor.dim(1), part.tensor.dim(2)};
      break;
    case StatePartKind::kIds:
      gold_cache_.ids = part.tensor;
      break;
    case StatePartKind::kRows:
      gold_cache_.c = part.tensor;
      break;
    case StatePartKind::kLogits:
      GF_CHECK(false) << "no stage keeps logits";
  }
}

absl::StatusOr<int64_t> SequenceStates::Lend(int64_t block_bytes, int64_t own_blocks, int64_t blocks_max) {
  const auto rows = std::find_if(parts_.begin(), parts_.end(),
                                 [](const Part& part) { return part.part.kind == StatePartKind::kRows; });
  if (rows == parts_.end()) return 0;
  const int64_t rows_bytes = rows->tensor.bytes(), page_bytes = rows_bytes / pages();
  int64_t bytes = rows_bytes;
  if (own_blocks > 0) {
    std::shared_ptr<void>& memory = memory_[rows - parts_.begin()];
    memory.reset();  // now, so that the new one can have its place
    rows->tensor.data = gold_cache_.c.data = nullptr;
    for (;; own_blocks /= 2) {
      if (own_blocks > 0) bytes = (rows_bytes + own_blocks * block_bytes) / block_bytes * block_bytes;
      bytes = own_blocks > 0 ? std::max(bytes, rows_bytes) : rows_bytes;
      absl::StatusOr<std::shared_ptr<void>> more = backend_.Allocate(bytes, "compressed rows and kept rows");
      if (more.ok()) memory = *std::move(more);
      if (more.ok()) break;
      if (own_blocks == 0 || more.status().code() != absl::StatusCode::kResourceExhausted) return more.status();
    }
    rows->tensor.data = memory.get();
    gold_cache_.c = rows->tensor;
  }
  pool_.SetBlocks({.blocks = static_cast<int32_t>(std::min(bytes / block_bytes, blocks_max)),
                   .block_bytes = block_bytes,
                   .page_bytes = page_bytes});
  return bytes - rows_bytes;
}

absl::Status SequenceStates::FullError() const {
  return absl::ResourceExhaustedError(absl::StrCat("the caches are full: ", pages() * kCachePageTokens, " positions"));
}

const SequenceStates::Sequence& SequenceStates::at(int slot) const {
  GF_CHECK(slot >= 0 && slot < static_cast<int>(sequences_.size()) && sequences_[slot].open) << "slot " << slot;
  return sequences_[slot];
}

int64_t SequenceStates::PagesFor(int64_t tokens) const { return page_bytes_ > 0 ? CachePagesFor(tokens) : 0; }

int64_t SequenceStates::MissingPages(int slot, int64_t tokens) const {
  const Sequence& sequence = at(slot);
  return PagesFor(sequence.position + tokens) - static_cast<int64_t>(sequence.pages.size());
}

int64_t SequenceStates::PagesToFork(int slot) const {
  return at(slot).position % kCachePageTokens != 0 && !at(slot).pages.empty() ? 1 : 0;
}

void SequenceStates::Advance(int slot, int64_t tokens) {
  for (int64_t missing = MissingPages(slot, tokens); missing > 0; --missing) {
    sequences_[slot].pages.push_back(TakePage());
  }
  sequences_[slot].position += tokens;
}

void SequenceStates::AdvanceGold(int slot) { sequences_[slot].gold_position = at(slot).position; }

absl::StatusOr<int> SequenceStates::TakeSlot() {
  const auto free = std::find_if(sequences_.begin(), sequences_.end(), [](const Sequence& s) { return !s.open; });
  if (free == sequences_.end()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("all ", sequences_.size(), " slots for sequences (max_sequences) are taken"));
  }
  free->open = true;
  return static_cast<int>(free - sequences_.begin());
}

int32_t SequenceStates::TakePage(uint64_t segment) {
  const int32_t page = pool_.TakePage();
  page_segments_[page] = segment;
  return page;
}

absl::StatusOr<int> SequenceStates::Open() {
  GF_ASSIGN_OR_RETURN(const int slot, TakeSlot());
  for (const Part& part : parts_) {
    if (part.part.per_token()) continue;
    if (part.initial) {
      backend_.Copy(part.initial, Slice(part.tensor, slot));
    } else {
      backend_.Zero(Slice(part.tensor, slot));
    }
  }
  return slot;
}

absl::StatusOr<int> SequenceStates::Fork(int slot) {
  const bool partial = PagesToFork(slot) > 0;
  if (partial && free_pages() == 0) return FullError();
  GF_ASSIGN_OR_RETURN(const int copy, TakeSlot());
  const Sequence& from = sequences_[slot];
  Sequence& to = sequences_[copy];
  to.position = from.position;
  to.gold_position = from.gold_position;
  to.pages.assign(from.pages.begin(), from.pages.end());
  // Both sequences go on writing into a last page that is not full, so each needs its own.
  if (partial) to.pages.back() = TakePage();
  for (size_t i = 0; i < to.pages.size(); ++i) {
    if (to.pages[i] == from.pages[i]) pool_.SharePage(to.pages[i]);
  }
  for (const Part& part : parts_) {
    if (!part.part.per_token()) {
      backend_.Copy(Slice(part.tensor, slot), Slice(part.tensor, copy));
    } else if (partial) {
      backend_.Copy(Slice(part.tensor, from.pages.back()), Slice(part.tensor, to.pages.back()));
    }
  }
  return copy;
}

const SequenceStates::Sequence* SequenceStates::Holder(const SegmentPages& text) const {
  if (text.segment == 0 || text.begin == text.end) return nullptr;
  const auto is_of = [&](int32_t page) { return page_segments_[page] == text.segment; };
  const auto found = std::find_if(sequences_.begin(), sequences_.end(), [&](const Sequence& sequence) {
    const std::vector<int32_t>& pages = sequence.pages;
    // With the first page, a sequence has all of them.
    return static_cast<int64_t>(pages.size()) >= text.end && is_of(pages[text.begin]) && is_of(pages[text.end - 1]) &&
           (text.begin == 0 || !is_of(pages[text.begin - 1]));
  });
  return found == sequences_.end() ? nullptr : &*found;
}

int64_t SequenceStates::PagesToOpen(int64_t position, absl::Span<const SegmentPages> texts) const {
  int64_t pages = PagesFor(position);
  if (pages == 0) return 0;
  for (const SegmentPages& text : texts) {
    if (Holder(text) != nullptr) pages -= text.end - text.begin;
  }
  return pages;
}

absl::StatusOr<int> SequenceStates::OpenAt(int64_t position, int64_t gold_position,
                                           absl::Span<const SegmentPages> texts) {
  GF_CHECK(gold_position >= 0 && gold_position <= position);
  if (PagesToOpen(position, texts) > free_pages()) return FullError();
  GF_ASSIGN_OR_RETURN(const int slot, TakeSlot());
  Sequence& sequence = sequences_[slot];
  const auto own_until = [&](int64_t end, uint64_t segment) {
    while (static_cast<int64_t>(sequence.pages.size()) < end) sequence.pages.push_back(TakePage(segment));
  };
  for (const SegmentPages& text : page_bytes_ > 0 ? texts : absl::Span<const SegmentPages>()) {
    GF_CHECK_LE(text.end, position / kCachePageTokens);
    own_until(text.begin, 0);
    GF_CHECK_EQ(text.begin, static_cast<int64_t>(sequence.pages.size()));
    if (const Sequence* const holder = Holder(text); holder != nullptr) {
      for (int64_t i = text.begin; i < text.end; ++i) {
        pool_.SharePage(holder->pages[i]);
        sequence.pages.push_back(holder->pages[i]);
      }
    } else {
      own_until(text.end, text.segment);
    }
  }
  Advance(slot, position);
  sequence.gold_position = gold_position;
  return slot;
}

int64_t SequenceStates::SharedTokens(int slot, int other) const {
  const std::vector<int32_t>&a = at(slot).pages, &b = at(other).pages;
  const auto parting = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  return (parting.first - a.begin()) * kCachePageTokens;
}

void SequenceStates::Close(int slot) {
  GF_CHECK(at(slot).open);
  Sequence& sequence = sequences_[slot];
  for (const int32_t page : sequence.pages) pool_.ReleasePage(page);
  sequence.pages.clear();
  sequence.position = sequence.gold_position = 0;
  sequence.open = false;
}

void SequenceStates::Walk(int slot, absl::FunctionRef<void(const StatePart& part, int64_t begin, Tensor values)> use,
                          int64_t from) const {
  const Sequence& sequence = at(slot);
  for (const Part& part : parts_) {
    if (!part.part.per_token()) {
      use(part.part, 0, Slice(part.tensor, slot));
      continue;
    }
    for (int64_t begin = from; begin < sequence.position;) {
      const int64_t page = begin / kCachePageTokens, first = page * kCachePageTokens;
      const int64_t end = std::min(first + kCachePageTokens, sequence.position);
      use(part.part, begin, PageRows(Slice(part.tensor, sequence.pages[page]), begin - first, end - first));
      begin = end;
    }
  }
}

}  // namespace goldfinch
