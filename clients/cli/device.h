// The device that a command computes on.
#ifndef GOLDFINCH_CLIENTS_CLI_DEVICE_H_
#define GOLDFINCH_CLIENTS_CLI_DEVICE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/cli/machine_lock.h"
#include "kernels/open_backend.h"

namespace goldfinch {

// OpenBackend for a command: threads are those that the machine's limits allow unless the options name a number, and a
// device that is not available is a usage error. `description` gets "cpu, 2 threads,
// AVX3 (no CUDA: ...)", for a log line; it may be null.
absl::StatusOr<std::unique_ptr<Backend>> OpenDevice(const BackendOptions& options, std::string* description = nullptr);

// The GPU that a worker computes on, of those with these UUIDs. "auto" becomes "cuda:N" with the first GPU that no
// other worker of this machine has; it stays as it is if there are none, and it is a usage error if all are taken. The
// lock tells the others, for as long as it is held. A GPU that is named is taken in any case.
absl::StatusOr<std::optional<MachineLock>> TakeGpu(const std::vector<std::string>& uuids, std::string* device);

// How much of the back end's memory to use if the user has not said so: for the CPU a share of the memory that the
// machine's limits allow;
// for a GPU `gpu_memory_utilization` of all its memory, less what is in use already. RESOURCE_EXHAUSTED if nothing is
// left.
absl::StatusOr<int64_t> UsableMemoryBytes(const Backend& backend, double gpu_memory_utilization);
// The same for a GPU with the given memory, of which `free_bytes` are free. Pure.
absl::StatusOr<int64_t> LeftOfShare(double gpu_memory_utilization, int64_t total_bytes, int64_t free_bytes);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_DEVICE_H_
