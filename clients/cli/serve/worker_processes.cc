#include "clients/cli/serve/worker_processes.h"

#include <cstddef>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "clients/cli/terminal/terminal.h"

namespace goldfinch {
namespace {

std::vector<WorkerProcess> OnCpu(const std::vector<NumaNode>& nodes) {
  if (nodes.size() < 2) return {{"cpu", "cpu"}};
  std::vector<WorkerProcess> processes;
  for (const NumaNode& node : nodes) processes.push_back({absl::StrCat("node", node.number), "cpu", node.cpus});
  return processes;
}

WorkerProcess OnGpu(int gpu) { return {absl::StrCat("gpu", gpu), absl::StrCat("cuda:", gpu)}; }

}  // namespace

absl::StatusOr<std::vector<WorkerProcess>> WorkerProcesses(const DeviceList& devices, const WorkerMachine& machine) {
  const auto gpus = static_cast<int>(machine.gpu_uuids.size());
  if (devices.kind == DeviceList::Kind::kCpu || (devices.kind == DeviceList::Kind::kAll && gpus == 0)) {
    return OnCpu(machine.nodes);
  }
  std::vector<WorkerProcess> processes;
  if (devices.kind == DeviceList::Kind::kGpus) {
    if (const absl::Status status = CheckGpusExist(devices, gpus); !status.ok()) return AsUsageError(status);
    for (const int gpu : devices.gpus) processes.push_back(OnGpu(gpu));
    return processes;
  }
  for (int gpu = 0; gpu < gpus; ++gpu) {
    if (!machine.gpu_uuids[gpu].empty() && !machine.gpu_taken[gpu]) processes.push_back(OnGpu(gpu));
  }
  if (!processes.empty()) return processes;
  return UsageError(
      absl::StrCat("--devices is all, and other workers compute on all ", gpus,
                   " GPUs of this machine, or they cannot be used; --devices 0 shares one if both workers "
                   "have --memory"));
}

std::vector<std::string> WorkerArguments(const std::vector<std::string>& arguments, const std::string& name,
                                         const WorkerProcess& process) {
  std::vector<std::string> own;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string_view argument = arguments[i];
    bool drops = false;
    for (const std::string_view flag : {"--devices", "--name"}) {
      if (argument == flag) ++i;  // its value follows
      drops |= argument == flag || (argument.starts_with(flag) && argument.substr(flag.size()).starts_with("="));
    }
    if (!drops) own.emplace_back(argument);
  }
  for (const std::string& more : {std::string("--device"), process.device, std::string("--name"),
                                  absl::StrCat(name, "/", process.name), std::string("--supervised")}) {
    own.push_back(more);
  }
  return own;
}

}  // namespace goldfinch
