// The commands that ask a server, but for those of contexts and load tests, which have rooms of their own.
#ifndef GOLDFINCH_CLIENTS_CLI_REMOTE_REMOTE_COMMANDS_H_
#define GOLDFINCH_CLIENTS_CLI_REMOTE_REMOTE_COMMANDS_H_

#include "absl/status/status.h"
#include "clients/cli/flags/options.h"

namespace goldfinch {

// Prints and returns errors as the commands of clients/cli/local/local_commands.h do.
absl::Status RunRemoteGenerate(const GenerateOptions& options);
absl::Status RunStatus(const StatusOptions& options);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_REMOTE_REMOTE_COMMANDS_H_
