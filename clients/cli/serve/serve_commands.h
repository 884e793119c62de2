// The commands that serve, which run until SIGTERM or SIGINT, and the one that plans for them.
#ifndef GOLDFINCH_CLIENTS_CLI_SERVE_SERVE_COMMANDS_H_
#define GOLDFINCH_CLIENTS_CLI_SERVE_SERVE_COMMANDS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "clients/cli/flags/serve_options.h"

namespace goldfinch {

// Each returns OK if a signal ended it, else why it could not start or go on.
absl::Status RunServe(const ServeOptions& options);
absl::Status RunCoordinator(const ServeOptions& options);
absl::Status RunWorker(const WorkerCommandOptions& options);
// The same in a process for each of options.devices. `arguments` are those of this program, "worker" first: each
// process gets them with a device and a name of its own. Returns when all have ended, as Supervise says.
absl::Status RunWorkers(const WorkerCommandOptions& options, const std::vector<std::string>& arguments);
// Prints the plan to standard output.
absl::Status RunPlan(const PlanCommandOptions& options);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_SERVE_SERVE_COMMANDS_H_
