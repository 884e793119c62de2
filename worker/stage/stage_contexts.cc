// How a Stage saves sequences to the host's memory, and opens them from there.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/stage_memory.h"
#include "base/status.h"
#include "worker/model/model_memory.h"
#include "worker/stage/stage.h"

namespace goldfinch {
namespace {

// Copies between a stage's memory and saved parts. Pages that lie behind each other are copied at once.
class PartCopies {
 public:
  enum class Direction { kToHost, kFromHost };
  PartCopies(Queue& queue, Direction direction) : queue_(queue), direction_(direction) {}
  ~PartCopies() { Flush(); }

  // `bytes` of the stage's memory at `memory` are those of `part` from `begin` on.
  void Add(const SavedPart& part, int64_t begin, void* memory, int64_t bytes) {
    if (part_ == &part && begin == begin_ + bytes_ && memory == memory_ + bytes_) {
      bytes_ += bytes;
      return;
    }
    Flush();
    part_ = &part;
    begin_ = begin;
    memory_ = static_cast<char*>(memory);
    bytes_ = bytes;
  }

 private:
  void Flush() {
    if (part_ == nullptr) return;
    part_->ForEachRange(begin_, bytes_, [this](char* host, int64_t bytes) {
      if (direction_ == Direction::kToHost) {
        queue_.Copy(memory_, host, bytes);
      } else {
        queue_.Copy(host, memory_, bytes);
      }
      memory_ += bytes;
    });
    part_ = nullptr;
  }

