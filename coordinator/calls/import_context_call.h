// One call of Contexts.Import: a part of a file.
#ifndef GOLDFINCH_COORDINATOR_CALLS_IMPORT_CONTEXT_CALL_H_
#define GOLDFINCH_COORDINATOR_CALLS_IMPORT_CONTEXT_CALL_H_

#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "coordinator/keeper/context_transfers.h"
#include "coordinator/scheduler/client.h"
#include "protos/contexts.pb.h"

namespace goldfinch {

// Checks the message, which loses its data, and hands it on. `answer` is called once: at once after an error, else on
// another thread, which it must not hold up.
void ImportContext(ContextTransfers& transfers, std::shared_ptr<const Client> client, v1::ImportContextRequest* message,
                   absl::AnyInvocable<void(absl::StatusOr<v1::ImportContextResponse> response)> answer);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CALLS_IMPORT_CONTEXT_CALL_H_
