#include "worker/context_shelf.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/crc32c.h"
#include "base/status.h"
#include "protos/cluster_protocol.h"

namespace goldfinch {
namespace {

// A copy takes a millisecond or less, but for what is queued before it.
constexpr std::chrono::microseconds kAwaitPauseMin{50}, kAwaitPauseMax{5000};

template <class... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

std::string Text(const StatePart& part) { return absl::StrCat(KindName(part.kind), " of layer ", part.layer); }

bool IsOfSnapshot(const StatePart& part) { return !part.per_token(); }

void EraseSnapshot(SavedSegment* segment) {
  std::erase_if(segment->parts, [](const auto& part) { return IsOfSnapshot(part->part); });
  segment->gold_position = 0;
}

// Calls `use` with every element of the part, which has type T.
template <class T, class Use>
void ForEachElement(const SavedPart& part, Use use) {
  part.ForEachRange(0, part.bytes(), [&](const char* data, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += static_cast<int64_t>(sizeof(T))) {
      T value;
      std::memcpy(&value, data + at, sizeof(T));
      use(value);
    }
  });
}

template <class T>
bool AllFinite(const SavedPart& part, T exponent) {
  bool finite = true;
  ForEachElement<T>(part, [&](T bits) { finite &= (bits & exponent) != exponent; });
  return finite;
}

constexpr uint32_t kF32Exponent = 0x7F800000;
constexpr uint16_t kF16Exponent = 0x7C00, kBf16Exponent = 0x7F80;

// For rows of the compressed cache in kInt8. CompressedRowWidth says where their scales are.
bool ScalesFinite(const SavedPart& part) {
  const int64_t width = part.part.bytes() / SizeOf(DType::kBf16);
  bool finite = true;
  int64_t index = 0;
  ForEachElement<uint16_t>(part, [&](uint16_t bits) {
    if (++index % width == 0) finite &= (bits & kBf16Exponent) != kBf16Exponent;
  });
  return finite;
}

absl::Status CheckValues(const SavedPart& part, int64_t vocab_size) {
  bool finite = true;
  int64_t worst_id = 0;
  const auto take_id = [&](auto id) { worst_id = std::max(worst_id, static_cast<int64_t>(id)); };
  switch (part.part.dtype) {
    case DType::kF32:
      finite = AllFinite<uint32_t>(part, kF32Exponent);
      break;
    case DType::kF16:
      finite = AllFinite<uint16_t>(part, kF16Exponent);
      break;
    case DType::kBf16:
      finite = AllFinite<uint16_t>(part, kBf16Exponent);
      break;
    case DType::kInt8:
      finite = ScalesFinite(part);
      break;
    case DType::kU16:
      ForEachElement<uint16_t>(part, take_id);
      break;
    case DType::kI32:
      ForEachElement<uint32_t>(part, take_id);  // a negative one is above every limit
      break;
    case DType::kInt4:
    case DType::kU8:
      break;
  }
  if (!finite) return absl::DataLossError(absl::StrCat(Text(part.part), " has a number that is not finite"));
  if (worst_id >= vocab_size) {
    return absl::DataLossError(
        absl::StrCat(Text(part.part), " has token id ", worst_id, ", outside the vocabulary of ", vocab_size));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ContextShelf>> ContextShelf::Create(ComputeDevice& device, int64_t bytes) {
  GF_CHECK_GE(bytes, 0);
  std::shared_ptr<void> memory;
  if (bytes > 0) {
    GF_ASSIGN_OR_RETURN(memory, device.AllocateStaging(bytes, "contexts"));
  }
  return std::unique_ptr<ContextShelf>(new ContextShelf(device, std::move(memory), bytes));
}

ContextShelf::ContextShelf(const ComputeDevice& device, std::shared_ptr<void> memory, int64_t bytes)
    : device_(device), arena_(std::make_shared<HostArena>(std::move(memory), bytes)) {}

ContextShelf::~ContextShelf() {
  for (const Held& held : held_) held.until->Wait();
}

void ContextShelf::Clear() {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++epoch_;
  segments_.clear();
  accepted_ = {};
  LetGo();
}

void ContextShelf::SetParts(ShelfParts parts) {
  const std::lock_guard<std::mutex> lock(mutex_);
  accepted_ = std::move(parts);
}

void ContextShelf::LetGo() {
  std::erase_if(held_, [](const Held& held) {
    if (!held.until->reached()) return false;
    for (const auto& part : held.parts) part->Pending();  // gives back the mark of a copy that has ended
    return true;
  });
}

int64_t ContextShelf::used_bytes() {
  const std::lock_guard<std::mutex> lock(mutex_);
  LetGo();
  return arena_->bytes() - arena_->free_bytes();
}

absl::Status ContextShelf::FullError(int64_t bytes) const {
  return absl::ResourceExhaustedError(absl::StrCat("no room for ", bytes, " bytes on the shelf of ", arena_->bytes(),
                                                   " bytes, of which ", arena_->free_bytes(), " are free"));
}

std::shared_ptr<SavedPart> ContextShelf::MakePart(const StatePart& part, int64_t rows) const {
  auto made = std::make_unique<SavedPart>(SavedPart{.part = part, .rows = part.per_token() ? rows : 1});
  made->ranges = arena_->Take(made->bytes() + kPartOverheadBytes);
  if (made->ranges.empty()) return nullptr;
  return {made.release(), [arena = arena_](SavedPart* released) {
            arena->Release(released->ranges);
            delete released;
          }};
}

// ---- On the thread that runs the stage's steps ----

absl::Status ContextShelf::Save(uint64_t segment, int64_t begin, int64_t end, int64_t gold_position, bool logits,
                                absl::FunctionRef<std::shared_ptr<const Mark>(const SavedSegment& to)> copy) {
  SavedSegment to{.begin = begin, .end = end, .gold_position = gold_position, .number = segment};
  std::vector<std::shared_ptr<SavedPart>> made;
  uint64_t epoch = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    LetGo();
    epoch = epoch_;
    auto found = segments_.find(segment);
    if (found != segments_.end() && (found->second.begin != begin || found->second.end != end)) {
      // What came too late of a segment that the coordinator had dropped.
      segments_.erase(found);
      found = segments_.end();
    }
    for (const StatePart& part : accepted_.parts) {
      if (part.kind == StatePartKind::kLogits && !logits) continue;
      if (part.per_token() && found != segments_.end() && found->second.Find(part.layer, part.kind)) continue;
      made.push_back(MakePart(part, end - begin));
      if (made.back() == nullptr) return FullError((part.per_token() ? end - begin : 1) * part.bytes());
      to.parts.push_back(made.back());
    }
  }
  const std::shared_ptr<const Mark> written = copy(to);
  const bool under_way = !written->reached();
  if (under_way) {
    const auto copy_end = std::make_shared<const CopyEnd>(written);
    for (const std::shared_ptr<SavedPart>& part : made) part->written = copy_end;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  if (under_way) held_.push_back({written, to.parts});
  if (epoch != epoch_) return absl::OkStatus();  // there is nobody any more who could ask for it
  const auto [found, added] = segments_.try_emplace(segment, to);
  if (added) return absl::OkStatus();
  SavedSegment& there = found->second;
  EraseSnapshot(&there);
  there.gold_position = gold_position;
  for (const auto& part : to.parts) {
    // Another thread may have put the same rows meanwhile.
    if (there.Find(part->part.layer, part->part.kind) == nullptr) there.parts.push_back(part);
  }
  return absl::OkStatus();
}

absl::Status ContextShelf::Restore(
    absl::Span<const uint64_t> chain,
    absl::FunctionRef<absl::StatusOr<std::shared_ptr<const Mark>>(absl::Span<const SavedSegment* const>)> open) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool keeps_rows = std::any_of(accepted_.parts.begin(), accepted_.parts.end(),
                                        [](const StatePart& part) { return part.per_token(); });
    // Nothing is kept then of a segment that has no snapshot: the last one is all that it takes.
    if (!keeps_rows && !chain.empty()) chain.remove_prefix(chain.size() - 1);
  }
  std::vector<SavedSegment> segments;
  std::vector<const SavedSegment*> pointers;
  segments.reserve(chain.size());
  for (const uint64_t number : chain) {
    GF_ASSIGN_OR_RETURN(SavedSegment segment, Find(number));
    segments.push_back(std::move(segment));
    pointers.push_back(&segments.back());
  }
  GF_ASSIGN_OR_RETURN(std::shared_ptr<const Mark> read, open(pointers));
  if (read->reached()) return absl::OkStatus();
  const std::lock_guard<std::mutex> lock(mutex_);
  for (SavedSegment& segment : segments) held_.push_back({read, std::move(segment.parts)});
  return absl::OkStatus();
}

// ---- On any thread ----

void ContextShelf::Drop(uint64_t segment) {
  const std::lock_guard<std::mutex> lock(mutex_);
  segments_.erase(segment);
  LetGo();
}

void ContextShelf::DropSnapshot(uint64_t segment) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = segments_.find(segment);
  if (found == segments_.end()) return;
  EraseSnapshot(&found->second);
  if (found->second.parts.empty()) segments_.erase(found);
  LetGo();
}