  Queue& queue_;
  const Direction direction_;
  const SavedPart* part_ = nullptr;
  int64_t begin_ = 0;
  char* memory_ = nullptr;
  int64_t bytes_ = 0;
};

// What a part takes of a snapshot buffer.
int64_t Aligned(int64_t bytes) { return (bytes + kSnapshotAlignment - 1) / kSnapshotAlignment * kSnapshotAlignment; }

// The full pages of each segment of a chain.
std::vector<SegmentPages> PagesOf(absl::Span<const SavedSegment* const> chain) {
  std::vector<SegmentPages> pages;
  for (const SavedSegment* segment : chain) {
    const int64_t begin = segment->begin / kCachePageTokens, end = segment->end / kCachePageTokens;
    if (segment->number != 0 && begin < end) pages.push_back({segment->number, begin, end});
  }
  return pages;
}

absl::Status CheckPart(const SavedSegment& segment, const StatePart& part) {
  const SavedPart* const saved = segment.Find(part.layer, part.kind);
  const int64_t rows = part.per_token() ? segment.end - segment.begin : 1;
  const auto error = [&](absl::StatusCode code, const auto&... what) {
    return absl::Status(code, absl::StrCat("the segment [", segment.begin, ", ", segment.end, ") ", what...,
                                           KindName(part.kind), " of layer ", part.layer));
  };
  if (saved == nullptr) return error(absl::StatusCode::kNotFound, "lacks ");
  if (saved->part != part || saved->rows != rows) {
    return error(absl::StatusCode::kInvalidArgument, "has ", saved->bytes(), " bytes of ", Name(saved->part.dtype),
                 ", expected ", rows * part.bytes(), " of ", Name(part.dtype), " for ");
  }
  return absl::OkStatus();
}

}  // namespace

void Stage::ReserveSaving() {
  if (backend_.host_accessible() || save_queue_ != nullptr) return;
  int64_t parts_bytes = 0;
  for (const StatePart& part : saved_parts_) {
    if (!part.per_token()) parts_bytes += Aligned(part.bytes());
  }
  const int64_t snapshot_bytes = SnapshotCopyBytes(MemoryOf(*model_, options_.cache_dtype, backend_),
                                                   MemorySettings(model_->first_layer, model_->last_layer, options_));
  GF_CHECK_LE(parts_bytes, snapshot_bytes);
  absl::StatusOr<std::shared_ptr<void>> memory =
      backend_.Allocate(kSnapshotCopies * snapshot_bytes, "snapshots that are saved");
  if (!memory.ok()) return;  // then steps wait for the copies
  for (int i = 0; i < kSnapshotCopies; ++i) {
    snapshot_buffers_[i].data = static_cast<char*>(memory->get()) + i * snapshot_bytes;
  }
  reserved_bytes_ += kSnapshotCopies * snapshot_bytes;
  memory_.push_back(*std::move(memory));
  save_queue_ = backend_.MakeQueue();
}

std::shared_ptr<const Mark> Stage::Save(int slot, ConstTensor logits, const SavedSegment& to) {
  const SequenceStates::Sequence& sequence = sequences_->at(slot);
  GF_CHECK(to.begin >= 0 && to.begin <= to.end && to.end == sequence.position);
  const auto has = [&](const StatePart& part) { return to.Find(part.layer, part.kind) != nullptr; };
  const bool saves_logits = extent_.has_head() && has(saved_parts_.back());
  GF_CHECK(!saves_logits || logits);
  for (const StatePart& part : saved_parts_) {
    if (!has(part)) continue;
    const absl::Status status = CheckPart(to, part);
    GF_CHECK(status.ok()) << status.message();
  }
  Queue& main = backend_.queue();
  Queue& queue = save_queue_ != nullptr ? *save_queue_ : main;
  SnapshotBuffer* buffer = nullptr;
  if (save_queue_ != nullptr) {
    // The next steps overwrite the snapshot, but not the rows of pages that are in use.
    buffer = &snapshot_buffers_[next_snapshot_buffer_];
    next_snapshot_buffer_ = (next_snapshot_buffer_ + 1) % static_cast<int>(kSnapshotCopies);
    if (buffer->copied != nullptr && !buffer->copied->reached()) main.WaitFor(*buffer->copied);
    char* copy = buffer->data;
    const auto keep = [&](ConstTensor values) {
      backend_.Copy(values, {copy, values.dtype, values.shape});
      copy += Aligned(values.bytes());
    };
    sequences_->Walk(
        slot,
        [&](const StatePart& part, int64_t /*begin*/, Tensor values) {
          if (!part.per_token() && has(part)) keep(values);
        },
        sequence.position);
    if (saves_logits) keep(logits);
    queue.WaitFor(*main.Record());
  }
  {
    PartCopies copies(queue, PartCopies::Direction::kToHost);
    char* copy = buffer != nullptr ? buffer->data : nullptr;
    const StatePart* current = nullptr;
    const SavedPart* saved = nullptr;  // the current part; null if it is not wanted
    const auto save = [&](const StatePart& part, int64_t row, ConstTensor values) {
      if (current != &part) saved = to.Find(part.layer, part.kind);
      current = &part;
      if (saved == nullptr) return;
      const void* from = values.data;
      if (!part.per_token() && copy != nullptr) {
        from = copy;
        copy += Aligned(values.bytes());
      }
      copies.Add(*saved, row * part.bytes(), const_cast<void*>(from), values.bytes());
    };
    sequences_->Walk(
        slot,
        [&](const StatePart& part, int64_t begin, Tensor values) {
          save(part, part.per_token() ? begin - to.begin : 0, values);
        },
        to.begin);
    if (saves_logits) save(saved_parts_.back(), 0, logits);
  }
  std::shared_ptr<const Mark> mark = queue.Record();
  if (buffer != nullptr) last_save_ = buffer->copied = mark;
  return mark;
}

void Stage::FinishSaves() {
  if (last_save_ != nullptr && !last_save_->reached()) backend_.queue().WaitFor(*last_save_);
  last_save_ = nullptr;
}

absl::Status Stage::CheckChain(absl::Span<const SavedSegment* const> chain) const {
  GF_CHECK(!chain.empty());
  const bool keeps_rows =
      std::any_of(saved_parts_.begin(), saved_parts_.end(), [](const StatePart& part) { return part.per_token(); });
  int64_t position = keeps_rows ? 0 : chain.front()->begin;
  for (const SavedSegment* segment : chain) {
    if (segment->begin != position || segment->end < position) {
      return absl::InvalidArgumentError(absl::StrCat("a segment of the positions [", segment->begin, ", ", segment->end,
                                                     ") cannot follow position ", position));
    }
    position = segment->end;
    for (const StatePart& part : saved_parts_) {
      if (part.kind == StatePartKind::kLogits) continue;
      if (part.per_token() || segment == chain.back()) GF_RETURN_IF_ERROR(CheckPart(*segment, part));
    }
  }
  if (position > options_.max_sequence_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("a sequence of ", position, " tokens, the limit is ", options_.max_sequence_tokens));
  }
  if (chain.back()->gold_position < 0 || chain.back()->gold_position > position) {
    return absl::InvalidArgumentError(
        absl::StrCat("gold_position of a snapshot is ", chain.back()->gold_position, ", its position is ", position));
  }
  return absl::OkStatus();
}

