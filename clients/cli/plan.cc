// goldfinch plan: how the layers would be split over workers.
#include <algorithm>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "base/units.h"
#include "clients/cli/cluster_setup.h"
#include "clients/cli/device.h"
#include "clients/cli/machine_limits.h"
#include "clients/cli/plan_table.h"
#include "clients/cli/serve_commands.h"
#include "clients/cli/terminal.h"
#include "coordinator/membership.h"
#include "coordinator/model_description.h"
#include "coordinator/planner.h"
#include "kernels/backend.h"
#include "protos/cluster.pb.h"
#include "worker/device_speed.h"

namespace goldfinch {
namespace {

// As many as --worker names, or else as many as there are stages.
absl::StatusOr<std::vector<WorkerResources>> WorkersGiven(const PlanCommandOptions& options) {
  std::vector<WorkerResources> workers;
  for (const std::string& text : options.workers) {
    workers.emplace_back();
    if (ParsePlannedWorker(text, &workers.back())) continue;
    return UsageError(
        absl::StrCat("--worker is ", text, ", expected memory in GB, TFLOP/s and GB/s, as in 126,700,4000"));
  }
  return workers;
}

std::string Describe(const WorkerResources& worker) {
  return absl::StrFormat("%s, %.4g GFLOP/s, %.4g GB/s", HumanBytes(worker.memory_bytes), worker.flops / 1e9,
                         worker.read_bytes_per_second / 1e9);
}

}  // namespace

absl::Status RunPlan(const PlanCommandOptions& options) {
  const ServeOptions& serve = options.serve;
  int stages = 0;
  GF_ASSIGN_OR_RETURN(PartitionOptions partition, PartitionOptionsOf(serve, &stages));
  PlannedPipeline plan;
  GF_ASSIGN_OR_RETURN(plan.resources, WorkersGiven(options));
  if (!plan.resources.empty()) {
    const int workers = static_cast<int>(plan.resources.size());
    if (stages != 1 && stages != workers) {
      return UsageError(absl::StrCat("--worker is given ", workers, " times, there are ", stages, " stages"));
    }
    stages = workers;
  }
  BackendOptions part = serve.backend;  // of a worker, as `goldfinch serve` has them
  part.threads = std::max(1, (part.threads > 0 ? part.threads : ThisMachine().cpus.threads()) / stages);
  std::string device;
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, OpenDevice(part, &device));
  GF_ASSIGN_OR_RETURN(const cluster::v1::Described model, DescribeModelOn(*backend, serve));
  const ModelMemory memory = ReadModelMemory(model);
  const int layers = model.layers_size();
  bool on_gpus = false;
  if (plan.resources.empty()) {
    stages = std::min(stages, layers);
    int64_t bytes = serve.memory_bytes;
    if (bytes == 0) {
      GF_ASSIGN_OR_RETURN(bytes, UsableMemoryBytes(*backend, serve.gpu_memory_utilization));
    }
    GF_ASSIGN_OR_RETURN(const DeviceSpeed speed, MeasureDevice(*backend));
    plan.resources.assign(stages, {bytes / stages, speed.flops, speed.read_bytes_per_second});
    plan.workers = absl::StrCat(stages, " of this machine, measured: ", device, ", ", Describe(plan.resources[0]));
    on_gpus = backend->kind() != DeviceKind::kCpu;
  } else {
    // Nothing else tells what kind of worker it is.
    on_gpus = std::all_of(plan.resources.begin(), plan.resources.end(),
                          [](const WorkerResources& worker) { return worker.flops >= kManyFlops; });
    plan.workers = absl::StrCat(stages, " as given, which keep the model as ", device, " does: ");
    for (const WorkerResources& worker : plan.resources) {
      absl::StrAppend(&plan.workers, &worker == &plan.resources[0] ? "" : "; ", Describe(worker));
    }
  }
  for (WorkerResources& worker : plan.resources) worker.model = &memory;
  const bool is_given = partition.links.bytes_per_second > 0;
  if (!is_given) partition.links.bytes_per_second = AssumedLinkSpeed(options.transport);
  plan.links = absl::StrCat(HumanBytes(static_cast<int64_t>(partition.links.bytes_per_second)), "/s, ",
                            is_given ? "as given" : absl::StrCat("assumed for ", options.transport));
  if (partition.max_step_tokens > 0) {
    GF_ASSIGN_OR_RETURN(plan.partition, PartitionLayers(model, plan.resources, partition));
  } else {
    GF_ASSIGN_OR_RETURN(plan.partition,
                        PartitionWithLongSteps(model, plan.resources, on_gpus ? kGpuStepTokens : kCpuStepTokens,
                                               kCpuStepTokens, &partition));
  }
  plan.splits = CompareSplits(model, plan.resources, partition, plan.partition);
  std::cout << (options.json ? PlanJson(plan).dump(2) + "\n" : PlanTable(plan));
  return absl::OkStatus();
}

}  // namespace goldfinch
