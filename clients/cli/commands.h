// The commands of the program.
#ifndef GOLDFINCH_CLIENTS_CLI_COMMANDS_H_
#define GOLDFINCH_CLIENTS_CLI_COMMANDS_H_

#include "absl/status/status.h"
#include "clients/cli/options.h"

namespace goldfinch {

// Each prints its result to standard output and everything else to standard error. INVALID_ARGUMENT and NOT_FOUND that
// UsageError made are the user's; see clients/cli/terminal.h for exit codes.
absl::Status RunGenerate(const GenerateOptions& options);
absl::Status RunRemoteGenerate(const GenerateOptions& options);
absl::Status RunInspect(const InspectOptions& options);
absl::Status RunLogits(const LogitsOptions& options);
absl::Status RunQuantize(const QuantizeOptions& options);
absl::Status RunTokenize(const TokenizeOptions& options);
absl::Status RunDetokenize(const TokenizeOptions& options);
absl::Status RunStatus(const StatusOptions& options);
absl::Status RunLoadTest(const LoadTestOptions& options);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_COMMANDS_H_
