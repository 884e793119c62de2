// The device that a command computes on.
#ifndef GOLDFINCH_CLIENTS_CLI_MACHINE_DEVICE_H_
#define GOLDFINCH_CLIENTS_CLI_MACHINE_DEVICE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/cli/machine/machine_lock.h"
#include "kernels/open_backend.h"

namespace goldfinch {

// OpenBackend for a command: threads are those that the machine's limits allow unless the options name a number, and a
// device that is not available is a usage error. `description` gets "cpu, 2 threads, AVX3 (no CUDA: ...)", for a log
// line; it may be null.
absl::StatusOr<std::unique_ptr<Backend>> OpenDevice(const BackendOptions& options, std::string* description = nullptr);

// The device of a worker of its own, which other workers of this machine leave alone.
struct WorkerDevice {
  std::unique_ptr<Backend> backend;
  std::string description;          // as of OpenDevice
  std::optional<MachineLock> lock;  // tells the others for as long as it is held that the GPU is taken
};
using DeviceOpener = std::function<absl::StatusOr<std::unique_ptr<Backend>>(const BackendOptions&, std::string*)>;
// Opens the device that `options` name, with `open`. "auto" is the first of the GPUs with these UUIDs that no other
// worker of this machine has and that can be opened, or the CPU if none can; it is a usage error if all are taken. A
// GPU that is named is opened in any case.
absl::StatusOr<WorkerDevice> OpenWorkerDevice(const BackendOptions& options, const std::vector<std::string>& uuids,
                                              const DeviceOpener& open = OpenDevice);

// How much of the back end's memory to use if the user has not said so: for the CPU a share of the memory that the
// machine's limits allow; for a GPU `gpu_memory_utilization` of all its memory, less what is in use already.
// RESOURCE_EXHAUSTED if nothing is left.
absl::StatusOr<int64_t> UsableMemoryBytes(const Backend& backend, double gpu_memory_utilization);
// The same for a GPU with the given memory, of which `free_bytes` are free. Pure.
absl::StatusOr<int64_t> LeftOfShare(double gpu_memory_utilization, int64_t total_bytes, int64_t free_bytes);
// The GPUs of this host, also those that CUDA_VISIBLE_DEVICES hides from this process but not from the workers beside
// it. The driver lists them in `driver_folder`.
int HostGpus(const std::string& driver_folder = "/proc/driver/nvidia/gpus");
// How much of the host's memory workers take for segments of texts: what was asked for, or if that is negative one
// kContextMemoryPart, which the workers of `host_gpus` GPUs share. On the CPU, it comes out of `memory_bytes`.
int64_t ContextMemoryBytes(int64_t asked_for, bool on_cpu, int host_gpus, int64_t* memory_bytes);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_MACHINE_DEVICE_H_
