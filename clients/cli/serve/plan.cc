// goldfinch plan: how the layers would be split over workers.
#include <algorithm>
#include <cstddef>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "base/units.h"
#include "clients/cli/serve/cluster_setup.h"
#include "clients/cli/serve/plan_table.h"
#include "clients/cli/serve/serve_commands.h"
#include "clients/cli/serve/stage_devices.h"
#include "clients/cli/terminal/terminal.h"
#include "coordinator/membership/membership.h"
#include "coordinator/planner/model_description.h"
#include "coordinator/planner/planner.h"
#include "kernels/backend.h"
#include "protos/cluster.pb.h"

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

// Stages of one GPU share its memory and take turns.
std::vector<WorkerResources> ResourcesOf(const StageDevices& devices) {
  std::vector<WorkerResources> resources;
  for (const StageDevice& stage : devices.stages) {
    const double part = stage.backend->kind() == DeviceKind::kCpu ? 1 : 1.0 / stage.sharing;
    resources.push_back(
        {stage.memory_bytes, part * stage.speed.flops, part * stage.speed.read_bytes_per_second, nullptr});
  }
  return resources;
}

absl::StatusOr<int> CountLayers(const ServeOptions& options) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/1);
  GF_ASSIGN_OR_RETURN(const cluster::v1::Described model, DescribeModelOn(*backend, options));
  return model.layers_size();
}

std::string Describe(const WorkerResources& worker) {
  return absl::StrFormat("%s, %.4g GFLOP/s, %.4g GB/s", HumanBytes(worker.memory_bytes), worker.flops / 1e9,
                         worker.read_bytes_per_second / 1e9);
}

// Each device once, with what one of its stages has of it.
std::string DescribeEach(const StageDevices& devices, const std::vector<WorkerResources>& resources) {
  std::string text;
  for (size_t stage = 0; stage < devices.stages.size(); stage += devices.stages[stage].sharing) {
    const StageDevice& device = devices.stages[stage];
    absl::StrAppend(&text, stage == 0 ? "" : "; ", device.description, ", ", Describe(resources[stage]),
                    device.sharing > 1 ? " each" : "");
  }
  return text;
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
  if (plan.resources.empty()) {
    GF_ASSIGN_OR_RETURN(const int layers, CountLayers(serve));
    stages = std::min(stages, layers);
  }
  const StageMachine machine = ThisStageMachine();
  ServeOptions to_open = serve;
  const bool named = !plan.resources.empty();
  if (named) {
    // They keep the model as one of as many workers of this machine does.
    const int threads = serve.backend.threads > 0 ? serve.backend.threads : machine.threads;
    to_open.backend.threads = std::max(1, threads / stages);
  }
  GF_ASSIGN_OR_RETURN(StageDevices devices, OpenStageDevices(to_open, named ? 1 : stages, machine, /*claims=*/false));
  const Backend& backend = *devices.stages[0].backend;
  const std::string& device = devices.stages[0].description;
  GF_ASSIGN_OR_RETURN(const cluster::v1::Described model, DescribeModelOn(*devices.stages[0].backend, serve));
  const ModelMemory memory = ReadModelMemory(model);
  bool on_gpus = false;
  if (!named) {
    GF_RETURN_IF_ERROR(MeasureStages(&devices));
    plan.resources = ResourcesOf(devices);
    plan.workers = absl::StrCat(stages, " of this machine, measured: ", DescribeEach(devices, plan.resources));
    on_gpus = backend.kind() != DeviceKind::kCpu;
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
