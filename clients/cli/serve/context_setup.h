// Where a server keeps contexts beside the memory of its workers.
#ifndef GOLDFINCH_CLIENTS_CLI_SERVE_CONTEXT_SETUP_H_
#define GOLDFINCH_CLIENTS_CLI_SERVE_CONTEXT_SETUP_H_

#include "absl/status/status.h"
#include "clients/cli/flags/serve_options.h"
#include "coordinator/coordinator.h"

namespace goldfinch {

// Opens the folder of --context-dir, or, if workers are processes of their own, makes a store in memory. Errors name
// the flag: a folder that another process has, or that cannot be read or written.
absl::Status OpenContextStore(const ServeOptions& options, bool embedded, CoordinatorOptions* coordinator);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_SERVE_CONTEXT_SETUP_H_