absl::StatusOr<SavedSegment> ContextShelf::Find(uint64_t segment) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = segments_.find(segment);
  if (found == segments_.end()) return absl::NotFoundError(absl::StrCat("segment ", segment, " is not on the shelf"));
  return found->second;
}

absl::Status ContextShelf::Await(const SavedPart& part, absl::FunctionRef<bool()> wanted) const {
  const std::shared_ptr<const Mark> mark = part.Pending();
  if (mark == nullptr) return absl::OkStatus();
  for (auto pause = kAwaitPauseMin; !mark->reached(); pause = std::min(2 * pause, kAwaitPauseMax)) {
    if (!wanted()) return absl::CancelledError("nobody waits for it any more");
    std::this_thread::sleep_for(pause);
  }
  return device_.status();
}

// ---- From outside ----

absl::Status ContextShelf::CheckPiece(const PartPiece& piece) const {
  const auto known = std::find_if(accepted_.parts.begin(), accepted_.parts.end(), [&](const StatePart& part) {
    return part.layer == piece.part.layer && part.kind == piece.part.kind;
  });
  if (known == accepted_.parts.end()) return Invalid(Text(piece.part), " is no part of this stage");
  if (*known != piece.part) {
    return Invalid(Text(piece.part), " is ", Name(piece.part.dtype), " ", piece.part.shape.ToString(), ", expected ",
                   Name(known->dtype), " ", known->shape.ToString());
  }
  if (piece.begin < 0 || piece.begin > piece.end || piece.end > accepted_.max_sequence_tokens) {
    return Invalid("a segment of the positions [", piece.begin, ", ", piece.end, "), the limit is ",
                   accepted_.max_sequence_tokens);
  }
  if (IsOfSnapshot(piece.part) && (piece.gold_position < 0 || piece.gold_position > piece.end)) {
    return Invalid("gold_position is ", piece.gold_position, ", the limit is ", piece.end);
  }
  const int64_t rows = piece.part.per_token() ? piece.end - piece.begin : 1;
  const int64_t row_bytes = piece.part.bytes(), size = static_cast<int64_t>(piece.bytes.size());
  if (rows > arena_->bytes() / row_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(Text(piece.part), " has ", rows, " rows of ", row_bytes,
                                                     " bytes, the shelf has ", arena_->bytes(), " bytes"));
  }
  if (piece.bytes.size() > kPieceBytesMax) {
    return Invalid("a piece has ", size, " bytes, the limit is ", kPieceBytesMax);
  }
  if (piece.offset < 0 || piece.offset > rows * row_bytes - size) {
    return Invalid("a piece of ", size, " bytes at ", piece.offset, " of ", Text(piece.part), ", which has ",
                   rows * row_bytes);
  }
  const bool last = piece.offset + size == rows * row_bytes;
  if (last != piece.crc32c.has_value()) {
    return Invalid("the ", last ? "last piece of " : "piece in the middle of ", Text(piece.part),
                   last ? " lacks its crc32c" : " has a crc32c");
  }
  if (size == 0 && !last) return Invalid("an empty piece of ", Text(piece.part));
  return absl::OkStatus();
}

