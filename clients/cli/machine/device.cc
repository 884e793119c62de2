#include "clients/cli/machine/device.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/units.h"
#include "clients/cli/machine/machine_limits.h"
#include "clients/cli/terminal/terminal.h"

namespace goldfinch {

absl::StatusOr<std::unique_ptr<Backend>> OpenDevice(const BackendOptions& options, std::string* description) {
  std::string no_cuda;
  BackendOptions limited = options;
  if (limited.threads == 0) limited.threads = ThisMachine().cpus.threads();
  absl::StatusOr<std::unique_ptr<Backend>> backend = OpenBackend(limited, &no_cuda);
  if (!backend.ok()) return AsUsageError(backend.status());
  if (description != nullptr) {
    *description = (*backend)->Describe();
    if (!no_cuda.empty()) absl::StrAppend(description, " (", no_cuda, ")");
  }
  return backend;
}

absl::StatusOr<WorkerDevice> OpenWorkerDevice(const BackendOptions& options, const std::vector<std::string>& uuids,
                                              const DeviceOpener& open) {
  const bool is_auto = options.device == "auto";
  BackendOptions one = options;
  WorkerDevice device;
  std::vector<std::string> unusable;
  bool some_taken = false;
  for (size_t gpu = 0; gpu < uuids.size(); ++gpu) {
    const std::string name = absl::StrCat("cuda:", gpu);
    const bool is_named = options.device == name || (options.device == "cuda" && gpu == 0);
    if (uuids[gpu].empty() || (!is_auto && !is_named)) continue;
    device.lock = MachineLock::Try(uuids[gpu]);
    if (is_named) break;
    some_taken |= !device.lock;
    if (!device.lock) continue;
    one.device = name;
    absl::StatusOr<std::unique_ptr<Backend>> opened = open(one, &device.description);
    if (opened.ok()) {
      device.backend = *std::move(opened);
      return device;
    }
    unusable.emplace_back(opened.status().message());
    device.lock.reset();
  }
  if (is_auto && some_taken && unusable.empty()) {
    return UsageError(absl::StrCat("--device is auto, and other workers compute on all ", uuids.size(),
                                   " GPUs of this machine; --device cuda:N shares one if both workers have --memory"));
  }
  // The GPUs that are left are those of others.
  one.device = is_auto && !uuids.empty() ? "cpu" : options.device;
  const std::string why = unusable.empty() ? "" : absl::StrCat(" (", absl::StrJoin(unusable, "; "), ")");
  absl::StatusOr<std::unique_ptr<Backend>> opened = open(one, &device.description);
  if (!opened.ok())
    return AsUsageError(absl::Status(opened.status().code(), absl::StrCat(opened.status().message(), why)));
  device.backend = *std::move(opened);
  device.description += why;
  return device;
}

absl::StatusOr<int64_t> UsableMemoryBytes(const Backend& backend, double gpu_memory_utilization) {
  // The rest is for the system, the tokenizer, requests and the pages of mapped files.
  constexpr double kMachineShare = 0.9;
  if (backend.kind() == DeviceKind::kCpu) {
    return static_cast<int64_t>(kMachineShare * static_cast<double>(ThisMachine().memory.bytes));
  }
  return LeftOfShare(gpu_memory_utilization, backend.TotalBytes(), backend.FreeBytes());
}

int HostGpus(const std::string& driver_folder) {
  std::error_code error;
  int gpus = 0;
  for (std::filesystem::directory_iterator entry(driver_folder, error), end; !error && entry != end;) {
    ++gpus;
    entry.increment(error);
  }
  return std::max(gpus, static_cast<int>(GpuUuids().size()));
}

int64_t ContextMemoryBytes(int64_t asked_for, bool on_cpu, int host_gpus, int64_t* memory_bytes) {
  const int64_t host = on_cpu ? *memory_bytes : ThisMachine().memory.bytes / std::max(host_gpus, 1);
  const int64_t bytes = asked_for >= 0 ? asked_for : host / kContextMemoryPart;
  if (on_cpu) *memory_bytes -= std::min(bytes, *memory_bytes);
  return bytes;
}

absl::StatusOr<int64_t> LeftOfShare(double gpu_memory_utilization, int64_t total_bytes, int64_t free_bytes) {
  const auto allowed = static_cast<int64_t>(gpu_memory_utilization * static_cast<double>(total_bytes));
  const int64_t used = total_bytes - free_bytes;
  if (allowed <= used) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "--gpu-memory-utilization is ", gpu_memory_utilization, ": of the device's ", HumanBytes(total_bytes),
        " that is ", HumanBytes(allowed), ", and ", HumanBytes(used), " are in use already"));
  }
  return allowed - used;
}

}  // namespace goldfinch
