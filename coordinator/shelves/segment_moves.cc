#include "coordinator/shelves/segment_moves.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/crc32c.h"
#include "base/safe_text.h"
#include "base/status.h"
#include "coordinator/store/segment_reader.h"
#include "coordinator/store/segment_writer.h"
#include "protos/cluster.pb.h"
#include "protos/cluster_protocol.h"

namespace goldfinch {
namespace {

using cluster::v1::FromShelf;
using cluster::v1::PartName;
using cluster::v1::Piece;
using cluster::v1::ToShelf;
using Kind = StatePartKind;
using What = SegmentSection::What;

constexpr auto kPieceBytes = static_cast<int64_t>(kPieceBytesMax);
// Parts that are fetched with one message: who waits urgently for the stream waits no longer than for these.
constexpr int64_t kFetchBytes = int64_t{8} << 20;

// A part on its way, and the section of the file that has its bytes.
struct WirePart {
  int section = -1;
  Piece head;  // its first fields, which are those of all its pieces
  int64_t bytes = 0;
  bool in_snapshot = false;
};

std::string NameOf(const PartName& part) { return absl::StrCat(SafeText(part.kind(), 64), " of layer ", part.layer()); }

// The parts of a segment that a stage has, in the order of the sections.
std::vector<WirePart> PartsOf(const ShelfGroup& group, const ShelfStage& stage, const SegmentSpec& segment,
                              const SegmentLayout& layout, uint64_t number) {
  std::vector<WirePart> parts;
  const auto rows =
      std::find_if(stage.parts.begin(), stage.parts.end(), [](const auto& part) { return part.kind == Kind::kRows; });
  for (size_t i = 0; i < layout.sections.size(); ++i) {
    const SegmentSection& section = layout.sections[i];
    WirePart wire{static_cast<int>(i), {}, section.bytes, section.in_snapshot};
    PartName& name = *wire.head.mutable_part();
    switch (section.what) {
      case What::kIds:
        if (rows == stage.parts.end()) continue;
        name.set_layer(rows->layer);
        name.set_kind(KindName(Kind::kIds));
        break;
      case What::kPart: {
        const ContextPart& part = segment.model.parts[section.part];
        if (std::find(stage.parts.begin(), stage.parts.end(), part) == stage.parts.end()) continue;
        name.set_layer(part.layer);
        name.set_kind(KindName(part.kind));
        for (const int64_t axis : part.shape) wire.head.add_shape(axis);
        break;
      }
      case What::kLogits:
        if (!stage.has_logits) continue;
        name.set_layer(group.logits_layer);
        name.set_kind(KindName(Kind::kLogits));
        wire.head.add_shape(segment.model.vocab_size);
        break;
    }
    wire.head.set_segment(number);
    wire.head.set_dtype(Name(section.type));
    wire.head.set_begin(segment.begin);
    wire.head.set_end(segment.end);
    if (section.in_snapshot) wire.head.set_gold_position(segment.gold_position);
    parts.push_back(std::move(wire));
  }
  return parts;
}

// ---- From the shelves ----

template <class... Parts>
absl::Status Lied(ShelfLease* lease, const Parts&... parts) {
  lease->Break();
  return absl::DataLossError(absl::StrCat("worker ", lease->name(), " sent ", parts...));
}

// Whether the piece is the next one of the part, of which `received` bytes have come. It may have any gold_position if
// `gold_position` is null.
absl::Status CheckPiece(ShelfLease* lease, const WirePart& part, int64_t received, const Piece& piece,
                        bool any_gold_position) {
  const Piece& head = part.head;
  const auto size = static_cast<int64_t>(piece.data().size());
  const auto bad = [&](const auto&... what) { return Lied(lease, NameOf(head.part()), " with ", what...); };
  if (piece.segment() != head.segment() || piece.part().layer() != head.part().layer() ||
      piece.part().kind() != head.part().kind()) {
    return Lied(lease, NameOf(piece.part()), " of segment ", piece.segment(), ", asked for was ", NameOf(head.part()),
                " of segment ", head.segment());
  }
  if (piece.dtype() != head.dtype()) return bad("the type ", SafeText(piece.dtype(), 64), ", expected ", head.dtype());
  if (!std::equal(piece.shape().begin(), piece.shape().end(), head.shape().begin(), head.shape().end())) {
    return bad("another shape than it has");
  }
  if (piece.begin() != head.begin() || piece.end() != head.end()) {
    return bad("the positions [", piece.begin(), ", ", piece.end(), "), expected [", head.begin(), ", ", head.end(),
               ")");
  }
  if (!any_gold_position && piece.gold_position() != head.gold_position()) {
    return bad("gold_position ", piece.gold_position(), ", expected ", head.gold_position());
  }
  if (static_cast<int64_t>(piece.offset()) != received) {
    return bad("a piece at ", piece.offset(), ", expected one at ", received);
  }
  if (size > part.bytes - received) return bad(received, " + ", size, " bytes, it has ", part.bytes);
  const bool last = received + size == part.bytes;
  if (!last && size != kPieceBytes) return bad("a piece of ", size, " bytes, expected ", kPieceBytes);
  if (last != piece.has_crc32c()) return bad(last ? "no crc32c in the last piece" : "a crc32c before its end");
  return absl::OkStatus();
}

using TakeBytes = absl::FunctionRef<absl::Status(const WirePart& part, const Piece& piece)>;

// Asks a worker for parts and gives their bytes to `take`, piece by piece.
absl::Status Fetch(ShelfLease* lease, absl::Span<const WirePart> parts, bool any_gold_position, TakeBytes take) {
  constexpr uint64_t kNumber = 1;  // a stream has one Fetch at a time
  ToShelf message;
  cluster::v1::Fetch& fetch = *message.mutable_fetch();
  fetch.set_number(kNumber);
  fetch.set_segment(parts[0].head.segment());
  for (const WirePart& part : parts) *fetch.add_parts() = part.head.part();
  lease->Send(message);
  size_t current = 0;
  int64_t received = 0;
  uint32_t crc32c = 0;
  for (;;) {
    absl::StatusOr<FromShelf> next = lease->Next();
    if (!next.ok()) {
      lease->Break();  // what was asked for is still coming
      return next.status();
    }
    if (next->has_fetch_done()) {
      const cluster::v1::FetchDone& done = next->fetch_done();
      if (done.number() != kNumber || received > 0 || done.parts() != current ||
          (current < parts.size()) == done.error().empty()) {
        return Lied(lease, "a FetchDone of ", done.parts(), " parts, of which ", current, " have come");
      }
      if (done.error().empty()) return absl::OkStatus();
      return absl::NotFoundError(
          absl::StrCat("worker ", lease->name(), ": ", SafeText(done.error(), kClusterTextBytesMax)));
    }
    if (!next->has_piece() || current == parts.size()) return Lied(lease, "what nobody has asked for");
    const Piece& piece = next->piece();
    const WirePart& part = parts[current];
    GF_RETURN_IF_ERROR(CheckPiece(lease, part, received, piece, any_gold_position));
    crc32c = Crc32c(piece.data(), crc32c);
    received += static_cast<int64_t>(piece.data().size());
    if (piece.has_crc32c() && piece.crc32c() != crc32c) {
      return Lied(lease, NameOf(part.head.part()), " with a wrong crc32c");
    }
    if (absl::Status taken = take(part, piece); !taken.ok()) {
      lease->Break();
      return taken;
    }
    if (!piece.has_crc32c()) continue;
    ++current;
    received = 0;
    crc32c = 0;
  }
}

// Where the GOLD layers are in the snapshot is known from its parts alone, and the file begins with it: so one of them
// is fetched only for this, the smallest.
absl::StatusOr<int64_t> FetchGoldPosition(const SegmentSpec& spec, uint64_t number, MoveRun* run) {
  GF_ASSIGN_OR_RETURN(const SegmentLayout layout, LayOut(spec));
  const ShelfStage* best_stage = nullptr;
  std::optional<WirePart> best;
  for (const ShelfStage& stage : run->group->stages) {
    for (WirePart& part : PartsOf(*run->group, stage, spec, layout, number)) {
      if (!part.in_snapshot || (best && best->bytes <= part.bytes)) continue;
      best = std::move(part);
      best_stage = &stage;
    }
  }
  if (!best) return spec.end;  // there is nothing that anybody could run again
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<ShelfLease> lease,
                      run->streams->Lease(*best_stage, /*urgent=*/false, *run->cancelled));
  int64_t gold_position = 0;
  GF_RETURN_IF_ERROR(
      Fetch(lease.get(), absl::MakeSpan(&*best, 1), /*any_gold_position=*/true, [&](const auto&, const Piece& piece) {
        gold_position = static_cast<int64_t>(piece.gold_position());  // at most piece.end, which is that of the segment
        return absl::OkStatus();
      }));
  return gold_position;
}

// Copies the rows that the store has already.
absl::Status CopyRows(SegmentReader* from, SegmentWriter* to, MoveRun* run) {
  std::string bytes;
  for (size_t i = 1; i < to->layout().sections.size(); ++i) {
    const SegmentSection& section = to->layout().sections[i];
    if (section.in_snapshot) break;
    for (int64_t at = 0; at < section.bytes; at += kPieceBytes) {
      bytes.resize(std::min(kPieceBytes, section.bytes - at));
      GF_RETURN_IF_ERROR(from->Read(static_cast<int>(i), at, absl::MakeSpan(bytes)));
      GF_RETURN_IF_ERROR(to->Append(static_cast<int>(i), bytes));
      if (*run->cancelled) return absl::CancelledError("the move was given up");
      run->pace(nullptr, static_cast<int64_t>(bytes.size()));
    }
  }
  return absl::OkStatus();
}

absl::Status SaveParts(absl::Span<const WirePart> parts, const ShelfStage& stage, SegmentWriter* writer, MoveRun* run) {
  while (!parts.empty()) {
    size_t count = 1;
    int64_t bytes = parts[0].bytes;
    while (count < parts.size() && bytes + parts[count].bytes <= kFetchBytes) bytes += parts[count++].bytes;
    GF_ASSIGN_OR_RETURN(const std::unique_ptr<ShelfLease> lease,
                        run->streams->Lease(stage, /*urgent=*/false, *run->cancelled));
    const auto take = [&](const WirePart& part, const Piece& piece) -> absl::Status {
      GF_RETURN_IF_ERROR(writer->Append(part.section, piece.data()));
      const auto size = static_cast<int64_t>(piece.data().size());
      run->bytes += size;
      run->pace(lease.get(), size);
      return absl::OkStatus();
    };
    GF_RETURN_IF_ERROR(Fetch(lease.get(), parts.first(count), /*any_gold_position=*/false, take));
    parts.remove_prefix(count);
  }
  return absl::OkStatus();
}

// ---- To the shelves ----

// Puts a stage's parts of a segment on its shelf.
class Putter {
 public:
  // `counted`: the sections whose bytes have been counted, for another stage.
  Putter(ShelfLease* lease, SegmentReader* reader, MoveRun* run, std::vector<bool>* counted)
      : lease_(lease), reader_(reader), run_(run), counted_(counted) {}

