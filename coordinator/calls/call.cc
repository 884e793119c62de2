#include "coordinator/calls/call.h"

#include <malloc.h>

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "coordinator/metrics/metrics.h"
#include "google/protobuf/message_lite.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

// The client's timer for the deadline may fire a little before the server's: its cancellation then arrives first.
constexpr double kDeadlineSlackSeconds = 0.05;
// How long large messages may follow each other before memory is given back, which looks at all of the free memory.
constexpr double kReturnMemorySeconds = 5;

void LogFailure(const char* method, const std::string& who, const absl::Status& status, LogLimiter* limiter) {
  const std::optional<std::string> more = limiter->Take();
  if (!more) return;
  spdlog::info("method={} code={} {} message=\"{}\"{}", method, absl::StatusCodeToString(status.code()), who,
               absl::CEscape(status.message()), *more);
}

}  // namespace

std::string LogValue(const std::string& text) {
  if (!text.empty() && text.find_first_of(" \"=\\") == std::string::npos) return text;
  return absl::StrCat("\"", absl::CEscape(text), "\"");
}

std::string NameOf(const Caller& caller) {
  return absl::StrCat("client=", LogValue(caller.client->name), " peer=", caller.peer);
}

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

double Call::SecondsSinceBegin() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

std::optional<double> Call::SecondsLeft() const {
  if (!deadline_) return std::nullopt;
  return std::chrono::duration<double>(*deadline_ - std::chrono::system_clock::now()).count();
}

void Call::Refuse(const absl::Status& status) {
  GF_CHECK(!status.ok());
  const std::lock_guard<std::mutex> lock(mutex_);
  GF_CHECK(!done_);
  done_ = status;
  FinishIfDone();
}

void Call::Done(const absl::Status& status) {
  GF_CHECK(!done_) << "a call ends twice";
  done_ = status;
  Wake();
}

void Call::Wake() {
  // After a stall the write under way may never end, but the work does.
  if (scheduled_ || (writing_ && !stalled_)) return;
  scheduled_ = true;
  environment_->writing.Post([self = shared_from_this()] { self->Pump(); });
}

void Call::Pump() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    scheduled_ = false;
    // A stream that is gone ends its write soon; one that stalls may not.
    if (stalled_ || (gone_ && !writing_)) return FinishIfDone();
    if (writing_ || finished_) return;
    if (!TakeMessage()) return FinishIfDone();
    writing_ = true;
    write_start_ = Clock::now();
    if (!watched_) Watch(environment_->stall_timeout_seconds);
  }
  // Without the lock, which the coordinator's thread may want meanwhile. The stream cannot end before this write does.
  Writing();
  write_bytes_ = static_cast<int64_t>(message().ByteSizeLong());
  stream_->Write(message());
}

void Call::WriteDone(bool ok) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    writing_ = false;
    WriteEnded();
    owed_seconds_ += std::chrono::duration<double>(Clock::now() - write_start_).count();
    taken_bytes_ += write_bytes_;
    if (!ok) gone_ = true;
  }
  if (!ok) Cancel(GoneStatus());
  // This thread belongs to the door: it may go on with the next write.
  Pump();
  Drained();
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
  const std::optional<double> seconds = SecondsLeft();
  if (seconds && *seconds < kDeadlineSlackSeconds) return absl::DeadlineExceededError("the deadline has passed");
  return absl::CancelledError("the client cancelled the call or disconnected");
}

void Call::Cancel(const absl::Status& status) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (done_ || cancelled_) return;
    cancelled_ = true;
  }
  Stop(status);
}

void Call::FinishIfDone() {
  if (!done_ || finished_) return;
  finished_ = true;
  Report();
  stream_->End(*done_);
}

void Call::Report() const {
  if (!done_->ok()) environment_->metrics->CountFailure(method_, done_->code());
  std::optional<std::string> more = "";
  if (!logged_ && (done_->ok() || !(more = environment_->failure_log.Take()))) return;
  const std::string line = absl::StrFormat("%smethod=%s event=end code=%s %sseconds=%.3f %s", Subject(), method_,
                                           done_->ok() ? "OK" : absl::StatusCodeToString(done_->code()), Work(),
                                           SecondsSinceBegin(), NameOf(caller_));
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
