// `goldfinch context`.
#ifndef GOLDFINCH_CLIENTS_CLI_CONTEXT_CONTEXT_H_
#define GOLDFINCH_CLIENTS_CLI_CONTEXT_CONTEXT_H_

#include "absl/status/status.h"
#include "clients/cli/flags/options.h"

namespace goldfinch {

// Prints and returns errors as the commands of clients/cli/local/local_commands.h do.
absl::Status RunContext(const ContextOptions& options);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_CONTEXT_CONTEXT_H_
