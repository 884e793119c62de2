#include "coordinator/calls/call.h"

#include <malloc.h>

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "coordinator/calls/validation.h"
#include "coordinator/metrics.h"
#include "google/protobuf/message_lite.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

// The client's timer for the deadline may fire a little before the server's: its cancellation then arrives first.
constexpr double kDeadlineSlackSeconds = 0.05;
// How long large messages may follow each other before memory is given back, which looks at all of the free memory.
constexpr double kReturnMemorySeconds = 5;

// The value of a key=value pair in the log. An id that could be read as several words is quoted.
std::string LogValue(const std::string& text) {
  if (!text.empty() && text.find_first_of(" \"=\\") == std::string::npos) return text;
  return absl::StrCat("\"", absl::CEscape(text), "\"");
}

// "client=alice peer=192.0.2.7"
std::string NameOf(const Caller& caller) {
  return absl::StrCat("client=", LogValue(caller.client->name), " peer=", caller.peer);
}

void LogFailure(const char* method, const std::string& who, const absl::Status& status, LogLimiter* limiter) {
  const std::optional<std::string> more = limiter->Take();
  if (!more) return;
  spdlog::info("method={} code={} {} message=\"{}\"{}", method, absl::StatusCodeToString(status.code()), who,
               absl::CEscape(status.message()), *more);
}

// The seconds that are left; nothing if the client set no deadline.
std::optional<double> SecondsUntil(const std::optional<std::chrono::system_clock::time_point>& deadline) {
  if (!deadline) return std::nullopt;
  return std::chrono::duration<double>(*deadline - std::chrono::system_clock::now()).count();
}

}  // namespace

uint64_t RandomNumber() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

void CallEnvironment::ReportFailure(const char* method, const Caller& caller, const absl::Status& status) {
  metrics->CountFailure(method, status.code());
  LogFailure(method, NameOf(caller), status, &failure_log);
}

void CallEnvironment::ReportStranger(const char* method, const std::string& peer, const absl::Status& status) {
  metrics->CountFailure(method, status.code());
  LogFailure(method, absl::StrCat("peer=", peer), status, &stranger_log);
}

void CallEnvironment::ReturnMemorySoon() {
  if (returning_memory.exchange(true)) return;
  tokenizing.PostAfter(kReturnMemorySeconds, [this] {
    returning_memory = false;
    malloc_trim(0);
  });
}

Call::Call(CallEnvironment* environment, const char* method, Caller caller, Deadline deadline, CallStream* stream)
    : environment_(environment), method_(method), caller_(std::move(caller)), deadline_(deadline), stream_(stream) {}

void Call::Begin() {
  std::shared_ptr<const ServedModel> model = environment_->dispatcher->model();
  if (model == nullptr) return Refuse(NoModel());
  int64_t buffer_max = 0;
  absl::StatusOr<Request> request = Prepare(std::move(model), &buffer_max);
  if (!request.ok()) return Refuse(request.status());
  if (request->id.empty()) request->id = absl::StrFormat("%016x", RandomNumber());
  request->client = caller_.client;
  request->deadline_seconds = SecondsUntil(deadline_);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    id_ = request->id;
    buffer_max_ = buffer_max;
  }
  Submit(*std::move(request));
}

void Call::Refuse(const absl::Status& status) {
  GF_CHECK(!status.ok());
  const std::lock_guard<std::mutex> lock(mutex_);
  GF_CHECK(!done_);
  done_ = status;
  FinishIfDone();
}

void Call::Submit(Request request) {
  if (const absl::Status status = CheckPriority(request); !status.ok()) return Refuse(status);
  LogStart(request);
  const absl::StatusOr<uint64_t> number = environment_->dispatcher->Submit(std::move(request), shared_from_this());
  if (!number.ok()) return Refuse(number.status());
  std::optional<absl::Status> cancel;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    number_ = *number;
    cancel = cancel_;
  }
  // A cancellation may have arrived before the dispatcher had given the request a number.
  if (cancel) environment_->dispatcher->Cancel(*number, *cancel);
  ResumeIfDrained();
}

