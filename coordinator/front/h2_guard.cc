#include "coordinator/front/h2_guard.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/status.h"
#include "coordinator/front/h2_frames.h"

namespace goldfinch {
namespace {

using namespace h2;  // NOLINT(google-build-using-namespace): the words of HTTP/2

absl::Status Malformed(uint8_t type, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(NameOf(type), " ", what));
}

absl::Status TooMany(absl::string_view what) { return absl::ResourceExhaustedError(what); }

}  // namespace

H2Guard::H2Guard(const FrontLimits& limits, CallBudget* budget, double now)
    : limits_(limits),
      budget_(budget),
      // Honest clients reset many streams at once when they stop, and seldom otherwise.
      resets_(/*per_second=*/100, /*capacity=*/1000, now),
      // Each reset of a call that has just begun takes gRPC some 25 us.
      reset_pace_(/*per_second=*/1000, /*capacity=*/50, now),
      settings_(1, 100, now),
      pings_(20, 200, now),
      priorities_(100, 1000, now),
      short_data_(100, 1000, now),
      window_updates_(100, 10000, now) {}

H2Guard::~H2Guard() {
  for (const auto& [id, stream] : streams_) {
    budget_->Release(Held(stream));
    budget_->CloseCall();
  }
}

// ---- From the client ----

absl::StatusOr<size_t> H2Guard::FromClient(std::string_view bytes, double now, std::string* to_server) {
  std::string_view rest = bytes;
  GF_RETURN_IF_ERROR(CheckPreface(&rest, to_server));
  resume_at_ = -1;
  bool passed = false;  // the end of a frame, so that what comes now began now
  const bool within_block = header_stream_ != 0;
  while (true) {
    if (data_left_ > 0) {
      if (rest.empty()) break;
      const std::string_view part = rest.substr(0, data_left_);
      GF_RETURN_IF_ERROR(PassData(part, now, to_server));
      rest.remove_prefix(part.size());
      passed = true;
      continue;
    }
    FlushToServer(to_server);
    if (preface_bytes_ < kPreface.size() || rest.size() < kHeaderBytes) break;
    const Frame frame = ParseHeader(rest);
    const size_t lead = (frame.flags & kPadded) != 0 ? 1 : 0;  // the length of a DATA frame's padding
    const size_t needed = kHeaderBytes + (frame.type == kData ? lead : frame.length);
    if (frame.length > kPayloadBytesMax) {
      return absl::OutOfRangeError(
          absl::StrCat(NameOf(frame.type), " of ", frame.length, " bytes, the limit is ", kPayloadBytesMax));
    }
    GF_RETURN_IF_ERROR(CheckLayout(frame));
    if (rest.size() < needed || MustWait(frame, now)) break;
    if (frame.type == kData) {
      GF_RETURN_IF_ERROR(BeginData(frame, rest.substr(kHeaderBytes, lead), now));
    } else {
      GF_RETURN_IF_ERROR(CheckRate(frame, now));
      GF_RETURN_IF_ERROR(CheckFrame(frame, rest.substr(kHeaderBytes, frame.length), now));
    }
    to_server->append(rest.substr(0, needed));
    rest.remove_prefix(needed);
    passed = true;
  }
  if (header_stream_ != 0) {
    if (frame_began_at_ < 0 || !within_block) frame_began_at_ = ClientTime(now);
  } else if (rest.empty()) {
    frame_began_at_ = -1;
  } else if (passed || frame_began_at_ < 0) {
    frame_began_at_ = ClientTime(now);
  }
  return bytes.size() - rest.size();
}

bool H2Guard::MustWait(const Frame& frame, double now) {
  if (frame.type != kReset) return false;
  const auto found = streams_.find(frame.stream);
  const bool unanswered = found != streams_.end() && !found->second.answered;
  if (!unanswered || reset_pace_.Take(now)) return false;
  resume_at_ = now + std::max(reset_pace_.SecondsUntil(1, now), 1e-3);
  return true;
}

