// Checks that the sources of validation share; only they include this.
#ifndef GOLDFINCH_COORDINATOR_CALLS_VALIDATION_PARTS_H_
#define GOLDFINCH_COORDINATOR_CALLS_VALIDATION_PARTS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "coordinator/scheduler/dispatcher.h"
#include "protos/generate.pb.h"

namespace goldfinch::validation {

using Ids = google::protobuf::RepeatedField<uint32_t>;
using Positions = google::protobuf::RepeatedField<uint64_t>;

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

// validation.cc
absl::Status CheckCount(const char* field, int64_t count, int64_t limit);
// The id and the priority of a request, as the client sends them.
absl::Status CheckHead(const std::string& request_id, int32_t priority);
absl::Status CheckPromptLength(size_t prompt_tokens, const ServedModel& model);
absl::StatusOr<std::vector<int32_t>> Encode(const std::string& field, const std::string& text, const ServedModel& model,
                                            bool may_be_empty = false);
absl::StatusOr<std::vector<int32_t>> ToTokens(const std::string& field, const v1::TokenIds& ids,
                                              const ServedModel& model, bool may_be_empty = false);

// `message` has a oneof `prompt` of text and ids.
template <typename Message>
absl::StatusOr<std::vector<int32_t>> Prompt(const Message& message, const ServedModel& model, bool may_be_empty) {
  switch (message.prompt_case()) {
    case Message::kText:
      return Encode("text", message.text(), model, may_be_empty);
    case Message::kIds:
      return ToTokens("ids", message.ids(), model, may_be_empty);
    case Message::PROMPT_NOT_SET:
      break;
  }
  if (may_be_empty) return std::vector<int32_t>();
  return Invalid("prompt is not set, one of text and ids must be");
}

// validation_contexts.cc
absl::Status CheckContextName(const std::string& field, const std::string& name);
absl::StatusOr<Request::KeepAs> ToKeepAs(const v1::KeepAs& message);
absl::StatusOr<std::optional<int64_t>> ToContextTokens(std::optional<uint64_t> tokens, const std::string& context);
// `tokens`: of the prompt that they are positions of.
absl::StatusOr<std::vector<int64_t>> ToBreakpoints(const Positions& breakpoints, size_t tokens);

// Fields that some messages may or may not have set.
template <typename Message>
std::optional<uint64_t> ContextTokensOf(const Message& message) {
  return message.has_context_tokens() ? std::optional<uint64_t>(message.context_tokens()) : std::nullopt;
}

// `context` and `context_tokens` of a message, which may be empty.
template <typename Message>
absl::Status ReadContext(const Message& message, Request* request) {
  if (!message.context().empty()) {
    if (absl::Status status = CheckContextName("context", message.context()); !status.ok()) return status;
  }
  auto tokens = ToContextTokens(ContextTokensOf(message), message.context());
  if (!tokens.ok()) return tokens.status();
  request->context = message.context();
  request->context_tokens = *tokens;
  return absl::OkStatus();
}

}  // namespace goldfinch::validation

#endif  // GOLDFINCH_COORDINATOR_CALLS_VALIDATION_PARTS_H_