  absl::Status Put(absl::Span<const WirePart> parts) {
    absl::Status status;
    for (const WirePart& part : parts) {
      status = PutPart(part);
      if (!status.ok()) break;
    }
    // Nothing may be under way when the move is over: what was sent whole is waited for, given up or not; a part that
    // was not ends with the stream.
    if (!status.ok()) lease_->IgnoreCancel();
    while (!waiting_.empty() && !lease_->broken()) {
      absl::StatusOr<FromShelf> next = lease_->Next();
      const absl::Status handled = next.ok() ? HandleAnswer(*next) : next.status();
      if (handled.ok()) continue;
      if (status.ok()) status = handled;
      if (absl::IsCancelled(handled)) {
        lease_->IgnoreCancel();
        continue;
      }
      lease_->Break();
    }
    if (mid_part_) lease_->Break();
    return status.ok() ? refusal_ : status;
  }

 private:
  absl::Status PutPart(const WirePart& part) {
    current_ = &part;
    ToShelf message;
    Piece& piece = *message.mutable_put();
    piece = part.head;
    for (int64_t offset = 0;;) {
      GF_RETURN_IF_ERROR(AwaitRoom());
      const int64_t size = std::min(kPieceBytes, part.bytes - offset);
      piece.set_offset(offset);
      piece.mutable_data()->resize(size);
      GF_RETURN_IF_ERROR(
          reader_->Read(part.section, offset, absl::MakeSpan(piece.mutable_data()->data(), piece.data().size())));
      offset += size;
      mid_part_ = offset < part.bytes;
      if (!mid_part_) {
        piece.set_crc32c(reader_->Checksum(part.section));
        waiting_.push_back(&part);
      }
      lease_->Send(message);
      if (!mid_part_) return absl::OkStatus();
    }
  }

