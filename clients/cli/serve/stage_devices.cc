#include "clients/cli/serve/stage_devices.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "base/units.h"
#include "clients/cli/machine/device_list.h"
#include "clients/cli/machine/machine_limits.h"
#include "clients/cli/machine/placement.h"
#include "clients/cli/terminal/terminal.h"
#include "kernels/open_backend.h"

namespace goldfinch {
namespace {

// A GPU that is open.
struct OpenGpu {
  int number = 0;
  std::string name;  // as BackendOptions::device has it
  std::unique_ptr<Backend> backend;
  std::string description;
  int64_t memory_bytes = 0;  // that all stages on it may use
};

// "stage 2" or "stages 2 to 4".
std::string StagesText(int first, int count) {
  return count == 1 ? absl::StrCat("stage ", first) : absl::StrCat("stages ", first, " to ", first + count - 1);
}

// Places the stages of one process.
class Placer {
 public:
  Placer(const ServeOptions& options, int count, const StageMachine& machine, bool claims, const DeviceOpener& open)
      : options_(options), count_(count), machine_(machine), claims_(claims), open_(open) {}

  absl::StatusOr<StageDevices> Place() {
    GF_ASSIGN_OR_RETURN(const DeviceList wanted, Wanted());
    if (wanted.kind != DeviceList::Kind::kCpu) GF_RETURN_IF_ERROR(OpenGpus(wanted));
    GF_RETURN_IF_ERROR(gpus_.empty() ? PlaceOnCpu(wanted) : PlaceOnGpus());
    return std::move(devices_);
  }

 private:
  // --device is a list of one, unless it is "auto".
  absl::StatusOr<DeviceList> Wanted() const {
    if (!options_.devices.empty()) {
      absl::StatusOr<DeviceList> list = ParseDeviceList(options_.devices);
      if (!list.ok()) return UsageError(absl::StrCat("--devices: ", std::string(list.status().message())));
      GF_RETURN_IF_ERROR(AsUsageError(CheckGpusExist(*list, static_cast<int>(machine_.gpu_uuids.size()))));
      return list;
    }
    const std::string& device = options_.backend.device;
    if (device == "cpu") return DeviceList{DeviceList::Kind::kCpu};
    if (device == "auto") return DeviceList{DeviceList::Kind::kAll};
    return DeviceList{DeviceList::Kind::kGpus, {GpuNumber(device).value_or(0)}};
  }

