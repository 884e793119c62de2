// The commands that serve. They end with SIGTERM or SIGINT.
#ifndef GOLDFINCH_CLIENTS_CLI_SERVE_COMMANDS_H_
#define GOLDFINCH_CLIENTS_CLI_SERVE_COMMANDS_H_

#include "absl/status/status.h"
#include "clients/cli/serve_options.h"

namespace goldfinch {

// Errors before anything is served, and what ends a server but a signal.
absl::Status RunServe(const ServeOptions& options);
absl::Status RunCoordinator(const ServeOptions& options);
absl::Status RunWorker(const WorkerOptions& options);

// Log lines have a time from here on: "2026-03-01T12:00:00.123Z info ...".
void LogAsServer();

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_SERVE_COMMANDS_H_
