#include "clients/device.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "clients/machine.h"
#include "clients/terminal.h"

namespace goldfinch {

absl::StatusOr<std::unique_ptr<Backend>> OpenDevice(const BackendOptions& options, std::string* description) {
  std::string no_cuda;
  absl::StatusOr<std::unique_ptr<Backend>> backend = OpenBackend(options, &no_cuda);
  if (!backend.ok()) return AsUsageError(backend.status());
  if (description != nullptr) {
    *description = (*backend)->Describe();
    if (!no_cuda.empty()) absl::StrAppend(description, " (", no_cuda, ")");
  }
  return backend;
}

int64_t DeviceMemoryBytes(const Backend& backend) {
  if (backend.reads_host_memory()) return MachineMemoryBytes();
  return backend.FreeBytes();
}

}  // namespace goldfinch