  absl::Status AwaitRoom() {
    for (;;) {
      while (std::optional<FromShelf> message = lease_->TryNext()) GF_RETURN_IF_ERROR(HandleAnswer(*message));
      GF_RETURN_IF_ERROR(refusal_);
      if (*run_->cancelled) return absl::CancelledError("the move was given up");
      if (lease_->HasRoom()) return absl::OkStatus();
      if (absl::Status room = lease_->AwaitRoom(); !room.ok()) {
        if (!absl::IsCancelled(room)) lease_->Break();
        return room;
      }
    }
  }

  absl::Status HandleAnswer(const FromShelf& message) {
    if (!message.has_put_done()) return Lied(lease_, "what nobody has asked for");
    const cluster::v1::PutDone& done = message.put_done();
    const bool refused = !done.error().empty();
    // Answers come in order, and a part may be refused before its end.
    const WirePart* const part = !waiting_.empty() ? waiting_.front() : (refused && mid_part_ ? current_ : nullptr);
    if (part == nullptr || done.segment() != part->head.segment() || done.part().layer() != part->head.part().layer() ||
        done.part().kind() != part->head.part().kind()) {
      return Lied(lease_, "a PutDone of ", NameOf(done.part()), " out of turn");
    }
    if (waiting_.empty()) {
      mid_part_ = false;  // what is on its way of it is ignored, and nothing more is sent
    } else {
      waiting_.pop_front();
    }
    if (!refused) {
      if (!(*counted_)[part->section]) run_->bytes += part->bytes;
      (*counted_)[part->section] = true;
    } else if (refusal_.ok()) {
      const std::string error = absl::StrCat("worker ", lease_->name(), " does not take ", NameOf(done.part()), ": ",
                                             SafeText(done.error(), kClusterTextBytesMax));
      refusal_ = done.full() ? absl::ResourceExhaustedError(error) : absl::FailedPreconditionError(error);
    }
    return absl::OkStatus();
  }

