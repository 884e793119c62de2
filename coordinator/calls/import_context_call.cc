#include "coordinator/calls/import_context_call.h"

#include <utility>

#include "coordinator/calls/validation.h"

namespace goldfinch {

void ImportContext(ContextTransfers& transfers, std::shared_ptr<const Client> client, v1::ImportContextRequest* message,
                   absl::AnyInvocable<void(absl::StatusOr<v1::ImportContextResponse> response)> answer) {
  absl::StatusOr<ImportPart> part = ValidateImportContext(message);
  if (!part.ok()) return answer(part.status());
  transfers.Import(std::move(client), *std::move(part),
                   [answer = std::move(answer)](absl::StatusOr<ImportProgress> progress) mutable {
                     if (!progress.ok()) return answer(progress.status());
                     v1::ImportContextResponse response;
                     response.set_received(progress->received);
                     if (progress->context) *response.mutable_context() = ToMessage(*progress->context);
                     answer(std::move(response));
                   });
}

}  // namespace goldfinch