absl::Status H2Guard::CheckPreface(std::string_view* bytes, std::string* to_server) {
  const std::string_view expected = kPreface.substr(preface_bytes_);
  const std::string_view part = bytes->substr(0, expected.size());
  if (part != expected.substr(0, part.size())) {
    return absl::InvalidArgumentError("the connection does not begin as HTTP/2 does");
  }
  preface_bytes_ += part.size();
  to_server->append(part);
  bytes->remove_prefix(part.size());
  return absl::OkStatus();
}

absl::Status H2Guard::CheckLayout(const Frame& frame) const {
  if (!opened_ && (frame.type != kSettings || (frame.flags & kAck) != 0)) {
    return Malformed(frame.type, "comes before the settings");
  }
  if (header_stream_ != 0 && (frame.type != kContinuation || frame.stream != header_stream_)) {
    return Malformed(frame.type, "comes within a header block");
  }
  if (header_stream_ == 0 && frame.type == kContinuation) return Malformed(frame.type, "without an open header block");
  const bool of_connection = frame.type == kSettings || frame.type == kPing || frame.type == kGoAway;
  const bool of_stream = frame.type <= kReset || frame.type == kContinuation;
  if ((of_connection && frame.stream != 0) || (of_stream && frame.stream == 0)) {
    return Malformed(frame.type, absl::StrCat("of stream ", frame.stream));
  }
  bool fits = true;
  switch (frame.type) {
    case kData:
      fits = (frame.flags & kPadded) == 0 || frame.length >= 1;
      break;
    case kHeaders:
      fits = frame.length >= ((frame.flags & kPadded) != 0 ? 1U : 0U) + ((frame.flags & kHasPriority) != 0 ? 5U : 0U);
      break;
    case kPriority:
      fits = frame.length == 5;
      break;
    case kReset:
    case kWindowUpdate:
      fits = frame.length == 4;
      break;
    case kSettings:
      fits = (frame.flags & kAck) != 0 ? frame.length == 0 : frame.length % 6 == 0;
      break;
    case kPing:
      fits = frame.length == 8;
      break;
    case kGoAway:
      fits = frame.length >= 8;
      break;
    case kPushPromise:
      return Malformed(frame.type, "comes from a client");
    default:
      break;
  }
  if (!fits) return absl::OutOfRangeError(absl::StrCat(NameOf(frame.type), " of ", frame.length, " bytes"));
  if (frame.type == kContinuation) return CheckContinuation(frame);
  return absl::OkStatus();
}

absl::Status H2Guard::CheckContinuation(const Frame& frame) const {
  if (continuations_ >= limits_.continuations_max) {
    return TooMany(absl::StrCat("a header block in more than ", limits_.continuations_max, " CONTINUATION frames"));
  }
  if (header_block_bytes_ + frame.length > limits_.header_block_bytes_max) {
    return TooMany(absl::StrCat("a header block of ", header_block_bytes_ + frame.length, " bytes, the limit is ",
                                limits_.header_block_bytes_max));
  }
  return absl::OkStatus();
}

absl::Status H2Guard::CheckRate(const Frame& frame, double now) {
  TokenBucket* bucket = &priorities_;
  switch (frame.type) {
    case kData:
    case kHeaders:
    case kContinuation:
      return absl::OkStatus();
    case kPing:
      if ((frame.flags & kAck) != 0 && pings_open_ > 0) {
        --pings_open_;
        return absl::OkStatus();
      }
      bucket = &pings_;
      break;
    case kReset:
      bucket = &resets_;
      break;
    case kSettings:
    case kGoAway:
      bucket = &settings_;
      break;
    case kWindowUpdate:
      bucket = &window_updates_;
      break;
    default:
      break;
  }
  if (bucket->Take(now)) return absl::OkStatus();
  return TooMany(absl::StrCat("too many ", NameOf(frame.type), " frames: ", bucket->capacity(), " at once and ",
                              bucket->per_second(), " a second are allowed"));
}

