// What is linked instead of the CUDA back end if no CUDA toolkit was found at build time.
#include "absl/status/status.h"
#include "base/check.h"
#include "kernels/cuda/cuda_backend.h"

namespace goldfinch {

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions&) {
  return absl::UnavailableError("no CUDA: this program was built without a CUDA toolkit");
}

std::vector<std::string> CudaDeviceUuids() { return {}; }

CudaCounters CountersOf(const Backend& backend) {
  GF_CHECK(false) << backend.Describe();
  return {};
}

}  // namespace goldfinch
