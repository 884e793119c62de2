// The CUDA back end: Backend on one NVIDIA GPU of compute capability 8.0 or newer.
#ifndef GOLDFINCH_KERNELS_CUDA_CUDA_BACKEND_H_
#define GOLDFINCH_KERNELS_CUDA_CUDA_BACKEND_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_counters.h"

namespace goldfinch {

struct CudaOptions {
  int device = 0;                         // ordinal among the devices that CUDA_VISIBLE_DEVICES shows
  DType activation_dtype = DType::kBf16;  // fp32, fp16 or bf16
};

// The counters so far. `backend` must be from MakeCudaBackend.
CudaCounters CountersOf(const Backend& backend);

// The UUIDs of the devices, by CudaOptions::device; empty if there are none or no driver.
std::vector<std::string> CudaDeviceUuids();

// UNAVAILABLE if this program was built without CUDA, the machine has no such device or no driver, or a library
// (cuBLASLt) cannot be found; the message says which. FAILED_PRECONDITION if the device is too old.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions& options);

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_CUDA_CUDA_BACKEND_H_