absl::StatusOr<int> Stage::Restore(absl::Span<const SavedSegment* const> chain) {
  GF_RETURN_IF_ERROR(CheckChain(chain));
  if (gold_tiers_) {
    for (const SavedSegment* segment : chain) {
      const SavedPart* const ids = segment->Find(shape_.finch_layers() - 1, StatePartKind::kIds);
      if (const std::shared_ptr<const Mark> mark = ids->Pending(); mark != nullptr) mark->Wait();
    }
    GF_RETURN_IF_ERROR(backend_.status());  // after a fault they may be anything
  }
  const std::vector<SegmentPages> texts = PagesOf(chain);
  const int64_t position = chain.back()->end, pages = sequences_->PagesToOpen(position, texts);
  if (gold_tiers_ && pages <= sequences_->free_pages()) gold_tiers_->MakeRoom(pages);
  GF_ASSIGN_OR_RETURN(const int slot, sequences_->OpenAt(position, chain.back()->gold_position, texts));
  if (gold_tiers_) {
    gold_tiers_->Open(slot);
    ShareKeptRows(slot);
    for (const SavedSegment* segment : chain) FillTables(slot, *segment);
  }
  const CopyEnd* waits_for = nullptr;  // parts that were saved together have one in common
  for (const SavedSegment* segment : chain) {
    for (const std::shared_ptr<const SavedPart>& part : segment->parts) {
      if (part->written == nullptr || part->written.get() == waits_for) continue;
      waits_for = part->written.get();
      if (const std::shared_ptr<const Mark> mark = part->Pending(); mark != nullptr) backend_.queue().WaitFor(*mark);
    }
  }
  PartCopies copies(backend_.queue(), PartCopies::Direction::kFromHost);
  const StatePart* current = nullptr;
  size_t index = 0;                  // of the segment in the chain
  const SavedPart* saved = nullptr;  // the current part there
  sequences_->Walk(slot, [&](const StatePart& part, int64_t begin, Tensor values) {
    if (!part.per_token()) {
      return copies.Add(*chain.back()->Find(part.layer, part.kind), 0, values.data, values.bytes());
    }
    if (sequences_->IsShared(slot, begin)) return;
    const auto find = [&] { saved = chain[index]->Find(part.layer, part.kind); };
    if (current != &part) {
      current = &part;
      index = 0;
      find();
    }
    const int64_t end = begin + values.dim(0);
    for (int64_t at = begin; at < end;) {  // a page may have rows of several segments
      for (; chain[index]->end <= at; find()) ++index;
      const int64_t rows = std::min(end, chain[index]->end) - at;
      copies.Add(*saved, (at - chain[index]->begin) * part.bytes(),
                 static_cast<char*>(values.data) + (at - begin) * part.bytes(), rows * part.bytes());
      at += rows;
    }
  });
  return slot;
}

// A new sequence has the kept rows of what it shares with another one: with that which has the most of them and, of
// equals, at the highest tier.
void Stage::ShareKeptRows(int slot) {
  int best = -1;
  int64_t most = 0;
  for (int other = 0; other < options_.max_sequences; ++other) {
    if (other == slot || !sequences_->is_open(other)) continue;
    const int64_t kept = std::min(gold_tiers_->kept(other), sequences_->SharedTokens(slot, other));
    if (kept < most || kept == 0) continue;
    if (kept == most && gold_tiers_->tier(other) <= gold_tiers_->tier(best)) continue;
    best = other;
    most = kept;
  }
  if (best >= 0) gold_tiers_->Fork(best, slot, most);
}

// Every id of the compressed cache has its rows in the tables.
void Stage::FillTables(int slot, const SavedSegment& segment) {
  // Ids in pages that others have, too, are in the tables because of them.
  int64_t begin = segment.begin;
  while (begin < segment.end && sequences_->IsShared(slot, begin))
    begin = (begin / kCachePageTokens + 1) * kCachePageTokens;
  if (begin >= segment.end) return;
  const SavedPart* const ids = segment.Find(shape_.finch_layers() - 1, StatePartKind::kIds);
  const int64_t skipped = (begin - segment.begin) * SizeOf(ids->part.dtype);
  const auto add = [&]<class Id>(Id /*type*/) {
    ids->ForEachRange(skipped, ids->bytes() - skipped, [&](const char* data, int64_t bytes) {
      for (int64_t at = 0; at < bytes; at += static_cast<int64_t>(sizeof(Id))) {
        Id id;
        std::memcpy(&id, data + at, sizeof(Id));
        if (id < tables_have_.size() && tables_have_[id]) continue;  // most are of this kind
        AddTableId(static_cast<int32_t>(id));
      }
    });
  };
  if (ids->part.dtype == DType::kU16) {
    add(uint16_t{});
  } else {
    add(uint32_t{});
  }
  FillNewTableRows();
}

}  // namespace goldfinch
