#include "kernels/open_backend.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_backend.h"

namespace goldfinch {
namespace {

constexpr char kCudaPrefix[] = "cuda:";
constexpr size_t kDigitsMax = 4;

absl::StatusOr<std::unique_ptr<Backend>> OpenCuda(int ordinal, std::optional<DType> dtype) {
  return MakeCudaBackend({.device = ordinal, .activation_dtype = dtype.value_or(DType::kBf16)});
}

absl::StatusOr<std::unique_ptr<Backend>> OpenCpu(const BackendOptions& options, std::optional<DType> dtype,
                                                 const std::string& no_cuda) {
  if (dtype.value_or(DType::kF32) != DType::kF32) {
    const std::string why = no_cuda.empty() ? "" : absl::StrCat(" (", no_cuda, ")");
    return absl::InvalidArgumentError(absl::StrCat("dtype is ", options.dtype, ", the CPU computes in f32 only", why));
  }
  return MakeCpuBackend(options.threads);
}

}  // namespace

std::optional<int> GpuNumber(const std::string& device) {
  if (device == "cuda") return 0;
  if (!device.starts_with(kCudaPrefix)) return std::nullopt;
  const std::string digits = device.substr(sizeof(kCudaPrefix) - 1);
  int number = 0;
  // SimpleAtoi also accepts signs and spaces.
  const bool all_digits = std::all_of(digits.begin(), digits.end(), [](char c) { return absl::ascii_isdigit(c); });
  if (!all_digits || digits.size() > kDigitsMax || !absl::SimpleAtoi(digits, &number)) return std::nullopt;
  return number;
}

bool IsDeviceName(const std::string& text) { return text == "auto" || text == "cpu" || GpuNumber(text).has_value(); }

std::vector<std::string> GpuUuids() { return CudaDeviceUuids(); }

absl::StatusOr<std::unique_ptr<Backend>> OpenBackend(const BackendOptions& options, std::string* no_cuda) {
  if (no_cuda != nullptr) no_cuda->clear();
  if (!IsDeviceName(options.device)) {
    return absl::InvalidArgumentError(
        absl::StrCat("device is \"", options.device, "\", expected auto, cpu, cuda or cuda:N"));
  }
  const std::optional<DType> dtype = ParseFloatDType(options.dtype);
  if (!dtype && options.dtype != "auto") {
    return absl::InvalidArgumentError(
        absl::StrCat("dtype is \"", options.dtype, "\", expected auto, f32, f16 or bf16"));
  }
  if (options.device == "cpu") return OpenCpu(options, dtype, "");
  const bool any = options.device == "auto";
  absl::StatusOr<std::unique_ptr<Backend>> cuda = OpenCuda(any ? 0 : *GpuNumber(options.device), dtype);
  if (cuda.ok()) return cuda;
  const std::string why(cuda.status().message());
  if (!any) return absl::Status(cuda.status().code(), absl::StrCat("device ", options.device, ": ", why));
  if (no_cuda != nullptr) *no_cuda = why;
  return OpenCpu(options, dtype, why);
}

}  // namespace goldfinch
