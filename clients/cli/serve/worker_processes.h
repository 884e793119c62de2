// Which worker processes `goldfinch worker --devices` starts.
#ifndef GOLDFINCH_CLIENTS_CLI_SERVE_WORKER_PROCESSES_H_
#define GOLDFINCH_CLIENTS_CLI_SERVE_WORKER_PROCESSES_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/cli/machine/device_list.h"
#include "clients/cli/machine/numa.h"

namespace goldfinch {

// One process.
struct WorkerProcess {
  std::string name;            // "gpu0", "cpu" or "node1"
  std::string device;          // of --device
  std::vector<int> cpus = {};  // that it runs on; empty: anywhere

  bool operator==(const WorkerProcess&) const = default;
};

// What there is to start them on.
struct WorkerMachine {
  std::vector<std::string> gpu_uuids = {};  // by number; empty texts for those that cannot be asked
  std::vector<bool> gpu_taken = {};         // by number: whether another worker computes there
  std::vector<NumaNode> nodes = {};
};

// A process for each GPU that is named; for each that is not taken, if all are; for each NUMA node of the CPU, or one
// if there are not several. Usage errors: a GPU is named that is not there, or all GPUs are taken. Pure.
absl::StatusOr<std::vector<WorkerProcess>> WorkerProcesses(const DeviceList& devices, const WorkerMachine& machine);

// The arguments of a process: those of its parent, without the flags that are for the parent alone, and with its own
// device and its name, which is `name` of the parent and its own.
std::vector<std::string> WorkerArguments(const std::vector<std::string>& arguments, const std::string& name,
                                         const WorkerProcess& process);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_SERVE_WORKER_PROCESSES_H_
