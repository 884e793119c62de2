#include "worker/shelf_session.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "base/safe_text.h"
#include "base/saturated.h"
#include "base/status.h"
#include "protos/cluster.pb.h"
#include "protos/cluster_protocol.h"

namespace goldfinch {
namespace {

using cluster::v1::FromShelf;
using cluster::v1::PartName;
using cluster::v1::Piece;
using cluster::v1::ToShelf;

constexpr int kShapeNumbersMax = 3;

std::optional<DType> ParseDType(const std::string& name) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBf16, DType::kU16, DType::kI32, DType::kInt8}) {
    if (name == Name(dtype)) return dtype;
  }
  return std::nullopt;
}

absl::StatusOr<std::pair<int, StatePartKind>> ReadName(const PartName& name) {
  const std::optional<StatePartKind> kind = ParseKindName(name.kind());
  if (!kind) return absl::InvalidArgumentError(absl::StrCat("kind ", Quoted(name.kind()), " is unknown"));
  return std::pair<int, StatePartKind>(
      static_cast<int>(std::min<uint32_t>(name.layer(), std::numeric_limits<int>::max())), *kind);
}

absl::StatusOr<StatePart> ReadPart(const Piece& message) {
  GF_ASSIGN_OR_RETURN(const auto name, ReadName(message.part()));
  StatePart part{.layer = name.first, .kind = name.second};
  const std::optional<DType> dtype = ParseDType(message.dtype());
  if (!dtype) {
    return absl::InvalidArgumentError(absl::StrCat("dtype is ", Quoted(message.dtype()), ", which is no type"));
  }
  part.dtype = *dtype;
  if (message.shape_size() > kShapeNumbersMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("shape has ", message.shape_size(), " numbers, the limit is ", kShapeNumbersMax));
  }
  const auto dim = [&](int axis) { return Saturated(message.shape(axis)); };
  switch (message.shape_size()) {
    case 1:
      part.shape = {dim(0)};
      break;
    case 2:
      part.shape = {dim(0), dim(1)};
      break;
    case 3:
      part.shape = {dim(0), dim(1), dim(2)};
      break;
    default:
      break;
  }
  return part;
}

std::string ErrorText(const absl::Status& status) {
  return SafeText(std::string(status.message()), kClusterTextBytesMax);
}

}  // namespace

ShelfSession::ShelfSession(ContextShelf& shelf, Send send, IsWanted is_wanted)
    : shelf_(shelf), send_(std::move(send)), is_wanted_(std::move(is_wanted)) {
  shelf_.AbandonPut();
}

ShelfSession::~ShelfSession() { shelf_.AbandonPut(); }

bool ShelfSession::Handle(const ToShelf& message) {
  if (message.has_put()) return HandlePut(message.put());
  if (message.has_fetch()) return HandleFetch(message.fetch());
  return true;
}

bool ShelfSession::HandlePut(const Piece& message) {
  const bool of_refused =
      refused_ && *refused_ == std::tuple(message.segment(), message.part().layer(), message.part().kind());
  if (of_refused && message.offset() != 0) return true;
  refused_.reset();
  absl::Status status;
  if (absl::StatusOr<StatePart> part = ReadPart(message); part.ok()) {
    status = shelf_.Put({.segment = message.segment(),
                         .part = *part,
                         .begin = Saturated(message.begin()),
                         .end = Saturated(message.end()),
                         .gold_position = Saturated(message.gold_position()),
                         .offset = Saturated(message.offset()),
                         .bytes = message.data(),
                         .crc32c = message.has_crc32c() ? std::optional<uint32_t>(message.crc32c()) : std::nullopt});
  } else {
    status = part.status();
  }
  if (status.ok() && !message.has_crc32c()) return true;
  if (!message.has_crc32c()) refused_.emplace(message.segment(), message.part().layer(), message.part().kind());
  FromShelf reply;
  cluster::v1::PutDone& done = *reply.mutable_put_done();
  done.set_segment(message.segment());
  done.mutable_part()->set_layer(message.part().layer());
  done.mutable_part()->set_kind(SafeText(message.part().kind(), kPartKindBytesMax));
  if (!status.ok()) done.set_error(ErrorText(status));
  done.set_full(absl::IsResourceExhausted(status));
  return send_(reply);
}

bool ShelfSession::HandleFetch(const cluster::v1::Fetch& message) {
  FromShelf reply;
  cluster::v1::FetchDone& done = *reply.mutable_fetch_done();
  done.set_number(message.number());
  const absl::Status status = [&]() -> absl::Status {
    GF_ASSIGN_OR_RETURN(const SavedSegment segment, shelf_.Find(message.segment()));
    const auto send = [&](const SavedPart& part) -> absl::Status {
      GF_RETURN_IF_ERROR(shelf_.Await(part, is_wanted_));
      if (!SendPart(message.segment(), segment, part)) return absl::CancelledError("the stream is broken");
      done.set_parts(done.parts() + 1);
      return absl::OkStatus();
    };
    if (message.parts().empty()) {
      for (const auto& part : segment.parts) GF_RETURN_IF_ERROR(send(*part));
      return absl::OkStatus();
    }
    for (const PartName& wanted : message.parts()) {
      GF_ASSIGN_OR_RETURN(const auto name, ReadName(wanted));
      const SavedPart* const part = segment.Find(name.first, name.second);
      if (part == nullptr) {
        return absl::NotFoundError(absl::StrCat("segment ", message.segment(), " has no ", KindName(name.second),
                                                " of layer ", name.first, " on the shelf"));
      }
      GF_RETURN_IF_ERROR(send(*part));
    }
    return absl::OkStatus();
  }();
  if (!status.ok()) done.set_error(ErrorText(status));
  return send_(reply);
}

bool ShelfSession::SendPart(uint64_t number, const SavedSegment& segment, const SavedPart& part) {
  FromShelf message;
  Piece& piece = *message.mutable_piece();
  piece.set_segment(number);
  piece.mutable_part()->set_layer(part.part.layer);
  piece.mutable_part()->set_kind(KindName(part.part.kind));
  piece.set_dtype(Name(part.part.dtype));
  for (int axis = 0; axis < part.part.shape.rank(); ++axis) piece.add_shape(part.part.shape[axis]);
  piece.set_begin(segment.begin);
  piece.set_end(segment.end);
  if (!part.part.per_token()) piece.set_gold_position(segment.gold_position);
  uint32_t crc32c = 0;
  const int64_t all = part.bytes();
  for (int64_t offset = 0;;) {
    const int64_t bytes = std::min<int64_t>(all - offset, kPieceBytesMax);
    piece.set_offset(offset);
    piece.clear_data();
    piece.mutable_data()->reserve(bytes);
    part.ForEachRange(offset, bytes,
                      [&](const char* data, int64_t count) { piece.mutable_data()->append(data, count); });
    crc32c = Crc32c(piece.data(), crc32c);
    offset += bytes;
    if (offset == all) piece.set_crc32c(crc32c);
    if (!send_(message)) return false;
    if (offset == all) return true;
  }
}

}  // namespace goldfinch
