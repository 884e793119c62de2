// The part of H2Guard that counts the bytes of messages, and the direction of the server.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/status.h"
#include "coordinator/front/h2_frames.h"
#include "coordinator/front/h2_guard.h"

namespace goldfinch {
namespace {

using namespace h2;  // NOLINT(google-build-using-namespace): the words of HTTP/2

constexpr int kPrefixBytes = 5;  // before each message: a flag and the length
// A client whose DATA frames are shorter, though more of the message follows, sends them for our cost.
constexpr size_t kShortDataBytes = 64;
// The code of gRPC.
constexpr int kResourceExhausted = 8;
// An honest client sends one or two for each DATA frame that it gets.
constexpr double kWindowUpdatesForData = 10;

absl::Status TooMany(absl::string_view what) { return absl::ResourceExhaustedError(what); }

}  // namespace

// ---- Bodies ----

absl::Status H2Guard::BeginData(const Frame& frame, std::string_view lead, double now) {
  GF_RETURN_IF_ERROR(CheckData(frame));
  window_ -= frame.length;
  if (const auto found = streams_.find(frame.stream); found != streams_.end()) found->second.window -= frame.length;
  const size_t padding = lead.empty() ? 0 : static_cast<uint8_t>(lead[0]);
  if (lead.size() + padding > frame.length) return absl::InvalidArgumentError("DATA is padded beyond its end");
  data_stream_ = frame.stream;
  data_left_ = frame.length - lead.size();
  data_padding_ = padding;
  data_bytes_ = data_left_ - padding;
  data_ends_stream_ = (frame.flags & kEndStream) != 0;
  data_begins_message_ = false;
  return data_left_ == 0 ? EndData(now) : absl::OkStatus();
}

absl::Status H2Guard::PassData(std::string_view bytes, double now, std::string* to_server) {
  const size_t content_left = data_left_ - std::min(data_left_, data_padding_);
  const auto found = streams_.find(data_stream_);
  if (found != streams_.end() && content_left > 0) {
    TakeBody(data_stream_, found->second, bytes.substr(0, content_left), now);
    if (found->second.too_long) {
      Fail(data_stream_,
           absl::StrCat("the message has ", found->second.length, " bytes, the limit is ", limits_.message_bytes_max));
      if (for_client_.size() > kOwnBytesMax) return TooMany("too many messages that are too long");
    }
    if (parked_bytes_ > limits_.connection_bytes_max) {
      return TooMany(absl::StrCat(parked_bytes_, " bytes of requests that are not complete, the limit is ",
                                  limits_.connection_bytes_max));
    }
  }
  to_server->append(bytes);
  data_left_ -= bytes.size();
  return data_left_ == 0 ? EndData(now) : absl::OkStatus();
}

absl::Status H2Guard::EndData(double now) {
  const auto found = streams_.find(data_stream_);
  const bool within_message = found != streams_.end() && found->second.awaited && !data_begins_message_;
  if (data_ends_stream_) {
    if (found != streams_.end()) EndClient(data_stream_, found->second);
    return absl::OkStatus();
  }
  if (data_bytes_ >= kShortDataBytes || (data_bytes_ > 0 && !within_message) || short_data_.Take(now)) {
    return absl::OkStatus();
  }
  return TooMany(absl::StrCat("too many DATA frames of less than ", kShortDataBytes, " bytes within a message"));
}

int64_t H2Guard::Held(const Stream& stream) { return std::max(stream.received, stream.reserved) + stream.done; }

void H2Guard::Settle(const Stream& stream, int64_t held, int64_t parked) {
  const int64_t more = Held(stream) - held;
  if (more > 0) budget_->Take(more);
  if (more < 0) budget_->Release(-more);
  parked_bytes_ += Parked(stream) - parked;
}

void H2Guard::SetAwaited(Stream& stream, bool awaited) {
  awaited_streams_ += static_cast<int>(awaited) - static_cast<int>(stream.awaited);
  stream.awaited = awaited;
}

void H2Guard::TakeBody(uint32_t id, Stream& stream, std::string_view bytes, double now) {
  int64_t held = Held(stream), parked = Parked(stream);
  while (!bytes.empty()) {
    if (!stream.awaited) {
      SetAwaited(stream, true);
      stream.checked_at = ClientTime(now);
      stream.progress = 0;
    }
    const bool in_prefix = stream.prefix_bytes < kPrefixBytes;
    const size_t wanted = in_prefix ? kPrefixBytes - stream.prefix_bytes : stream.left;
    const std::string_view part = bytes.substr(0, wanted);
    bytes.remove_prefix(part.size());
    stream.received += static_cast<int64_t>(part.size());
    stream.progress += static_cast<int64_t>(part.size());
    if (in_prefix) {
      for (const char byte : part) {
        if (stream.prefix_bytes++ > 0) stream.length = stream.length << 8 | static_cast<uint8_t>(byte);
      }
      if (stream.prefix_bytes < kPrefixBytes) break;
      Settle(stream, held, parked);
      BeginMessage(id, stream);
      held = Held(stream);
      parked = Parked(stream);
    } else {
      stream.left -= static_cast<int64_t>(part.size());
    }
    if (stream.left == 0) EndMessage(id, stream);
  }
  Settle(stream, held, parked);
}

void H2Guard::BeginMessage(uint32_t id, Stream& stream) {
  stream.left = stream.length;
  data_begins_message_ = true;
  const int64_t whole = kPrefixBytes + int64_t{stream.length};
  stream.too_long = stream.length > limits_.message_bytes_max;
  // A short one fits into the window that a stream has at first.
  if (whole <= kStreamWindow || stream.too_long) return;
  if (budget_->Reserve(whole - stream.received)) {
    stream.reserved = whole;
  } else {
    stream.waiting = true;
    waiting_.insert(id);
  }
}

void H2Guard::EndMessage(uint32_t id, Stream& stream) {
  StopWaiting(id, stream);
  stream.done += stream.received;
  stream.received = stream.reserved = 0;
  stream.prefix_bytes = 0;
  stream.length = 0;
  SetAwaited(stream, false);
}

void H2Guard::EndClient(uint32_t id, Stream& stream) {
  const int64_t held = Held(stream), parked = Parked(stream);
  StopWaiting(id, stream);
  SetAwaited(stream, false);
  stream.client_done = true;
  stream.received = stream.reserved = stream.done = 0;
  Settle(stream, held, parked);
}

void H2Guard::StopWaiting(uint32_t id, Stream& stream) {
  if (!stream.waiting) return;
  stream.waiting = false;
  waiting_.erase(id);
  if (waiting_.empty()) budget_->Withdraw();
  if (stream.withheld > 0) AppendWindowUpdate(id, stream.withheld, &for_client_);
  stream.window += static_cast<int64_t>(stream.withheld);
  stream.withheld = 0;
}

bool H2Guard::HeldUp(uint32_t id, const Stream& stream) const {
  if (stream.waiting) return true;
  if (data_left_ > 0 && data_stream_ == id) return false;  // it owes the rest of a frame that it has begun
  return stream.window <= 0 || window_ <= 0;
}

void H2Guard::Answered(uint32_t id) {
  const auto found = streams_.find(id);
  if (found == streams_.end() || found->second.done == 0) return;
  const int64_t held = Held(found->second), parked = Parked(found->second);
  found->second.done = 0;
  Settle(found->second, held, parked);
}

void H2Guard::Erase(uint32_t id) {
  const auto found = streams_.find(id);
  if (found == streams_.end()) return;
  budget_->Release(Held(found->second));
  parked_bytes_ -= Parked(found->second);
  SetAwaited(found->second, false);
  if (waiting_.erase(id) > 0 && waiting_.empty()) budget_->Withdraw();
  streams_.erase(found);
  budget_->CloseCall();
}

void H2Guard::Fail(uint32_t id, const std::string& message) {
  const bool answered = streams_.at(id).answered;
  Erase(id);
  AppendEnds(id, answered, message);
}

void H2Guard::AppendEnds(uint32_t id, bool answered, const std::string& message) {
  AppendReset(id, kCancel, &for_server_);
  if (answered) {
    AppendReset(id, kEnhanceYourCalm, &for_client_);  // which gRPC's clients take for RESOURCE_EXHAUSTED
  } else {
    AppendFailure(id, kResourceExhausted, message, &for_client_);
  }
}

// ---- From the server ----

size_t H2Guard::FromServer(std::string_view bytes, std::string* to_client) {
  std::string_view rest = bytes;
  while (true) {
    if (server_left_ > 0) {
      if (rest.empty()) break;
      const std::string_view part = rest.substr(0, server_left_);
      to_client->append(part);
      server_left_ -= part.size();
      rest.remove_prefix(part.size());
      continue;
    }
    FlushToClient(to_client);
    if (rest.size() < kHeaderBytes) break;
    const Frame frame = ParseHeader(rest);
    if (frame.type == kWindowUpdate) {
      const size_t needed = kHeaderBytes + frame.length;
      if (rest.size() < needed) break;
      Answered(frame.stream);
      const auto found = streams_.find(frame.stream);
      const uint32_t more = ReadNumber(rest.substr(kHeaderBytes, 4));
      if (found != streams_.end() && found->second.waiting) {
        found->second.withheld += more;
      } else {
        if (frame.stream == 0) window_ += more;
        if (found != streams_.end()) found->second.window += more;
        to_client->append(rest.substr(0, needed));
      }
      rest.remove_prefix(needed);
      continue;
    }
    if (frame.type == kData) {
      window_updates_.GiveBack(kWindowUpdatesForData);
      pings_.GiveBack(1);  // clients measure by pings how fast data comes
    }
    if (frame.type == kPing && (frame.flags & kAck) == 0) ++pings_open_;
    if (frame.type == kHeaders || frame.type == kContinuation) {
      server_header_open_ = (frame.flags & kEndHeaders) == 0;
    }
    if (frame.type == kData || frame.type == kHeaders) {
      Answered(frame.stream);
      const auto found = streams_.find(frame.stream);
      if (found != streams_.end() && !std::exchange(found->second.answered, true)) {
        resets_.GiveBack(1);  // a call that was answered may be cancelled
      }
      if ((frame.flags & kEndStream) != 0) Erase(frame.stream);
    }
    if (frame.type == kReset) Erase(frame.stream);
    to_client->append(rest.substr(0, kHeaderBytes));
    rest.remove_prefix(kHeaderBytes);
    server_left_ = frame.length;
  }
  return bytes.size() - rest.size();
}

// ---- Time and room ----

absl::Status H2Guard::Tick(double now, std::string* to_server, std::string* to_client) {
  const double time = ClientTime(now);
  if (frame_began_at_ >= 0 && time - frame_began_at_ > limits_.header_seconds) {
    return TooMany(absl::StrCat(header_stream_ != 0 ? "a header block" : "a frame", " that is not complete after ",
                                limits_.header_seconds, " s"));
  }
  if (awaited_streams_ > 0) GF_RETURN_IF_ERROR(ExpireMessages(time));
  FlushToServer(to_server);
  FlushToClient(to_client);
  return absl::OkStatus();
}

absl::Status H2Guard::ExpireMessages(double time) {
  std::vector<uint32_t> expired;
  for (auto& [id, stream] : streams_) {
    if (!stream.awaited) continue;
    const bool held_up = HeldUp(id, stream);
    if (!held_up && time - stream.checked_at < limits_.body_seconds) continue;
    if (!held_up && stream.progress < limits_.body_progress_bytes) expired.push_back(id);
    stream.checked_at = time;
    stream.progress = 0;
  }
  for (const uint32_t id : expired) {
    if (data_left_ > 0 && data_stream_ == id) {
      return TooMany(absl::StrCat("a DATA frame that made no progress for ", limits_.body_seconds, " s"));
    }
    Fail(id, absl::StrCat("less than ", limits_.body_progress_bytes, " bytes of the message came in ",
                          limits_.body_seconds, " s"));
    ++streams_expired_;
  }
  return absl::OkStatus();
}

void H2Guard::Retry(double now, std::string* to_client) {
  while (!waiting_.empty()) {
    const uint32_t id = *waiting_.begin();
    Stream& stream = streams_.at(id);
    const int64_t whole = kPrefixBytes + int64_t{stream.length};
    if (!budget_->Reserve(whole - stream.received)) break;
    stream.reserved = whole;
    stream.checked_at = ClientTime(now);
    stream.progress = 0;
    StopWaiting(id, stream);
  }
  FlushToClient(to_client);
}

void H2Guard::FlushToServer(std::string* to_server) {
  if (for_server_.empty() || !opened_ || data_left_ > 0 || header_stream_ != 0) return;
  to_server->append(for_server_);
  for_server_.clear();
}

void H2Guard::FlushToClient(std::string* to_client) {
  if (for_client_.empty() || server_left_ > 0 || server_header_open_) return;
  to_client->append(for_client_);
  for_client_.clear();
}

std::string H2Guard::GoAway(const absl::Status& reason) const {
  std::string frame;
  if (server_left_ > 0 || server_header_open_ || preface_bytes_ < kPreface.size()) return frame;
  const uint32_t code = absl::IsOutOfRange(reason)          ? kFrameSizeError
                        : absl::IsResourceExhausted(reason) ? kEnhanceYourCalm
                                                            : kProtocolError;
  AppendGoAway(stream_last_, code, std::string(reason.message()), &frame);
  return frame;
}

}  // namespace goldfinch