  ShelfLease* const lease_;
  SegmentReader* const reader_;
  MoveRun* const run_;
  std::vector<bool>* const counted_;
  const WirePart* current_ = nullptr;
  std::deque<const WirePart*> waiting_;  // sent, and not answered
  bool mid_part_ = false;                // the current part has begun, and its last piece was not sent
  absl::Status refusal_;                 // of the first part that the worker did not take
};

}  // namespace

absl::Status RunSave(const SegmentToSave& segment, SegmentStore* store, MoveRun* run) {
  std::unique_ptr<SegmentReader> rows;
  if (const std::optional<StoredSegment> there = store->Find(segment.key)) {
    if (there->has_snapshot || !segment.snapshot) return absl::OkStatus();
    absl::StatusOr<std::unique_ptr<SegmentReader>> reader = store->Load(segment.key);
    if (reader.ok()) rows = *std::move(reader);  // else it has been deleted meanwhile, or is damaged
  }
  SegmentSpec spec;
  spec.model = run->group->model;
  spec.name_space = segment.name_space;
  spec.parent = segment.parent;
  spec.begin = segment.begin;
  spec.end = segment.end;
  spec.has_snapshot = segment.snapshot;
  spec.has_logits = segment.snapshot && segment.logits;
  if (static_cast<int64_t>(segment.ids.size()) != spec.tokens()) {
    return absl::InvalidArgumentError(absl::StrCat("segment ", segment.segment, " has ", segment.ids.size(),
                                                   " ids for ", spec.tokens(), " positions"));
  }
  if (spec.has_snapshot) {
    GF_ASSIGN_OR_RETURN(spec.gold_position, FetchGoldPosition(spec, segment.segment, run));
  }
  if (rows != nullptr && !CheckSameModel(rows->segment().model, spec.model).ok()) rows = nullptr;
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<SegmentWriter> writer, store->Save(spec, segment.key));
  GF_RETURN_IF_ERROR(writer->AppendIds(segment.ids));
  run->bytes += writer->layout().sections[0].bytes;
  if (rows != nullptr) GF_RETURN_IF_ERROR(CopyRows(rows.get(), writer.get(), run));
  std::vector<bool> saved(writer->layout().sections.size());
  saved[0] = true;
  for (const ShelfStage& stage : run->group->stages) {
    std::vector<WirePart> parts = PartsOf(*run->group, stage, spec, writer->layout(), segment.segment);
    std::erase_if(parts,
                  [&](const WirePart& part) { return saved[part.section] || (rows != nullptr && !part.in_snapshot); });
    GF_RETURN_IF_ERROR(SaveParts(parts, stage, writer.get(), run));
    for (const WirePart& part : parts) saved[part.section] = true;
  }
  if (*run->cancelled) return absl::CancelledError("the move was given up");
  return writer->Commit().status();
}