absl::Status H2Guard::CheckData(const Frame& frame) const {
  if (frame.stream > stream_last_) return Malformed(kData, absl::StrCat("of stream ", frame.stream, ", which is idle"));
  const auto found = streams_.find(frame.stream);
  // The server may have ended the stream while the frame was under way; gRPC drops it then.
  if (found == streams_.end() || !found->second.client_done) return absl::OkStatus();
  return Malformed(kData, "comes after the end of its stream");
}

absl::Status H2Guard::CheckFrame(const Frame& frame, std::string_view payload, double now) {
  switch (frame.type) {
    case kHeaders: {
      const size_t fixed = ((frame.flags & kPadded) != 0 ? 1 : 0) + ((frame.flags & kHasPriority) != 0 ? 5 : 0);
      const size_t padding = (frame.flags & kPadded) != 0 ? static_cast<uint8_t>(payload[0]) : 0;
      if (fixed + padding > payload.size()) return Malformed(kHeaders, "is padded beyond its end");
      return BeginHeaders(frame, now);
    }
    case kContinuation:
      ++continuations_;
      header_block_bytes_ += frame.length;
      if ((frame.flags & kEndHeaders) != 0) header_stream_ = 0;
      return absl::OkStatus();
    case kReset:
      if (frame.stream > stream_last_)
        return Malformed(kReset, absl::StrCat("of stream ", frame.stream, ", which is idle"));
      Erase(frame.stream);
      return absl::OkStatus();
    case kSettings:
      opened_ = true;
      return absl::OkStatus();
    default:
      return absl::OkStatus();
  }
}

absl::Status H2Guard::BeginHeaders(const Frame& frame, double now) {
  const bool ends = (frame.flags & kEndStream) != 0, opens = frame.stream > stream_last_;
  if (frame.length > limits_.header_block_bytes_max) {
    return TooMany(
        absl::StrCat("a header block of ", frame.length, " bytes, the limit is ", limits_.header_block_bytes_max));
  }
  if (opens) {
    if (frame.stream % 2 == 0)
      return Malformed(kHeaders, absl::StrCat("opens stream ", frame.stream, ", which is even"));
    GF_RETURN_IF_ERROR(BeginCall(frame.stream, now));
  }
  const auto found = streams_.find(frame.stream);
  if (found != streams_.end()) {
    if (found->second.client_done) return Malformed(kHeaders, "comes after the end of its stream");
    if (!ends && !opens) return Malformed(kHeaders, "is a second one that does not end its stream");
    if (ends) EndClient(frame.stream, found->second);
  }
  continuations_ = 0;
  header_block_bytes_ = frame.length;
  header_stream_ = (frame.flags & kEndHeaders) != 0 ? 0 : frame.stream;
  return absl::OkStatus();
}

absl::Status H2Guard::BeginCall(uint32_t id, double now) {
  if (static_cast<int64_t>(streams_.size()) >= limits_.streams_max) {
    return TooMany(absl::StrCat("more than ", limits_.streams_max, " streams are open"));
  }
  stream_last_ = id;
  if (const absl::Status status = budget_->OpenCall(); !status.ok()) {
    ++streams_refused_;
    // gRPC gets the headers all the same, for later ones refer to them. That costs as much as a call that is reset.
    if (!resets_.Take(now) || for_client_.size() > kOwnBytesMax) {
      return TooMany(absl::StrCat("too many calls beyond the limit: ", status.message()));
    }
    AppendEnds(id, /*answered=*/false, std::string(status.message()));
    return absl::OkStatus();
  }
  streams_[id].checked_at = ClientTime(now);
  ++awaited_streams_;
  return absl::OkStatus();
}

}  // namespace goldfinch
