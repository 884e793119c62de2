// Turns the messages of generate.proto and contexts.proto into requests in tokens and into questions. Every limit that
// the proto documents is enforced here; wire_limits.h enforces some of them before a message is parsed, too. Errors
// name the field, its value and the limit, and are INVALID_ARGUMENT unless a function says so.
#ifndef GOLDFINCH_COORDINATOR_CALLS_VALIDATION_H_
#define GOLDFINCH_COORDINATOR_CALLS_VALIDATION_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/keeper/context_directory.h"
#include "coordinator/keeper/context_transfers.h"
#include "coordinator/scheduler/dispatcher.h"
#include "tokenizer/text_stream.h"

namespace goldfinch {

namespace v1 {
class AppendContextRequest;
class Context;
class CreateContextRequest;
class DeleteContextRequest;
class DetokenizeRequest;
class DetokenizeResponse;
class ExportContextRequest;
class ForkContextRequest;
class GenerateRequest;
class GetContextRequest;
class ImportContextRequest;
class ListContextsRequest;
class PinContextRequest;
class RenameContextRequest;
class ScoreRequest;
}  // namespace v1

// The request's `id` is the client's and may be empty; its deadline is not set.
struct ValidGenerate {
  Request request;
  bool has_seed = false;                     // if not, the caller draws a seed
  std::shared_ptr<const StopStrings> stops;  // never null; all samples share them
};

// All functions are pure and thread-safe. They take time and memory linear in the message; a prompt that can never fit
// is refused before it is tokenized. They rely on the protobuf parser having checked that texts are UTF-8.

absl::StatusOr<ValidGenerate> ValidateGenerate(const v1::GenerateRequest& message, const ServedModel& model);
absl::StatusOr<Request> ValidateScore(const v1::ScoreRequest& message, const ServedModel& model);
// Requests that read a text and keep it: with max_tokens 0, keep_as and progress. Whether a text fits together with a
// context is not known here.
absl::StatusOr<Request> ValidateCreateContext(const v1::CreateContextRequest& message, const ServedModel& model);
absl::StatusOr<Request> ValidateAppendContext(const v1::AppendContextRequest& message, const ServedModel& model);
absl::StatusOr<GetContextQuery> ValidateGetContext(const v1::GetContextRequest& message);
absl::StatusOr<ListContextsQuery> ValidateListContexts(const v1::ListContextsRequest& message);
absl::StatusOr<ForkContextQuery> ValidateForkContext(const v1::ForkContextRequest& message);
absl::StatusOr<RenameContextQuery> ValidateRenameContext(const v1::RenameContextRequest& message);
absl::StatusOr<PinContextQuery> ValidatePinContext(const v1::PinContextRequest& message);
absl::StatusOr<DeleteContextQuery> ValidateDeleteContext(const v1::DeleteContextRequest& message);
absl::StatusOr<FileQuery> ValidateExportContext(const v1::ExportContextRequest& message);
// Takes the data out of the message.
absl::StatusOr<ImportPart> ValidateImportContext(v1::ImportContextRequest* message);
// What Get answers.
v1::Context ToMessage(const NamedContext& context);
// PERMISSION_DENIED if the request asks for a higher priority than its client may.
absl::Status CheckPriority(const Request& request);
// INVALID_ARGUMENT if text and raw bytes together take more than `bytes_max`.
absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& message, const ServedModel& model,
                                                  int64_t bytes_max);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CALLS_VALIDATION_H_