void Call::OnDone(const absl::Status& status, const RequestUsage& usage) {
  const std::lock_guard<std::mutex> lock(mutex_);
  GF_CHECK(!done_) << "OnDone twice";
  done_ = status;
  usage_ = usage;
  Wake();
}

void Call::NoteOutput() {
  if (!first_output_) first_output_ = Clock::now();
}

void Call::Wake() {
  // After a stall the write under way may never end, but the request does.
  if (scheduled_ || (writing_ && !stalled_)) return;
  scheduled_ = true;
  environment_->writing.Post([self = shared_from_this()] { self->Pump(); });
}

RequestSink::Verdict Call::PauseIfFull() {
  if (buffered_ + in_flight_ < buffer_max_) return Verdict::kContinue;
  paused_ = true;
  return Verdict::kPause;
}

void Call::Pump() {
  std::optional<Clock::time_point> first_output;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    scheduled_ = false;
    // A stream that is gone ends its write soon; one that stalls may not.
    if (stalled_ || (gone_ && !writing_)) return FinishIfDone();
    if (writing_ || finished_) return;
    if (!TakeMessage()) return FinishIfDone();
    if (logged_ && !first_output_logged_) first_output = first_output_;
    first_output_logged_ = first_output_.has_value();
    writing_ = true;
    write_start_ = Clock::now();
    if (!watched_) Watch(environment_->stall_timeout_seconds);
  }
  // Without the lock, which the coordinator's thread may want meanwhile. The stream cannot end before this write does.
  if (first_output) LogFirstOutput(std::chrono::duration<double>(*first_output - start_).count());
  write_bytes_ = static_cast<int64_t>(message().ByteSizeLong());
  stream_->Write(message());
}

void Call::WriteDone(bool ok) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    writing_ = false;
    in_flight_ = 0;
    owed_seconds_ += std::chrono::duration<double>(Clock::now() - write_start_).count();
    taken_bytes_ += write_bytes_;
    if (!ok) gone_ = true;
  }
  if (!ok) Cancel(GoneStatus());
  // This thread belongs to the door: it may go on with the next write.
  Pump();
  ResumeIfDrained();
}

void Call::ResumeIfDrained() {
  uint64_t number = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!paused_ || !number_ || done_ || buffered_ + in_flight_ > buffer_max_ / 2) return;
    paused_ = false;
    number = *number_;
  }
  environment_->dispatcher->Resume(number);
}

void Call::ClientGone() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    gone_ = true;
  }
  Cancel(GoneStatus());
  Pump();
}

absl::Status Call::GoneStatus() const {
  const std::optional<double> seconds = SecondsUntil(deadline_);
  if (seconds && *seconds < kDeadlineSlackSeconds) return absl::DeadlineExceededError("the deadline has passed");
  return absl::CancelledError("the client cancelled the call or disconnected");
}

void Call::Cancel(absl::Status status) {
  std::optional<uint64_t> number;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (done_ || cancel_) return;
    cancel_ = status;
    number = number_;
  }
  if (number) environment_->dispatcher->Cancel(*number, std::move(status));
}

void Call::FinishIfDone() {
  if (!done_ || finished_) return;
  finished_ = true;
  Report();
  stream_->End(*done_);
}

// Whether a request is logged is decided once, so that the log has all the lines that it comes to or none.
void Call::LogStart(const Request& request) {
  const std::optional<std::string> more = environment_->request_log.Take();
  if (!more) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    logged_ = true;
  }
  const std::string wants =
      request.generate ? absl::StrFormat("max_tokens=%d n=%d", request.generate->max_tokens, request.generate->samples)
                       : absl::StrFormat("continuations=%d score_prompt=%d", request.score->continuations.size(),
                                         request.score->score_prompt);
  spdlog::info("request={} method={} event=start prompt_tokens={} {} priority={} {}{}", LogValue(request.id), method_,
               request.prompt.size(), wants, request.priority, NameOf(caller_), *more);
}

