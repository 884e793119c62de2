#include "coordinator/calls/request_call.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "coordinator/calls/validation.h"
#include "spdlog/spdlog.h"

namespace goldfinch {

void RequestCall::Begin() {
  std::shared_ptr<const ServedModel> model = environment_->dispatcher->model();
  if (model == nullptr) return Refuse(NoModel());
  int64_t buffer_max = 0;
  absl::StatusOr<Request> request = Prepare(std::move(model), &buffer_max);
  if (!request.ok()) return Refuse(request.status());
  if (request->id.empty()) request->id = absl::StrFormat("%016x", RandomNumber());
  request->client = caller_.client;
  request->deadline_seconds = SecondsLeft();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    id_ = request->id;
    buffer_max_ = buffer_max;
  }
  Submit(*std::move(request));
}

void RequestCall::Submit(Request request) {
  if (const absl::Status status = CheckPriority(request); !status.ok()) return Refuse(status);
  LogStart(request);
  const absl::StatusOr<uint64_t> number = environment_->dispatcher->Submit(std::move(request), Self());
  if (!number.ok()) return Refuse(number.status());
  std::optional<absl::Status> cancel;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    number_ = *number;
    cancel = cancel_;
  }
  // A cancellation may have arrived before the dispatcher had given the request a number.
  if (cancel) environment_->dispatcher->Cancel(*number, *cancel);
  Drained();
}

void RequestCall::OnDone(const absl::Status& status, const RequestUsage& usage) {
  const std::lock_guard<std::mutex> lock(mutex_);
  usage_ = usage;
  Done(status);
}

void RequestCall::Stop(const absl::Status& status) {
  std::optional<uint64_t> number;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    cancel_ = status;
    number = number_;
  }
  if (number) environment_->dispatcher->Cancel(*number, status);
}

void RequestCall::NoteOutput() {
  if (!first_output_seconds_) first_output_seconds_ = SecondsSinceBegin();
}

RequestSink::Verdict RequestCall::PauseIfFull() {
  if (buffered_ + in_flight_ < buffer_max_) return Verdict::kContinue;
  paused_ = true;
  return Verdict::kPause;
}

void RequestCall::Drained() {
  uint64_t number = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!paused_ || !number_ || is_done() || buffered_ + in_flight_ > buffer_max_ / 2) return;
    paused_ = false;
    number = *number_;
  }
  environment_->dispatcher->Resume(number);
}

// Whether a request is logged is decided once, so that the log has all the lines that it comes to or none.
void RequestCall::LogStart(const Request& request) {
  const std::optional<std::string> more = environment_->request_log.Take();
  if (!more) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    SetLogged();
  }
  const std::string wants =
      request.generate ? absl::StrFormat("max_tokens=%d n=%d", request.generate->max_tokens, request.generate->samples)
                       : absl::StrFormat("continuations=%d score_prompt=%d", request.score->continuations.size(),
                                         request.score->score_prompt);
  spdlog::info("request={} method={} event=start prompt_tokens={} {} priority={} {}{}", LogValue(request.id), method_,
               request.prompt.size(), wants, request.priority, NameOf(caller_), *more);
}

// Logs the first token or score that goes out.
void RequestCall::Writing() {
  double seconds = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (first_output_logged_ || !first_output_seconds_) return;
    first_output_logged_ = true;
    if (!logged()) return;
    seconds = *first_output_seconds_;
  }
  spdlog::info("request={} method={} event=first_token seconds={:.3f} {}", LogValue(id_), method_, seconds,
               NameOf(caller_));
}

std::string RequestCall::Subject() const { return absl::StrFormat("request=%s ", LogValue(id_)); }

std::string RequestCall::Work() const {
  // What a request has done that failed is not known.
  const auto rate = [this](int64_t tokens, double in_seconds) {
    return succeeded() && in_seconds > 0 ? static_cast<double>(std::max<int64_t>(tokens, 0)) / in_seconds : 0;
  };
  return absl::StrFormat(
      "prompt_tokens=%d cached_tokens=%d completion_tokens=%d recoveries=%d parkings=%d queue_seconds=%.3f "
      "prefill_seconds=%.3f prefill_tokens_per_second=%.1f decode_seconds=%.3f decode_tokens_per_second=%.1f ",
      usage_.prompt_tokens, usage_.cached_tokens, usage_.completion_tokens, usage_.recoveries, usage_.parkings,
      usage_.queue_seconds, usage_.prefill_seconds, rate(usage_.prompt_tokens, usage_.prefill_seconds),
      usage_.decode_seconds,
      // The first token belongs to pre-fill.
      rate(usage_.completion_tokens - 1, usage_.decode_seconds));
}

}  // namespace goldfinch
