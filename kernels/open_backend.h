// Chooses and opens the back end that computes.
#ifndef GOLDFINCH_KERNELS_OPEN_BACKEND_H_
#define GOLDFINCH_KERNELS_OPEN_BACKEND_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace goldfinch {

struct BackendOptions {
  std::string device = "auto";  // auto (CUDA if a device is usable, else the CPU), cpu, cuda (device 0) or cuda:N
  std::string dtype = "auto";   // type of activations: auto (bf16 on CUDA, f32 on the CPU), f32, f16 or bf16
  int threads = 0;              // of the CPU back end; 0 takes one per core
};

// Whether `text` is a valid BackendOptions::device.
bool IsDeviceName(const std::string& text);

// The number of the GPU that such a text names: N of "cuda:N", 0 of "cuda"; nothing for the others.
std::optional<int> GpuNumber(const std::string& device);

// The UUIDs of the GPUs that "cuda:N" numbers; empty if there are none.
std::vector<std::string> GpuUuids();

// INVALID_ARGUMENT begins with the field and says what is allowed: "device is \"x\", expected ...", "dtype is bf16, the
// CPU computes in f32 only". If a CUDA device was asked for, the errors of MakeCudaBackend follow the field and its
// value: "device cuda:1: ...". If auto takes the CPU, `no_cuda` receives the reason why CUDA was not
// chosen, for a log line; it may be null.
absl::StatusOr<std::unique_ptr<Backend>> OpenBackend(const BackendOptions& options, std::string* no_cuda = nullptr);

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_OPEN_BACKEND_H_