absl::Status RunBring(const SegmentToBring& segment, SegmentStore* store, MoveRun* run) {
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<SegmentReader> reader, store->Load(segment.key));
  const SegmentSpec& spec = reader->segment();
  GF_RETURN_IF_ERROR(CheckSameModel(spec.model, run->group->model));
  if ((segment.contents & kSnapshot) != 0 && !spec.has_snapshot) {
    return absl::NotFoundError(absl::StrCat("segment ", Hex(segment.key), " has no snapshot in the store"));
  }
  std::vector<bool> counted(reader->layout().sections.size());
  for (const ShelfStage& stage : run->group->stages) {
    std::vector<WirePart> parts = PartsOf(*run->group, stage, spec, reader->layout(), segment.segment);
    // The rows of a tuned state are empty, but have to be there.
    const SegmentContents contents = spec.tokens() == 0 ? kRowsAndSnapshot : segment.contents;
    std::erase_if(parts,
                  [&](const WirePart& part) { return (contents & (part.in_snapshot ? kSnapshot : kRows)) == 0; });
    if (parts.empty()) continue;
    GF_ASSIGN_OR_RETURN(const std::unique_ptr<ShelfLease> lease,
                        run->streams->Lease(stage, /*urgent=*/true, *run->cancelled));
    GF_RETURN_IF_ERROR(Putter(lease.get(), reader.get(), run, &counted).Put(parts));
  }
  return absl::OkStatus();
}

}  // namespace goldfinch
