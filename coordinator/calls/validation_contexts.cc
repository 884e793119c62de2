// Validation of contexts.proto, and of what generate.proto says of contexts.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "base/saturated.h"
#include "base/status.h"
#include "coordinator/calls/request_limits.h"
#include "coordinator/calls/validation.h"
#include "coordinator/calls/validation_parts.h"
#include "coordinator/contexts/segment_key.h"
#include "protos/contexts.pb.h"

namespace goldfinch {
namespace validation {
namespace {

// C0, DEL and C1, which UTF-8 has as C2 80 to C2 9F.
bool IsControl(const std::string& text, size_t at) {
  const auto byte = static_cast<unsigned char>(text[at]);
  if (byte == 0xc2 && at + 1 < text.size()) return static_cast<unsigned char>(text[at + 1]) < 0xa0;
  return byte < 0x20 || byte == 0x7f;
}

// The numbers of the tree in decimal; 0 for an empty one.
absl::StatusOr<uint64_t> ToEtag(const std::string& field, const std::string& etag) {
  if (etag.empty()) return 0;
  if (etag.size() > static_cast<size_t>(kEtagBytesMax)) {
    return Invalid(field, " has ", etag.size(), " bytes, the limit is ", kEtagBytesMax);
  }
  uint64_t number = 0;
  const bool digits = std::all_of(etag.begin(), etag.end(), [](char c) { return absl::ascii_isdigit(c); });
  if (!digits || etag[0] == '0' || !absl::SimpleAtoi(etag, &number)) {
    return Invalid(field, " is not one that a server has given");
  }
  return number;
}

}  // namespace

absl::Status CheckContextName(const std::string& field, const std::string& name) {
  if (name.empty()) return Invalid(field, " is empty, it must be the name of a context");
  if (name.size() > kContextTextBytesMax) {
    return Invalid(field, " has ", name.size(), " bytes, the limit is ", kContextTextBytesMax);
  }
  for (size_t i = 0; i < name.size(); ++i) {
    if (IsControl(name, i)) return Invalid(field, " has a control character at byte ", i);
  }
  return absl::OkStatus();
}

absl::StatusOr<Request::KeepAs> ToKeepAs(const v1::KeepAs& message) {
  GF_RETURN_IF_ERROR(CheckContextName("keep_as.name", message.name()));
  Request::KeepAs keep_as;
  keep_as.name = message.name();
  if (message.has_expire_after_seconds()) {
    const double seconds = message.expire_after_seconds();
    if (!(seconds > 0 && seconds <= kExpireAfterSecondsMax)) {
      return Invalid("keep_as.expire_after_seconds is ", seconds, ", it must be above 0 and at most ",
                     kExpireAfterSecondsMax);
    }
    keep_as.expire_after_seconds = seconds;
  }
  GF_ASSIGN_OR_RETURN(keep_as.etag, ToEtag("keep_as.etag", message.etag()));
  return keep_as;
}

absl::StatusOr<std::optional<int64_t>> ToContextTokens(std::optional<uint64_t> tokens, const std::string& context) {
  if (!tokens) return std::nullopt;
  if (context.empty()) return Invalid("context_tokens is ", *tokens, " and context is not set");
  if (*tokens == 0) return Invalid("context_tokens is 0, it must be at least 1");
  return Saturated(*tokens);
}

absl::StatusOr<std::vector<int64_t>> ToBreakpoints(const Positions& breakpoints, size_t tokens) {
  GF_RETURN_IF_ERROR(CheckCount("breakpoints", breakpoints.size(), kBreakpointsMax));
  for (int i = 0; i < breakpoints.size(); ++i) {
    if (breakpoints[i] > 0 && breakpoints[i] < tokens) continue;
    return Invalid("breakpoints[", i, "] is ", breakpoints[i], ", it must be above 0 and below the prompt's ", tokens,
                   " tokens");
  }
  return std::vector<int64_t>(breakpoints.begin(), breakpoints.end());
}

}  // namespace validation

namespace {

using validation::Invalid;

// What a request to read a text and keep it has in any case.
template <typename Message>
absl::StatusOr<Request> Reading(const Message& message, const ServedModel& model) {
  GF_RETURN_IF_ERROR(validation::CheckHead(message.request_id(), message.priority()));
  Request request;
  request.id = message.request_id();
  request.priority = message.priority();
  request.progress = true;
  request.generate.emplace().max_tokens = 0;
  GF_ASSIGN_OR_RETURN(request.prompt, validation::Prompt(message, model, /*may_be_empty=*/false));
  GF_RETURN_IF_ERROR(validation::CheckPromptLength(request.prompt.size(), model));
  return request;
}

// `name` and `etag` of a message.
template <typename Message, typename Query>
absl::StatusOr<Query> Changing(const Message& message, Query query) {
  GF_RETURN_IF_ERROR(validation::CheckContextName("name", message.name()));
  query.name = message.name();
  GF_ASSIGN_OR_RETURN(query.etag, validation::ToEtag("etag", message.etag()));
  return query;
}

}  // namespace

absl::StatusOr<Request> ValidateCreateContext(const v1::CreateContextRequest& message, const ServedModel& model) {
  if (!message.has_keep_as()) return Invalid("keep_as is not set, it must name the context");
  GF_ASSIGN_OR_RETURN(Request request, Reading(message, model));
  GF_RETURN_IF_ERROR(validation::ReadContext(message, &request));
  GF_ASSIGN_OR_RETURN(request.keep_as, validation::ToKeepAs(message.keep_as()));
  GF_ASSIGN_OR_RETURN(request.breakpoints, validation::ToBreakpoints(message.breakpoints(), request.prompt.size()));
  return request;
}

absl::StatusOr<Request> ValidateAppendContext(const v1::AppendContextRequest& message, const ServedModel& model) {
  GF_ASSIGN_OR_RETURN(Request::KeepAs keep_as, Changing(message, Request::KeepAs{}));
  keep_as.expire_as_before = true;
  GF_ASSIGN_OR_RETURN(Request request, Reading(message, model));
  request.context = keep_as.name;
  request.keep_as = std::move(keep_as);
  return request;
}

absl::StatusOr<GetContextQuery> ValidateGetContext(const v1::GetContextRequest& message) {
  GF_RETURN_IF_ERROR(validation::CheckContextName("name", message.name()));
  if (message.ids_max() > kContextIdsMax) {
    return Invalid("ids_max is ", message.ids_max(), ", the limit is ", kContextIdsMax);
  }
  return GetContextQuery{
      .name = message.name(), .ids_begin = Saturated(message.ids_begin()), .ids_max = message.ids_max()};
}

absl::StatusOr<ListContextsQuery> ValidateListContexts(const v1::ListContextsRequest& message) {
  if (message.page_size() > static_cast<uint32_t>(kContextPageMax)) {
    return Invalid("page_size is ", message.page_size(), ", the limit is ", kContextPageMax);
  }
  if (message.page_token().size() > kContextTextBytesMax) {
    return Invalid("page_token is not one that a server has given");
  }
  return ListContextsQuery{
      .after = message.page_token(),
      .count = message.page_size() == 0 ? kContextPageDefault : static_cast<int>(message.page_size())};
}

absl::StatusOr<ForkContextQuery> ValidateForkContext(const v1::ForkContextRequest& message) {
  GF_RETURN_IF_ERROR(validation::CheckContextName("context", message.context()));
  if (!message.has_keep_as()) return Invalid("keep_as is not set, it must name the context");
  ForkContextQuery query;
  query.context = message.context();
  GF_ASSIGN_OR_RETURN(query.context_tokens,
                      validation::ToContextTokens(validation::ContextTokensOf(message), message.context()));
  GF_ASSIGN_OR_RETURN(query.keep_as, validation::ToKeepAs(message.keep_as()));
  return query;
}

absl::StatusOr<RenameContextQuery> ValidateRenameContext(const v1::RenameContextRequest& message) {
  GF_ASSIGN_OR_RETURN(RenameContextQuery query, Changing(message, RenameContextQuery{}));
  GF_RETURN_IF_ERROR(validation::CheckContextName("new_name", message.new_name()));
  query.new_name = message.new_name();
  return query;
}

absl::StatusOr<PinContextQuery> ValidatePinContext(const v1::PinContextRequest& message) {
  GF_ASSIGN_OR_RETURN(PinContextQuery query, Changing(message, PinContextQuery{}));
  query.pinned = message.pinned();
  return query;
}

absl::StatusOr<DeleteContextQuery> ValidateDeleteContext(const v1::DeleteContextRequest& message) {
  return Changing(message, DeleteContextQuery{});
}

// An export's etag is that of the context and, behind a dash, what the file has of its own. Either will do.
absl::StatusOr<FileQuery> ValidateExportContext(const v1::ExportContextRequest& message) {
  GF_RETURN_IF_ERROR(validation::CheckContextName("name", message.name()));
  FileQuery query;
  query.context.name = message.name();
  const size_t dash = message.etag().find('-');
  GF_ASSIGN_OR_RETURN(query.context.etag, validation::ToEtag("etag", message.etag().substr(0, dash)));
  if (dash != std::string::npos) {
    query.version = message.etag().substr(dash + 1);
    const bool hex = std::all_of(query.version.begin(), query.version.end(),
                                 [](char c) { return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f'); });
    if (query.context.etag == 0 || query.version.size() != kFileVersionDigits || !hex) {
      return Invalid("etag is not one that a server has given");
    }
  }
  query.offset = Saturated(message.offset());
  return query;
}

absl::StatusOr<ImportPart> ValidateImportContext(v1::ImportContextRequest* message) {
  if (message->upload().empty()) return Invalid("upload is empty, it must name the upload");
  if (message->upload().size() > static_cast<size_t>(kUploadBytesMax)) {
    return Invalid("upload has ", message->upload().size(), " bytes, the limit is ", kUploadBytesMax);
  }
  if (message->data().size() > static_cast<size_t>(kTransferPieceBytes)) {
    return Invalid("data has ", message->data().size(), " bytes, the limit is ", kTransferPieceBytes);
  }
  ImportPart part;
  if (message->last()) {
    if (!message->has_keep_as()) return Invalid("keep_as is not set, it must name the context");
    ImportPart::Last& last = part.last.emplace();
    GF_ASSIGN_OR_RETURN(last.keep_as, validation::ToKeepAs(message->keep_as()));
    if (message->sha256().size() != last.sha256.size()) {
      return Invalid("sha256 has ", message->sha256().size(), " bytes, it must have ", last.sha256.size());
    }
    std::copy(message->sha256().begin(), message->sha256().end(), last.sha256.begin());
  }
  part.upload = message->upload();
  part.offset = Saturated(message->offset());
  part.data = std::move(*message->mutable_data());
  return part;
}

v1::Context ToMessage(const NamedContext& context) {
  v1::Context message;
  message.set_name(context.name);
  message.set_tokens(context.tokens);
  message.set_etag(absl::StrCat(context.etag));
  message.set_pinned(context.pinned);
  message.set_created_unix_seconds(context.created);
  message.set_last_use_unix_seconds(context.last_use);
  if (context.expires) message.set_expires_unix_seconds(*context.expires);
  message.set_bytes(context.bytes);
  message.set_shared_bytes(context.shared_bytes);
  message.mutable_snapshots()->Assign(context.snapshots.begin(), context.snapshots.end());
  message.set_place(context.in_memory ? (context.on_disk ? v1::MEMORY_AND_DISK : v1::MEMORY)
                                      : (context.on_disk ? v1::DISK : v1::NOWHERE));
  message.set_transformer_bytes(context.transformer_bytes);
  message.mutable_ids()->Assign(context.ids.begin(), context.ids.end());
  return message;
}

}  // namespace goldfinch
