// Runs child processes beside each other, so that the end of one does not end the others.
#ifndef GOLDFINCH_CLIENTS_CLI_SERVE_SUPERVISOR_H_
#define GOLDFINCH_CLIENTS_CLI_SERVE_SUPERVISOR_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "clients/cli/serve/stop_signal.h"

namespace goldfinch {

struct SupervisedChild {
  std::string name;  // stands before each of its lines: "[gpu0] ..."
  std::string program;
  std::vector<std::string> arguments;  // from argv[1] on
  std::vector<int> cpus = {};          // that it runs on; empty: wherever this process may
};

struct SupervisorOptions {
  // A child that dies is started again after a pause, which doubles each time until it has run for `settled_seconds`.
  double restart_seconds = 1;
  double restart_seconds_max = 60;
  double settled_seconds = 600;
  double shutdown_seconds = 20;  // that children have to end once they are told; then they are killed
  std::function<void(const std::string& line)> log = nullptr;  // what becomes of the children; must not be null
};

// Starts the children and returns when all have ended for good. Standard error of theirs appears on that of this
// process, line by line after their names. Each is in a process group of its own, so that the terminal's signals come
// to this process alone, and gets SIGTERM if this process dies.
//
// A child has ended for good if SIGTERM has ended it, or its exit code is 0, which is what SIGTERM makes of it, or 2: a
// wrong flag, or a device that cannot be used, does not mend itself. Any other end is a death. Once `stop` is raised or
// a signal has come, all get SIGTERM and none is started again.
//
// OK if all have ended by SIGTERM or with 0. Else the error names those that have not, and those that were dead at the
// end; it is a usage error if one has ended with 2. INTERNAL if a process could not be started at first.
//
// For a process whose other threads, if it has any, do not fork.
absl::Status Supervise(const std::vector<SupervisedChild>& children, const SupervisorOptions& options,
                       StopSignal& stop);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_SERVE_SUPERVISOR_H_