void Call::LogFirstOutput(double seconds) const {
  spdlog::info("request={} method={} event=first_token seconds={:.3f} {}", LogValue(id_), method_, seconds,
               NameOf(caller_));
}

void Call::Report() const {
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  if (!done_->ok()) environment_->metrics->CountFailure(method_, done_->code());
  std::optional<std::string> more = "";
  if (!logged_ && (done_->ok() || !(more = environment_->failure_log.Take()))) return;
  // What a request has done that failed is not known.
  const auto rate = [this](int64_t tokens, double in_seconds) {
    return done_->ok() && in_seconds > 0 ? static_cast<double>(std::max<int64_t>(tokens, 0)) / in_seconds : 0;
  };
  const std::string line = absl::StrFormat(
      "request=%s method=%s event=end code=%s prompt_tokens=%d cached_tokens=%d completion_tokens=%d recoveries=%d "
      "parkings=%d queue_seconds=%.3f prefill_seconds=%.3f prefill_tokens_per_second=%.1f decode_seconds=%.3f "
      "decode_tokens_per_second=%.1f seconds=%.3f %s",
      LogValue(id_), method_, done_->ok() ? "OK" : absl::StatusCodeToString(done_->code()), usage_.prompt_tokens,
      usage_.cached_tokens, usage_.completion_tokens, usage_.recoveries, usage_.parkings, usage_.queue_seconds,
      usage_.prefill_seconds, rate(usage_.prompt_tokens, usage_.prefill_seconds), usage_.decode_seconds,
      // The first token belongs to pre-fill.
      rate(usage_.completion_tokens - 1, usage_.decode_seconds), seconds, NameOf(caller_));
  if (done_->ok()) {
    spdlog::info("{}", line);
  } else {
    spdlog::info("{} message=\"{}\"{}", line, absl::CEscape(done_->message()), *more);
  }
}

void Call::Watch(double seconds) {
  watched_ = true;
  environment_->writing.PostAfter(seconds, [weak = weak_from_this()] {
    if (const std::shared_ptr<Call> self = weak.lock()) self->CheckStall();
  });
}

// Whenever messages have waited for the client for as long as the timeout, all in all, it must have taken enough of
// them. The write under way counts with the time that it has waited, and with no byte.
bool Call::TooSlow(Clock::time_point now) {
  const double timeout = environment_->stall_timeout_seconds;
  const double owed = owed_seconds_ + std::chrono::duration<double>(now - write_start_).count();
  if (owed < timeout) return false;
  if (static_cast<double>(taken_bytes_) < environment_->least_bytes_per_second * owed) return true;
  owed_seconds_ = 0;
  taken_bytes_ = 0;
  return false;
}

void Call::CheckStall() {
  const double timeout = environment_->stall_timeout_seconds;
  absl::Status status;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    watched_ = false;
    if (closed_ || !writing_) return;
    const Clock::time_point now = Clock::now();
    const double waited = std::chrono::duration<double>(now - write_start_).count();
    if (stalled_) {
      // Not even the status has gone through.
      stream_->Abort();
      return;
    }
    const int64_t taken = taken_bytes_;
    if (waited >= timeout) {
      status = absl::ResourceExhaustedError(
          absl::StrCat("the client does not read: it has taken nothing for ", timeout, " s (stall timeout)"));
    } else if (TooSlow(now)) {
      status = absl::ResourceExhaustedError(
          absl::StrCat("the client reads too slowly: it has taken ", taken, " bytes in ", timeout,
                       " s (stall timeout) in which messages waited for it, the least is ",
                       environment_->least_bytes_per_second, " bytes a second"));
    } else {
      return Watch(std::clamp(timeout - owed_seconds_ - waited, timeout / 8, timeout));
    }
    stalled_ = true;
    Watch(timeout);
    if (done_) done_ = status;
  }
  Cancel(status);
  Pump();
}

void Call::Closed() {
  const std::lock_guard<std::mutex> lock(mutex_);
  closed_ = true;
}

}  // namespace goldfinch
