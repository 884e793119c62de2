// goldfinch worker --devices: a worker for each device, in a process of its own.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/host_port.h"
#include "base/status.h"
#include "clients/cli/machine/device_list.h"
#include "clients/cli/machine/machine.h"
#include "clients/cli/machine/machine_lock.h"
#include "clients/cli/machine/numa.h"
#include "clients/cli/serve/serve_commands.h"
#include "clients/cli/serve/server_log.h"
#include "clients/cli/serve/stop_signal.h"
#include "clients/cli/serve/supervisor.h"
#include "clients/cli/serve/worker_processes.h"
#include "clients/cli/terminal/terminal.h"
#include "kernels/open_backend.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

constexpr char kThisProgram[] = "/proc/self/exe";  // also when its file has been replaced
constexpr double kGraceSeconds = 10;               // beyond --shutdown-timeout, before processes are killed

WorkerMachine ThisWorkerMachine() {
  WorkerMachine machine{.gpu_uuids = GpuUuids(), .gpu_taken = {}, .nodes = ThisMachinesNodes()};
  for (const std::string& uuid : machine.gpu_uuids) {
    machine.gpu_taken.push_back(!uuid.empty() && !MachineLock::Try(uuid));
  }
  return machine;
}

}  // namespace

absl::Status RunWorkers(const WorkerCommandOptions& options, const std::vector<std::string>& arguments) {
  if (const absl::Status status = ParseHostPort(options.coordinator).status(); !status.ok()) {
    return UsageError(absl::StrCat("--coordinator ", std::string(status.message())));
  }
  StopSignal stop;
  LogAsServer();
  absl::StatusOr<DeviceList> devices = ParseDeviceList(options.devices);
  if (!devices.ok()) return AsUsageError(devices.status());
  GF_ASSIGN_OR_RETURN(const std::vector<WorkerProcess> processes, WorkerProcesses(*devices, ThisWorkerMachine()));
  const std::string name = options.name.empty() ? ProcessName() : options.name;
  std::vector<SupervisedChild> children;
  for (const WorkerProcess& process : processes) {
    children.push_back({process.name, kThisProgram, WorkerArguments(arguments, name, process), process.cpus});
  }
  SupervisorOptions supervisor;
  supervisor.shutdown_seconds = options.shutdown_timeout_seconds + kGraceSeconds;
  supervisor.log = [](const std::string& line) { spdlog::info("{}", line); };
  spdlog::info("{} workers, each in a process of its own", children.size());
  return Supervise(children, supervisor, stop);
}

}  // namespace goldfinch
