#include "coordinator/calls/validation.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/token_ids.h"
#include "coordinator/calls/request_limits.h"
#include "coordinator/calls/validation_parts.h"
#include "protos/generate.pb.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocabulary.h"

namespace goldfinch {
namespace {

using validation::CheckCount;
using validation::CheckPromptLength;
using validation::Encode;
using validation::Ids;
using validation::Invalid;
using validation::ToTokens;

// Called before an id is narrowed to a signed 32-bit number.
absl::Status CheckId(const std::string& field, uint32_t id, const ServedModel& model) {
  const uint32_t vocab_size = model.info->vocab_size();
  if (id < vocab_size) return absl::OkStatus();
  return Invalid(field, " is ", id, ", the vocabulary has ids 0 to ", vocab_size - 1);
}

absl::StatusOr<std::vector<int32_t>> ToIds(const std::string& field, const Ids& ids, const ServedModel& model) {
  std::vector<int32_t> result(ids.begin(), ids.end());
  const uint32_t vocab_size = model.info->vocab_size();
  const auto bad = std::find_if(ids.begin(), ids.end(), [&](uint32_t id) { return id >= vocab_size; });
  if (bad == ids.end()) return result;
  return CheckId(absl::StrCat(field, "[", bad - ids.begin(), "]"), *bad, model);
}

absl::Status CheckRequestId(const std::string& id) {
  if (id.size() > kRequestIdMax) {
    return Invalid("request_id has ", id.size(), " characters, the limit is ", kRequestIdMax);
  }
  const auto bad = std::find_if(id.begin(), id.end(), [](char c) { return !absl::ascii_isprint(c); });
  if (bad == id.end()) return absl::OkStatus();
  return Invalid("request_id has byte ", static_cast<int>(static_cast<unsigned char>(*bad)), " at ", bad - id.begin(),
                 ", it must be printable ASCII");
}

}  // namespace

namespace validation {

absl::Status CheckCount(const char* field, int64_t count, int64_t limit) {
  if (count <= limit) return absl::OkStatus();
  return Invalid(field, " has ", count, " entries, the limit is ", limit);
}

absl::Status CheckHead(const std::string& request_id, int32_t priority) {
  GF_RETURN_IF_ERROR(CheckRequestId(request_id));
  if (priority >= -kPriorityMax && priority <= kPriorityMax) return absl::OkStatus();
  return Invalid("priority is ", priority, ", the limits are ", -kPriorityMax, " and ", kPriorityMax);
}

absl::Status CheckPromptLength(size_t prompt_tokens, const ServedModel& model) {
  const uint64_t limit = model.info->max_model_len();
  if (prompt_tokens <= limit) return absl::OkStatus();
  return Invalid("the prompt has ", prompt_tokens, " tokens, max_model_len is ", limit);
}

absl::StatusOr<std::vector<int32_t>> Encode(const std::string& field, const std::string& text, const ServedModel& model,
                                            bool may_be_empty) {
  // A longer text has too many tokens, whatever they are.
  const uint64_t tokens_max = model.info->max_model_len();
  if (text.size() / kTokenBytesMax > tokens_max) {
    return Invalid(field, " has ", text.size(), " bytes, more than any ", tokens_max,
                   " tokens, which is max_model_len");
  }
  std::vector<int32_t> ids;
  model.tokenizer->Encode(text, &ids);
  if (ids.empty() && !may_be_empty) return Invalid(field, " is empty, it must have at least one token");
  return ids;
}

absl::StatusOr<std::vector<int32_t>> ToTokens(const std::string& field, const v1::TokenIds& ids,
                                              const ServedModel& model, bool may_be_empty) {
  if (ids.ids().empty() && !may_be_empty) return Invalid(field, " is empty, it must have at least one token");
  return ToIds(field, ids.ids(), model);
}

}  // namespace validation

namespace {

// The fields that both kinds of requests have.
template <typename Message>
absl::StatusOr<Request> Common(const Message& message, const ServedModel& model) {
  GF_RETURN_IF_ERROR(validation::CheckHead(message.request_id(), message.priority()));
  if (message.logprobs() > static_cast<uint32_t>(kLogprobsMax)) {
    return Invalid("logprobs is ", message.logprobs(), ", the limit is ", kLogprobsMax);
  }
  Request request;
  request.id = message.request_id();
  request.priority = message.priority();
  request.cache = !message.has_cache() || message.cache();
  GF_RETURN_IF_ERROR(validation::ReadContext(message, &request));
  GF_ASSIGN_OR_RETURN(request.prompt, validation::Prompt(message, model, /*may_be_empty=*/!request.context.empty()));
  return request;
}

absl::Status CheckLength(size_t prompt_tokens, const std::string& field, int64_t tokens, const ServedModel& model) {
  GF_RETURN_IF_ERROR(CheckPromptLength(prompt_tokens, model));
  const uint64_t limit = model.info->max_model_len();
  if (prompt_tokens + tokens <= limit) return absl::OkStatus();
  return Invalid("the prompt has ", prompt_tokens, " tokens and ", field, " ", tokens, ", together ",
                 prompt_tokens + tokens, ", max_model_len is ", limit);
}

absl::StatusOr<SamplingOptions> ToSampling(const v1::SamplingOptions& message, bool ignore_eos,
                                           const ServedModel& model) {
  GF_RETURN_IF_ERROR(CheckCount("sampling.logit_bias", message.logit_bias_size(), kBiasesMax));
  GF_RETURN_IF_ERROR(CheckCount("sampling.banned_tokens", message.banned_tokens_size(), kBansMax));
  SamplingOptions sampling;
  if (message.has_temperature()) sampling.temperature = message.temperature();
  if (message.has_top_p()) sampling.top_p = message.top_p();
  if (message.has_top_k()) sampling.top_k = message.top_k();
  if (message.has_min_p()) sampling.min_p = message.min_p();
  if (message.has_presence_penalty()) sampling.presence_penalty = message.presence_penalty();
  if (message.has_frequency_penalty()) sampling.frequency_penalty = message.frequency_penalty();
  if (message.has_penalty_decay()) sampling.penalty_decay = message.penalty_decay();
  for (const auto& [id, bias] : message.logit_bias()) {
    GF_RETURN_IF_ERROR(CheckId("sampling.logit_bias: the id", id, model));
    sampling.logit_bias.push_back({static_cast<int32_t>(id), bias});
  }
  // A protobuf map has no defined order.
  std::sort(sampling.logit_bias.begin(), sampling.logit_bias.end(),
            [](const LogitBias& a, const LogitBias& b) { return a.id < b.id; });
  GF_ASSIGN_OR_RETURN(sampling.banned_tokens, ToIds("sampling.banned_tokens", message.banned_tokens(), model));
  if (ignore_eos) sampling.banned_tokens.push_back(kEndOfTextId);
  if (absl::Status status = Validate(sampling, *model.vocabulary); !status.ok()) {
    return Invalid("sampling.", status.message());
  }
  return sampling;
}

absl::StatusOr<std::shared_ptr<const StopStrings>> ToStopStrings(
    const google::protobuf::RepeatedPtrField<std::string>& stops) {
  GF_RETURN_IF_ERROR(CheckCount("stop", stops.size(), kStopsMax));
  for (int i = 0; i < stops.size(); ++i) {
    if (stops[i].empty()) return Invalid("stop[", i, "] is empty");
    if (stops[i].size() <= kStopBytesMax) continue;
    return Invalid("stop[", i, "] has ", stops[i].size(), " bytes, the limit is ", kStopBytesMax);
  }
  auto made = StopStrings::Create(std::vector<std::string>(stops.begin(), stops.end()));
  if (!made.ok()) return Invalid("stop: ", made.status().message());
  return made;
}

// `index` says which of the request's continuations it is.
absl::StatusOr<std::vector<int32_t>> Continuation(const v1::ScoreRequest& message, int index,
                                                  const ServedModel& model) {
  const std::string field = absl::StrCat("continuations[", index, "]");
  const v1::ScoreRequest::Continuation& continuation = message.continuations(index);
  switch (continuation.continuation_case()) {
    case v1::ScoreRequest::Continuation::kText:
      return Encode(field + ".text", continuation.text(), model);
    case v1::ScoreRequest::Continuation::kIds:
      return ToTokens(field + ".ids", continuation.ids(), model);
    case v1::ScoreRequest::Continuation::CONTINUATION_NOT_SET:
      break;
  }
  return Invalid(field, " is not set, one of text and ids must be");
}

}  // namespace

absl::StatusOr<ValidGenerate> ValidateGenerate(const v1::GenerateRequest& message, const ServedModel& model) {
  if (message.n() > kSamplesMax) return Invalid("n is ", message.n(), ", the limit is ", kSamplesMax);
  GF_RETURN_IF_ERROR(CheckCount("stop_ids", message.stop_ids_size(), kStopIdsMax));
  Request::Generate generate;
  generate.samples = message.n() == 0 ? 1 : static_cast<int>(message.n());
  GF_ASSIGN_OR_RETURN(generate.stop_ids, ToIds("stop_ids", message.stop_ids(), model));
  GF_ASSIGN_OR_RETURN(generate.sampling, ToSampling(message.sampling(), message.ignore_eos(), model));
  if (message.has_logprobs()) generate.sampling.logprobs = static_cast<int>(message.logprobs());
  generate.sampling.seed = message.seed();

  ValidGenerate valid = {.request = {}, .has_seed = message.has_seed(), .stops = nullptr};
  GF_ASSIGN_OR_RETURN(valid.stops, ToStopStrings(message.stop()));
  GF_ASSIGN_OR_RETURN(valid.request, Common(message, model));
  const size_t prompt_tokens = valid.request.prompt.size();
  if (message.has_max_tokens()) {
    generate.max_tokens = message.max_tokens();
    GF_RETURN_IF_ERROR(CheckLength(prompt_tokens, "max_tokens is", generate.max_tokens, model));
  } else {
    // Nobody asked for the default, so it is no reason to refuse a prompt that fits.
    GF_RETURN_IF_ERROR(CheckPromptLength(prompt_tokens, model));
    const auto left = static_cast<int64_t>(model.info->max_model_len() - prompt_tokens);
    generate.max_tokens = std::min(generate.max_tokens, left);
  }
  // The context may leave room for fewer.
  generate.may_shorten = !message.has_max_tokens() && !valid.request.context.empty();
  if (message.has_keep_as()) {
    if (generate.samples > 1) return Invalid("n is ", generate.samples, ", with keep_as it must be 1");
    GF_ASSIGN_OR_RETURN(valid.request.keep_as, validation::ToKeepAs(message.keep_as()));
  }
  GF_ASSIGN_OR_RETURN(valid.request.breakpoints, validation::ToBreakpoints(message.breakpoints(), prompt_tokens));
  valid.request.progress = message.progress();
  valid.request.generate = std::move(generate);
  return valid;
}

absl::StatusOr<Request> ValidateScore(const v1::ScoreRequest& message, const ServedModel& model) {
  GF_RETURN_IF_ERROR(CheckCount("continuations", message.continuations_size(), kContinuationsMax));
  GF_ASSIGN_OR_RETURN(Request request, Common(message, model));
  GF_RETURN_IF_ERROR(CheckPromptLength(request.prompt.size(), model));
  Request::Score score;
  score.score_prompt = message.score_prompt();
  score.top_logprobs = static_cast<int>(message.logprobs());
  score.logits = message.logits();
  for (int i = 0; i < message.continuations_size(); ++i) {
    GF_ASSIGN_OR_RETURN(std::vector<int32_t> ids, Continuation(message, i, model));
    GF_RETURN_IF_ERROR(CheckLength(request.prompt.size(), absl::StrCat("continuations[", i, "]"),
                                   static_cast<int64_t>(ids.size()), model));
    score.continuations.push_back(std::move(ids));
  }
  if (score.continuations.empty() && !score.score_prompt) {
    return Invalid("continuations is empty and score_prompt is not set: there is nothing to score");
  }
  if (score.continuations.empty() && request.prompt.size() <= 1) {
    return Invalid("score_prompt scores from the second token on, the prompt has ", request.prompt.size(),
                   ": there is nothing to score");
  }
  request.score = std::move(score);
  return request;
}

absl::Status CheckPriority(const Request& request) {
  if (request.client == nullptr || request.priority <= request.client->limits.max_priority) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat("priority is ", request.priority, ", the limit of client ",
                                                  request.client->name, " is ", request.client->limits.max_priority));
}

absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& message, const ServedModel& model,
                                                  int64_t bytes_max) {
  GF_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ToIds("ids", message.ids(), model));
  int64_t raw_bytes = 0;
  for (const int32_t id : ids) raw_bytes += static_cast<int64_t>(model.tokenizer->TokenBytes(id).size());
  // A byte that is not UTF-8 becomes U+FFFD, which takes three.
  if (raw_bytes > bytes_max / 4) {
    return Invalid("ids are tokens of ", raw_bytes, " bytes, the limit is ", bytes_max / 4);
  }
  v1::DetokenizeResponse response;
  if (absl::Status status = model.tokenizer->Decode(ids, response.mutable_raw()); !status.ok()) {
    return Invalid("ids: ", status.message());
  }
  TextStream text;
  text.Append(response.raw(), response.mutable_text());
  text.Finish(response.mutable_text());
  return response;
}

}  // namespace goldfinch
