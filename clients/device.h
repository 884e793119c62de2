// The device that a command computes on.
#ifndef GOLDFINCH_CLIENTS_DEVICE_H_
#define GOLDFINCH_CLIENTS_DEVICE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/open_backend.h"

namespace goldfinch {

// OpenBackend for a command: a device that cannot be had is the user's error. `description` gets "cpu, 2 threads, AVX3
// (no CUDA: ...)", for a log line; it may be null.
absl::StatusOr<std::unique_ptr<Backend>> OpenDevice(const BackendOptions& options, std::string* description = nullptr);

// What may be used of the back end's memory: for the CPU that of the machine, else what its device can give now.
int64_t DeviceMemoryBytes(const Backend& backend);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_DEVICE_H_
