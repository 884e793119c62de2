#include "coordinator/grpc/call_reactor.h"

#include "base/log_limiter.h"
#include "coordinator/grpc/wire.h"

namespace goldfinch {
namespace {

// A larger message is handled on a thread of CallEnvironment::tokenizing, for it would take some milliseconds of one of
// gRPC's few threads. The tokenizer handles more than 100 MB a second.
constexpr size_t kInlineBytes = size_t{256} << 10;
// malloc keeps what a larger message took.
constexpr size_t kLargeBytes = size_t{1} << 20;
// A client must take its answer at least so fast, besides the time that it may stall.
constexpr double kAnswerBytesPerSecond = 256 << 10;

}  // namespace

void MessageReactor::Start() {
  self_ = shared_from_this();
  environment_->gate.Enter(self_, caller_.client, SteadySeconds());
}

void MessageReactor::Admit() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (stage_ != Stage::kWaiting) return;
  stage_ = Stage::kReading;
  StartRead(&message_);
}

void MessageReactor::OnReadDone(bool ok) {
  if (!ok) {
    if (!Fail()) return;
    const absl::Status status =
        context_->IsCancelled()
            ? absl::CancelledError("the client cancelled the call or disconnected")
            : absl::InvalidArgumentError("the call had no message, or one that is larger than max_message_bytes");
    return NotReceived(status);
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stage_ != Stage::kReading) return;
    stage_ = Stage::kReceived;
  }
  environment_->gate.Pause(this);
  if (message_.Length() > kLargeBytes) environment_->ReturnMemorySoon();
  Received();
}

bool MessageReactor::Fail() {
  bool waiting = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stage_ != Stage::kWaiting && stage_ != Stage::kReading) return false;
    waiting = stage_ == Stage::kWaiting;
    stage_ = Stage::kFailed;
  }
  // What has come of a message stays with gRPC until OnDone, and so does its place.
  if (waiting) environment_->gate.Leave(this, SteadySeconds());
  return true;
}

void MessageReactor::OnCancel() {
  if (Fail()) return NotReceived(absl::CancelledError("the client cancelled the call or disconnected"));
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stage_ != Stage::kReceived) return;
  }
  Gone();
}

void MessageReactor::Dismiss(const absl::Status& status) {
  if (Fail()) return NotReceived(status);
  // The lock is held so that OnDone does not end the context meanwhile.
  const std::lock_guard<std::mutex> lock(mutex_);
  if (stage_ == Stage::kReceived) Overdue(status);
}

void MessageReactor::Evict() {
  // Not even the status has gone through.
  const std::lock_guard<std::mutex> lock(mutex_);
  if (stage_ == Stage::kFailed) context_->TryCancel();
}

void MessageReactor::Release() {
  message_.Clear();
  environment_->gate.Leave(this, SteadySeconds());
}

void MessageReactor::OnDone() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stage_ = Stage::kDone;
  }
  Done();
  environment_->gate.Leave(this, SteadySeconds());
  const std::shared_ptr<MessageReactor> last = std::move(self_);  // goes when the function has ended
}

void StreamReactor::Received() {
  const auto begin = [this, self = shared_from_this()] {
    call_->Begin();
    Release();
  };
  if (message_.Length() > kInlineBytes) {
    environment_->tokenizing.Post(begin);
  } else {
    begin();
  }
}

void StreamReactor::Write(const google::protobuf::MessageLite& message) {
  bytes_.Clear();
  SerializeMessage(message, &bytes_);
  StartWrite(&bytes_);
}

void StreamReactor::End(const absl::Status& status) { Finish(ToGrpc(status)); }

void UnaryReactor::Received() {
  if (takes_long_ || message_.Length() > kInlineBytes) {
    environment_->tokenizing.Post([this, self = shared_from_this()] { Run(); });
  } else {
    Run();
  }
}

void UnaryReactor::Run() {
  work_(message_, &answer_, [this, self = shared_from_this()](const absl::Status& status) { Answer(status); });
}

void UnaryReactor::Answer(const absl::Status& status) {
  if (!status.ok()) {
    answer_.Clear();
    Release();
    return End(status);
  }
  message_.Clear();
  const size_t bytes = answer_.Length();
  if (bytes > kLargeBytes) environment_->ReturnMemorySoon();
  // The place is kept until the client has taken the answer.
  const double seconds = environment_->stall_timeout_seconds + static_cast<double>(bytes) / kAnswerBytesPerSecond;
  environment_->gate.Prolong(this, seconds, SteadySeconds());
  StartWriteAndFinish(&answer_, grpc::WriteOptions(), grpc::Status::OK);
}

void UnaryReactor::End(const absl::Status& status) {
  environment_->ReportFailure(method_, caller_, status);
  Finish(ToGrpc(status));
}

void UnaryReactor::Overdue(const absl::Status& status) {
  // The status cannot overtake the answer, so the stream is broken.
  environment_->ReportFailure(method_, caller_, status);
  context_->TryCancel();
}

}  // namespace goldfinch
