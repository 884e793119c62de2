// The commands of `goldfinch context` that have a file on this machine, which context.cc runs.
#ifndef GOLDFINCH_CLIENTS_CLI_CONTEXT_CONTEXT_COMMANDS_H_
#define GOLDFINCH_CLIENTS_CLI_CONTEXT_CONTEXT_COMMANDS_H_

#include "absl/status/status.h"
#include "clients/cli/flags/options.h"

namespace goldfinch {

namespace v1 {
class Context;
}  // namespace v1

absl::Status RunContextExport(const ContextOptions& options);
absl::Status RunContextImport(const ContextOptions& options);
absl::Status RunContextVerify(const ContextOptions& options);

// Prints a context, with ages as of now: for the commands that make or change one.
void PrintContext(const v1::Context& context, bool json);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_CONTEXT_CONTEXT_COMMANDS_H_
