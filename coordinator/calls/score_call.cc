#include "coordinator/calls/score_call.h"

#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "coordinator/calls/generate_call.h"
#include "coordinator/calls/validation.h"

namespace goldfinch {
namespace {

constexpr int64_t kBufferBytes = int64_t{4} << 20;   // the most that wait for the client
constexpr int64_t kMessageBytes = int64_t{1} << 20;  // gRPC clients accept 4 MiB by default
constexpr int64_t kTokenBytes = 16;                  // about what a token or an alternative takes

// Which text of the request a response is about: -1 for the prompt, else the number of the continuation.
int64_t NumberOf(const v1::ScoreResponse& response) {
  return response.has_prompt() ? -1 : static_cast<int64_t>(response.continuation());
}

}  // namespace

absl::StatusOr<Request> ScoreCall::Prepare(std::shared_ptr<const ServedModel> model, int64_t* buffer_max) {
  v1::ScoreRequest request;
  GF_RETURN_IF_ERROR(read_(&request));
  *buffer_max = kBufferBytes;
  return ValidateScore(request, *model);
}

void ScoreCall::OnProgress(int64_t) { GF_CHECK(false) << "progress that nobody asked for"; }

RequestSink::Verdict ScoreCall::OnToken(int, const OutputToken&) { GF_CHECK(false) << "a token of a request to score"; }

void ScoreCall::OnSampleDone(int, Finish) { GF_CHECK(false) << "a sample of a request to score"; }

ScoreCall::Part& ScoreCall::PartFor(int continuation, int64_t number, int64_t bytes) {
  if (!parts_.empty()) {
    Part& last = parts_.back();
    const auto next = static_cast<int64_t>(last.response.first()) + last.response.tokens_size();
    if (NumberOf(last.response) == continuation && next == number && last.bytes + bytes <= kMessageBytes) return last;
  }
  v1::ScoreResponse& response = parts_.emplace_back().response;
  if (continuation < 0) {
    response.set_prompt(true);
  } else {
    response.set_continuation(continuation);
  }
  response.set_first(number);
  return parts_.back();
}

RequestSink::Verdict ScoreCall::OnScores(int continuation, int64_t first, absl::Span<const OutputToken> tokens,
                                         std::string logits) {
  const size_t row_bytes = tokens.empty() ? 0 : logits.size() / tokens.size();
  GF_CHECK_EQ(row_bytes * tokens.size(), logits.size());
  const std::lock_guard<std::mutex> lock(mutex_);
  NoteOutput();
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto bytes = static_cast<int64_t>(row_bytes + kTokenBytes * (1 + tokens[i].top.size()));
    Part& part = PartFor(continuation, first + static_cast<int64_t>(i), bytes);
    *part.response.add_tokens() = ToMessage(tokens[i]);
    part.response.mutable_logits()->append(logits, i * row_bytes, row_bytes);
    part.bytes += bytes;
    buffered_ += bytes;
  }
  Wake();
  return PauseIfFull();
}

bool ScoreCall::TakeMessage() {
  const bool complete = succeeded();
  if (parts_.empty() && (!complete || usage_sent_)) return false;
  message_.Clear();
  if (!parts_.empty()) {
    message_ = std::move(parts_.front().response);
    in_flight_ = parts_.front().bytes;
    buffered_ -= in_flight_;
    parts_.pop_front();
  }
  if (!first_sent_) message_.set_request_id(id_);
  first_sent_ = true;
  if (complete && parts_.empty()) {
    *message_.mutable_usage() = ToMessage(usage_);
    usage_sent_ = true;
  }
  return true;
}

}  // namespace goldfinch