absl::Status ContextShelf::CheckAgrees(const PartPiece& piece) const {
  const auto found = segments_.find(piece.segment);
  if (found == segments_.end()) return absl::OkStatus();
  const SavedSegment& there = found->second;
  if (there.begin != piece.begin || there.end != piece.end) {
    return Invalid("segment ", piece.segment, " is of the positions [", there.begin, ", ", there.end, "), not of [",
                   piece.begin, ", ", piece.end, ")");
  }
  const bool has_snapshot =
      std::any_of(there.parts.begin(), there.parts.end(), [](const auto& part) { return IsOfSnapshot(part->part); });
  if (IsOfSnapshot(piece.part) && has_snapshot && there.gold_position != piece.gold_position) {
    return Invalid("gold_position is ", piece.gold_position, ", that of segment ", piece.segment, " is ",
                   there.gold_position);
  }
  return absl::OkStatus();
}

absl::Status ContextShelf::Put(const PartPiece& piece) {
  absl::Status status = PutPiece(piece);
  if (!status.ok()) incoming_.reset();
  return status;
}

absl::Status ContextShelf::PutPiece(const PartPiece& piece) {
  if (piece.offset == 0) incoming_.reset();
  int64_t vocab_size = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    LetGo();
    GF_RETURN_IF_ERROR(CheckPiece(piece));
    GF_RETURN_IF_ERROR(CheckAgrees(piece));
    vocab_size = accepted_.vocab_size;
    const auto found = segments_.find(piece.segment);
    if (found != segments_.end() && found->second.Find(piece.part.layer, piece.part.kind)) return absl::OkStatus();
    if (piece.offset == 0) {
      std::shared_ptr<SavedPart> part = MakePart(piece.part, piece.end - piece.begin);
      if (part == nullptr)
        return FullError((piece.part.per_token() ? piece.end - piece.begin : 1) * piece.part.bytes());
      incoming_ = {.segment = piece.segment,
                   .epoch = epoch_,
                   .part = std::move(part),
                   .begin = piece.begin,
                   .end = piece.end,
                   .gold_position = piece.gold_position};
    }
  }
  const bool continues = incoming_ && incoming_->segment == piece.segment && incoming_->part->part == piece.part &&
                         incoming_->begin == piece.begin && incoming_->end == piece.end &&
                         incoming_->gold_position == piece.gold_position;
  const int64_t expected = continues ? incoming_->received : 0;
  if (expected != piece.offset) {
    return Invalid("a piece at ", piece.offset, " of ", Text(piece.part), ", expected ", expected);
  }
  Incoming& incoming = *incoming_;
  std::string_view rest = piece.bytes;
  incoming.part->ForEachRange(piece.offset, static_cast<int64_t>(rest.size()), [&](char* data, int64_t bytes) {
    std::memcpy(data, rest.data(), bytes);
    rest.remove_prefix(bytes);
  });
  incoming.crc32c = Crc32c(piece.bytes, incoming.crc32c);
  incoming.received += static_cast<int64_t>(piece.bytes.size());
  if (!piece.crc32c) return absl::OkStatus();
  if (*piece.crc32c != incoming.crc32c) {
    return absl::DataLossError(
        absl::StrCat("crc32c of ", Text(piece.part), " is ", incoming.crc32c, ", expected ", *piece.crc32c));
  }
  GF_RETURN_IF_ERROR(CheckValues(*incoming.part, vocab_size));
  const Incoming finished = *std::exchange(incoming_, std::nullopt);
  return Finish(finished, piece);
}

absl::Status ContextShelf::Finish(const Incoming& incoming, const PartPiece& piece) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (incoming.epoch != epoch_) return absl::CancelledError("the shelf was cleared meanwhile");
  GF_RETURN_IF_ERROR(CheckAgrees(piece));
  SavedSegment& segment = segments_[piece.segment];
  segment.begin = piece.begin;
  segment.end = piece.end;
  segment.number = piece.segment;
  if (IsOfSnapshot(piece.part)) segment.gold_position = piece.gold_position;
  if (segment.Find(piece.part.layer, piece.part.kind) == nullptr) segment.parts.push_back(incoming.part);
  return absl::OkStatus();
}

void ContextShelf::AbandonPut() { incoming_.reset(); }

}  // namespace goldfinch
