// The commands of the program, but for those that serve (serve_commands.h).
#ifndef GOLDFINCH_CLIENTS_CLI_COMMANDS_H_
#define GOLDFINCH_CLIENTS_CLI_COMMANDS_H_

#include "absl/status/status.h"
#include "clients/cli/options.h"

namespace goldfinch {

// Each prints its result to standard output and everything else to standard error. Errors that the user's command line
// caused are marked by UsageError or AsUsageError, which decides the exit code (clients/cli/terminal.h).
absl::Status RunGenerate(const GenerateOptions& options);
absl::Status RunRemoteGenerate(const GenerateOptions& options);
absl::Status RunInspect(const InspectOptions& options);
absl::Status RunLogits(const LogitsOptions& options);
absl::Status RunQuantize(const QuantizeCommandOptions& options);
absl::Status RunTokenize(const TokenizeOptions& options);
absl::Status RunDetokenize(const TokenizeOptions& options);
absl::Status RunStatus(const StatusOptions& options);
absl::Status RunLoadTest(const LoadTestOptions& options);
absl::Status RunContext(const ContextOptions& options);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_COMMANDS_H_
