#include "worker/device_speed.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"

namespace goldfinch {
namespace {

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

// Returns the seconds that one product of `rows` rows with the weight takes: the shortest of as many as fit in
// `seconds`.
absl::StatusOr<double> TimeProduct(Backend& backend, int64_t rows, Matrix weight, double seconds) {
  const auto start = std::chrono::steady_clock::now();
  const Tensor x{nullptr, DType::kF32, {rows, weight.in()}}, out{nullptr, DType::kF32, {rows, weight.out()}};
  GF_ASSIGN_OR_RETURN(const std::shared_ptr<void> x_memory, backend.Allocate(x.bytes(), "measuring"));
  GF_ASSIGN_OR_RETURN(const std::shared_ptr<void> out_memory, backend.Allocate(out.bytes(), "measuring"));
  double best = 1e9;
  do {
    const auto begin = std::chrono::steady_clock::now();
    backend.MatMul({x_memory.get(), x.dtype, x.shape}, weight, {}, {out_memory.get(), out.dtype, out.shape});
    GF_RETURN_IF_ERROR(backend.Synchronize());
    best = std::min(best, Seconds(begin));
  } while (Seconds(start) < seconds);
  return std::max(best, 1e-9);
}

}  // namespace

absl::StatusOr<DeviceSpeed> MeasureDevice(Backend& backend) {
  constexpr double kSeconds = 0.04;  // for each of the two measurements
  // The whole weight is larger than any cache, to measure reading; its first kSmall rows fit in one, to measure
  // arithmetic.
  constexpr int64_t kIn = 4096, kOut = 8192, kSmall = 1024, kRows = 128;
  Tensor large{nullptr, DType::kBf16, {kOut, kIn}};
  GF_ASSIGN_OR_RETURN(const std::shared_ptr<void> memory, backend.Allocate(large.bytes(), "measuring"));
  large.data = memory.get();
  {
    // Memory that was never written may be a single page of zeros, which is read too fast.
    const std::vector<uint16_t> ones(kOut * kIn, 0x3F80);
    backend.CopyFromHost(ones.data(), large);
  }
  const ConstTensor small{large.data, DType::kBf16, {kSmall, kSmall}};
  GF_ASSIGN_OR_RETURN(const double many, TimeProduct(backend, kRows, {small}, kSeconds));
  GF_ASSIGN_OR_RETURN(const double one, TimeProduct(backend, 1, {large}, kSeconds));
  return DeviceSpeed{2.0 * kRows * kSmall * kSmall / many, static_cast<double>(large.bytes()) / one};
}

}  // namespace goldfinch
