#include "coordinator/calls/create_context_call.h"

#include "base/check.h"
#include "base/status.h"
#include "coordinator/calls/generate_call.h"
#include "coordinator/calls/validation.h"

namespace goldfinch {

absl::StatusOr<Request> CreateContextCall::Prepare(std::shared_ptr<const ServedModel> model, int64_t* buffer_max) {
  GF_ASSIGN_OR_RETURN(Request request, read_(*model));
  *buffer_max = 1;  // nothing is buffered
  const std::lock_guard<std::mutex> lock(mutex_);
  prompt_tokens_ = request.prompt.size();
  return request;
}

void CreateContextCall::OnContext(int64_t tokens) {
  const std::lock_guard<std::mutex> lock(mutex_);
  prompt_tokens_ += tokens;
}

void CreateContextCall::OnProgress(int64_t prompt_tokens_done) {
  const std::lock_guard<std::mutex> lock(mutex_);
  progress_ = prompt_tokens_done;
  Wake();
}

RequestSink::Verdict CreateContextCall::OnToken(int, const OutputToken&) {
  GF_CHECK(false) << "a token of a request that samples nothing";
}

RequestSink::Verdict CreateContextCall::OnScores(int, int64_t, absl::Span<const OutputToken>, std::string) {
  GF_CHECK(false) << "scores of a request that scores nothing";
}

void CreateContextCall::OnKept(const NamedContext& context) {
  const std::lock_guard<std::mutex> lock(mutex_);
  context_ = ToMessage(context);
}

bool CreateContextCall::TakeMessage() {
  const bool complete = succeeded();
  const bool is_last = complete && !last_sent_;
  if (!progress_ && !is_last) return false;
  message_.Clear();
  if (!first_sent_) message_.set_request_id(id_);
  first_sent_ = true;
  if (progress_) {
    message_.mutable_progress()->set_prompt_tokens_done(*progress_);
    message_.mutable_progress()->set_prompt_tokens(prompt_tokens_);
    progress_.reset();
  }
  if (is_last) {
    if (context_) message_.mutable_context()->Swap(&*context_);
    *message_.mutable_usage() = ToMessage(usage_);
    last_sent_ = true;
  }
  return true;
}

}  // namespace goldfinch
