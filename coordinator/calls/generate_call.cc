#include "coordinator/calls/generate_call.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "coordinator/calls/validation.h"
#include "tokenizer/tokenizer.h"

namespace goldfinch {
namespace {

// The most tokens of an answer that wait for the client. Every sample adds one a step, and one more after a pause.
constexpr int64_t kBufferTokens = 64;
constexpr int64_t kBufferTokensPerSample = 4;

v1::FinishReason ToMessage(Finish finish) {
  switch (finish) {
    case Finish::kEndOfText:
      return v1::END_OF_TEXT;
    case Finish::kStop:
      return v1::STOP;
    case Finish::kLength:
      return v1::LENGTH;
  }
  GF_CHECK(false) << "finish " << static_cast<int>(finish);
}

}  // namespace

v1::Token ToMessage(const OutputToken& token) {
  v1::Token message;
  message.set_id(token.id);
  if (token.logprob) message.set_logprob(*token.logprob);
  for (const OutputToken::Likely& likely : token.top) {
    v1::TokenLogprob* top = message.add_top();
    top->set_id(likely.id);
    top->set_logprob(likely.logprob);
  }
  return message;
}

v1::Usage ToMessage(const RequestUsage& usage) {
  v1::Usage message;
  message.set_prompt_tokens(usage.prompt_tokens);
  message.set_completion_tokens(usage.completion_tokens);
  message.set_queue_seconds(usage.queue_seconds);
  message.set_prefill_seconds(usage.prefill_seconds);
  message.set_decode_seconds(usage.decode_seconds);
  message.set_cache_bytes(usage.cache_bytes);
  message.set_transformer_cache_bytes(usage.transformer_cache_bytes);
  message.set_recoveries(usage.recoveries);
  message.set_cached_tokens(usage.cached_tokens);
  message.set_reread_tokens(usage.reread_tokens);
  return message;
}

absl::StatusOr<Request> GenerateCall::Prepare(std::shared_ptr<const ServedModel> model, int64_t* buffer_max) {
  v1::GenerateRequest request;
  GF_RETURN_IF_ERROR(read_(&request));
  GF_ASSIGN_OR_RETURN(ValidGenerate valid, ValidateGenerate(request, *model));
  Request::Generate& generate = *valid.request.generate;
  if (!valid.has_seed) generate.sampling.seed = RandomNumber();
  *buffer_max = std::max(kBufferTokens, kBufferTokensPerSample * generate.samples);
  model_ = std::move(model);
  seed_ = generate.sampling.seed;
  prompt_tokens_ = valid.request.prompt.size();
  stop_ids_ = generate.stop_ids;
  std::sort(stop_ids_.begin(), stop_ids_.end());
  samples_left_ = generate.samples;
  for (int i = 0; i < generate.samples; ++i) samples_.push_back({.text = TextStream(valid.stops), .next = {}});
  valid.request.held_bytes = valid.stops->bytes() + static_cast<int64_t>(samples_.size() * sizeof(Sample));
  return std::move(valid.request);
}

void GenerateCall::Queue(int index) {
  if (!samples_[index].queued) queue_.push_back(index);
  samples_[index].queued = true;
  Wake();
}

void GenerateCall::OnContext(int64_t tokens) {
  const std::lock_guard<std::mutex> lock(mutex_);
  prompt_tokens_ += tokens;
}

void GenerateCall::OnProgress(int64_t prompt_tokens_done) {
  const std::lock_guard<std::mutex> lock(mutex_);
  progress_ = prompt_tokens_done;
  Wake();
}

RequestSink::Verdict GenerateCall::OnToken(int index, const OutputToken& token) {
  const std::lock_guard<std::mutex> lock(mutex_);
  GF_CHECK(index >= 0 && index < static_cast<int>(samples_.size())) << index;
  NoteOutput();
  Sample& sample = samples_[index];
  *sample.next.add_tokens() = ToMessage(token);
  ++buffered_;
  // A stop token ends the text without being part of it.
  if (!std::binary_search(stop_ids_.begin(), stop_ids_.end(), token.id)) {
    sample.text.Append(model_->tokenizer->TokenBytes(token.id), sample.next.mutable_text());
  }
  Queue(index);
  return sample.text.stop() ? Verdict::kStop : PauseIfFull();
}

void GenerateCall::OnSampleDone(int index, Finish finish) {
  const std::lock_guard<std::mutex> lock(mutex_);
  GF_CHECK(index >= 0 && index < static_cast<int>(samples_.size())) << index;
  Sample& sample = samples_[index];
  if (!sample.text.stop()) sample.text.Finish(sample.next.mutable_text());
  sample.next.set_finish_reason(ToMessage(finish));
  --samples_left_;
  Queue(index);
}

RequestSink::Verdict GenerateCall::OnScores(int, int64_t, absl::Span<const OutputToken>, std::string) {
  GF_CHECK(false) << "scores of a request to generate";
}

bool GenerateCall::TakeMessage() {
  message_.Clear();
  if (!TakeResponse()) return false;
  if (!first_sent_) {
    message_.set_request_id(id_);
    message_.set_seed(seed_);
  }
  first_sent_ = true;
  return true;
}

bool GenerateCall::TakeResponse() {
  // The last sample's last response is the last of the stream: it waits for the usage, which OnDone brings shortly.
  if (samples_left_ == 0 && !is_done()) return false;
  if (progress_) {
    // A progress message holds nothing else, so the first response, which names the request, goes ahead of it.
    if (!first_sent_) return true;
    message_.mutable_progress()->set_prompt_tokens_done(*progress_);
    message_.mutable_progress()->set_prompt_tokens(prompt_tokens_);
    progress_.reset();
    return true;
  }
  const bool complete = succeeded();
  if (queue_.empty() && (!complete || usage_sent_)) return false;
  if (!queue_.empty()) {
    const int index = queue_.front();
    queue_.pop_front();
    Sample& sample = samples_[index];
    sample.queued = false;
    message_.Swap(&sample.next);
    message_.set_index(index);
    in_flight_ = message_.tokens_size();
    buffered_ -= in_flight_;
  }
  if (complete && queue_.empty()) {
    *message_.mutable_usage() = ToMessage(usage_);
    usage_sent_ = true;
  }
  return true;
}

}  // namespace goldfinch