  absl::Status OpenGpus(const DeviceList& wanted) {
    const bool named = wanted.kind == DeviceList::Kind::kGpus;
    std::vector<int> numbers = wanted.gpus;
    for (int gpu = 0; !named && gpu < static_cast<int>(machine_.gpu_uuids.size()); ++gpu) numbers.push_back(gpu);
    int taken = 0;
    std::vector<int> idle;
    for (const int number : numbers) {
      if (static_cast<int>(gpus_.size()) == count_) {
        idle.push_back(number);
        continue;
      }
      const bool is_listed = number < static_cast<int>(machine_.gpu_uuids.size());
      const std::string uuid = is_listed ? machine_.gpu_uuids[number] : "";
      if (uuid.empty() && !named) continue;
      std::optional<MachineLock> lock;
      if (claims_ && !uuid.empty()) {
        lock = MachineLock::Try(uuid);
        taken += lock ? 0 : 1;
        if (!lock && !named) continue;
      }
      absl::StatusOr<OpenGpu> gpu = Open(number);
      if (gpu.ok()) {
        gpus_.push_back(*std::move(gpu));
        if (lock) devices_.locks.push_back(*std::move(lock));
      } else if (named) {
        return gpu.status();
      } else {
        unusable_.emplace_back(gpu.status().message());
      }
    }
    if (gpus_.empty() && taken > 0 && unusable_.empty()) {
      return UsageError(absl::StrCat("other workers compute on all ", machine_.gpu_uuids.size(),
                                     " GPUs of this machine; --devices 0 shares one if both have --memory"));
    }
    for (const std::string& why : unusable_) devices_.lines.push_back(absl::StrCat("a GPU is left out: ", why));
    if (!gpus_.empty() && !idle.empty()) {
      devices_.lines.push_back(absl::StrCat(
          "GPU ", absl::StrJoin(idle, ", "), idle.size() == 1 ? " is" : " are",
          " idle: each stage has a GPU, and --pipeline-parallel-size and --replicas say how many stages there are"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<OpenGpu> Open(int number) {
    OpenGpu gpu;
    gpu.number = number;
    const std::string& device = options_.backend.device;
    gpu.name = options_.devices.empty() && device != "auto" ? device : absl::StrCat("cuda:", number);
    GF_ASSIGN_OR_RETURN(gpu.backend, OpenAs(gpu.name, &gpu.description));
    gpu.memory_bytes = gpu.backend->TotalBytes();
    if (options_.memory_bytes == 0) {
      GF_ASSIGN_OR_RETURN(gpu.memory_bytes, UsableMemoryBytes(*gpu.backend, options_.gpu_memory_utilization));
    }
    return gpu;
  }

  absl::StatusOr<std::unique_ptr<Backend>> OpenAs(const std::string& name, std::string* description) const {
    BackendOptions one = options_.backend;
    one.device = name;
    return open_(one, description);
  }

  absl::Status PlaceOnGpus() {
    std::vector<int64_t> sizes;
    for (const OpenGpu& gpu : gpus_) sizes.push_back(std::max<int64_t>(gpu.memory_bytes, 1));
    const std::vector<int> placed = PlaceStages(count_, sizes);
    const std::vector<int> sharing = StagesOnEach(placed, static_cast<int>(gpus_.size()));
    int64_t none = 0;
    const int64_t shelf = options_.no_prefix_cache
                              ? 0
                              : ContextMemoryBytes(options_.context_memory, /*on_cpu=*/false, /*host_gpus=*/1, &none);
    for (int stage = 0; stage < count_; ++stage) {
      OpenGpu& gpu = gpus_[placed[stage]];
      StageDevice& device = devices_.stages.emplace_back();
      device.description = gpu.description;
      device.device = gpu.number;
      device.sharing = sharing[placed[stage]];
      device.memory_bytes =
          options_.memory_bytes > 0 ? options_.memory_bytes / count_ : gpu.memory_bytes / device.sharing;
      device.shelf_bytes = shelf / count_;
      if (gpu.backend == nullptr) {  // the stage before has it: this one has queues of its own on the same GPU
        GF_ASSIGN_OR_RETURN(device.backend, OpenAs(gpu.name, /*description=*/nullptr));
        continue;
      }
      device.backend = std::move(gpu.backend);
      devices_.lines.push_back(absl::StrCat(StagesText(stage, device.sharing), " on GPU ", gpu.number, ": ",
                                            gpu.description, ", ", HumanBytes(device.memory_bytes),
                                            device.sharing > 1 ? " each" : ""));
    }
    return absl::OkStatus();
  }

  absl::Status PlaceOnCpu(const DeviceList& wanted) {
    // Without GPUs "auto" says why CUDA was not chosen.
    const bool says_why = wanted.kind == DeviceList::Kind::kAll && machine_.gpu_uuids.empty();
    const int threads = options_.backend.threads > 0 ? options_.backend.threads : machine_.threads;
    const std::vector<CpuPart> parts = PlaceOnNodes(count_, threads, machine_.nodes);
    for (int stage = 0; stage < count_; ++stage) {
      const CpuPart& part = parts[stage];
      const bool is_new = stage == 0 || part.cpus != parts[stage - 1].cpus;
      StageDevice& device = devices_.stages.emplace_back();
      device.device = stage == 0 ? 0 : devices_.stages[stage - 1].device + (is_new ? 1 : 0);
      device.cpus = part.cpus;
      BackendOptions one = options_.backend;
      one.device = says_why ? "auto" : "cpu";
      one.threads = part.threads;
      {
        const RunsOn there(device.cpus);
        GF_ASSIGN_OR_RETURN(device.backend, open_(one, &device.description));
      }
      if (!is_new) continue;
      if (part.cpus.empty()) {
        devices_.lines.push_back(absl::StrCat("device: ", device.description));
      } else {
        const auto same =
            std::count_if(parts.begin(), parts.end(), [&](const CpuPart& p) { return p.cpus == part.cpus; });
        devices_.lines.push_back(absl::StrCat(StagesText(stage, static_cast<int>(same)), " on CPUs ",
                                              absl::StrJoin(part.cpus, ","), ": ", device.description));
      }
    }
    return DivideCpuMemory();
  }

  absl::Status DivideCpuMemory() {
    int64_t memory = options_.memory_bytes;
    if (memory == 0) {
      GF_ASSIGN_OR_RETURN(memory, UsableMemoryBytes(*devices_.stages[0].backend, options_.gpu_memory_utilization));
    }
    const int64_t shelf = options_.no_prefix_cache
                              ? 0
                              : ContextMemoryBytes(options_.context_memory, /*on_cpu=*/true, /*host_gpus=*/0, &memory);
    for (StageDevice& device : devices_.stages) {
      device.memory_bytes = memory / count_;
      device.shelf_bytes = shelf / count_;
      device.sharing = static_cast<int>(std::count_if(devices_.stages.begin(), devices_.stages.end(),
                                                      [&](const StageDevice& d) { return d.device == device.device; }));
    }
    return absl::OkStatus();
  }

  const ServeOptions& options_;
  const int count_;
  const StageMachine& machine_;
  const bool claims_;
  const DeviceOpener& open_;
  std::vector<OpenGpu> gpus_;
  std::vector<std::string> unusable_;
  StageDevices devices_;
};

}  // namespace

StageMachine ThisStageMachine() { return {GpuUuids(), ThisMachinesNodes(), ThisMachine().cpus.threads()}; }

absl::StatusOr<StageDevices> OpenStageDevices(const ServeOptions& options, int count, const StageMachine& machine,
                                              bool claims, const DeviceOpener& open) {
  return Placer(options, count, machine, claims, open).Place();
}

absl::Status MeasureStages(StageDevices* devices) {
  const StageDevice* before = nullptr;
  for (StageDevice& device : devices->stages) {
    if (before != nullptr && before->device == device.device) {
      device.speed = before->speed;
    } else {
      const RunsOn there(device.cpus);
      GF_ASSIGN_OR_RETURN(device.speed, MeasureDevice(*device.backend));
    }
    before = &device;
  }
  return absl::OkStatus();
}

}  // namespace goldfinch
