#include "coordinator/grpc/message_stream.h"

#include <chrono>
#include <utility>

#include "base/check.h"
#include "coordinator/grpc/peer.h"
#include "google/protobuf/message_lite.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

// The time in which a worker must take the last messages of a stream that the coordinator ends.
constexpr std::chrono::seconds kCloseTime(5);

}  // namespace

MessageStream::MessageStream(ByteReactor* reactor, grpc::ByteBuffer* incoming, grpc::CallbackServerContext* context,
                             const MessageStreamLimits& limits)
    : limits_(limits), address_(PeerHostPort(*context)), reactor_(reactor), incoming_(incoming), context_(context) {}

void MessageStream::Write(const google::protobuf::MessageLite& message) {
  grpc::ByteBuffer serialized;
  SerializeMessage(message, &serialized);
  const auto bytes = static_cast<int64_t>(serialized.Length());
  const std::lock_guard<std::mutex> lock(mutex_);
  if (finished_ || closing_) return;
  if (queued_bytes_ + bytes > limits_.queue_bytes_max) return CutOff(bytes);
  queue_.push_back(std::move(serialized));
  queued_bytes_ += bytes;
  WriteNext();
}

void MessageStream::End(const grpc::Status& status) {
  const std::lock_guard<std::mutex> lock(mutex_);
  EndSoon(status);
}

void MessageStream::Cancel() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (context_ != nullptr && !finished_) context_->TryCancel();
}

void MessageStream::MessageHandled() {
  const std::lock_guard<std::mutex> lock(mutex_);
  GF_CHECK(!unhandled_.empty());
  unhandled_bytes_ -= unhandled_.front();
  unhandled_.pop_front();
  if (paused_) Read();
}

void MessageStream::Took(int64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  unhandled_.push_back(bytes);
  unhandled_bytes_ += bytes;
}

void MessageStream::ReadNext() {
  const std::lock_guard<std::mutex> lock(mutex_);
  Read();
}

int64_t MessageStream::WriteDone(bool ok) {
  const std::lock_guard<std::mutex> lock(mutex_);
  writing_ = false;
  const auto bytes = static_cast<int64_t>(queue_.front().Length());
  queued_bytes_ -= bytes;
  queue_.pop_front();
  if (ok) {
    WriteNext();
  } else {
    Drop();
    Finish();
  }
  return bytes;
}

void MessageStream::Ended() {
  const std::lock_guard<std::mutex> lock(mutex_);
  Drop();
  EndSoon(grpc::Status::OK);
}

void MessageStream::Gone() {
  const std::lock_guard<std::mutex> lock(mutex_);
  context_ = nullptr;
}

void MessageStream::Read() {
  paused_ = static_cast<int>(unhandled_.size()) >= limits_.unhandled_messages_max ||
            unhandled_bytes_ >= limits_.unhandled_bytes_max;
  // The reactor lives at least until Finish.
  if (!paused_ && !finished_) reactor_->StartRead(incoming_);
}

void MessageStream::WriteNext() {
  if (writing_ || finished_) return;
  if (queue_.empty()) {
    if (closing_) Finish();
    return;
  }
  writing_ = true;
  reactor_->StartWrite(&queue_.front());
}

void MessageStream::EndSoon(const grpc::Status& status) {
  if (finished_ || closing_) return;
  closing_ = true;
  status_ = status;
  WriteNext();
  if (finished_) return;
  close_by_.Set(std::chrono::system_clock::now() + kCloseTime, [weak = weak_from_this()](bool) {
    if (const std::shared_ptr<MessageStream> stream = weak.lock()) stream->Cancel();
  });
}

// Drops the messages that wait, except the one that is being written.
void MessageStream::Drop() {
  while (queue_.size() > (writing_ ? 1 : 0)) {
    queued_bytes_ -= static_cast<int64_t>(queue_.back().Length());
    queue_.pop_back();
  }
}

void MessageStream::Finish() {
  if (finished_) return;
  finished_ = true;
  reactor_->Finish(status_);
}

void MessageStream::CutOff(int64_t bytes) {
  spdlog::warn("{} {} does not read: {} bytes wait and {} more came, the limit is {}: it is cut off", limits_.what,
               address_, queued_bytes_, bytes, limits_.queue_bytes_max);
  closing_ = true;
  Drop();
  // The read and the write under way then end with an error.
  if (context_ != nullptr) context_->TryCancel();
}

}  // namespace goldfinch
