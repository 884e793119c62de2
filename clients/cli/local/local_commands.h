// The commands that work with a model or a vocabulary of this machine.
#ifndef GOLDFINCH_CLIENTS_CLI_LOCAL_LOCAL_COMMANDS_H_
#define GOLDFINCH_CLIENTS_CLI_LOCAL_LOCAL_COMMANDS_H_

#include "absl/status/status.h"
#include "clients/cli/flags/options.h"

namespace goldfinch {

// Each prints its result to standard output and everything else to standard error. Errors that the user's command line
// caused are marked by UsageError or AsUsageError, which decides the exit code (clients/cli/terminal/terminal.h).
absl::Status RunGenerate(const GenerateOptions& options);
absl::Status RunInspect(const InspectOptions& options);
absl::Status RunLogits(const LogitsOptions& options);
absl::Status RunQuantize(const QuantizeCommandOptions& options);
absl::Status RunTokenize(const TokenizeOptions& options);
absl::Status RunDetokenize(const TokenizeOptions& options);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_LOCAL_LOCAL_COMMANDS_H_
