// The types that the CUDA back end is tested with, on a device and emulated.
#ifndef GOLDFINCH_KERNELS_CUDA_CUDA_CASES_H_
#define GOLDFINCH_KERNELS_CUDA_CUDA_CASES_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend_test_util.h"
#include "kernels/cuda/cuda_backend.h"

namespace goldfinch {

inline std::vector<Case> CudaCases(bool slow) {
  // Relative L2. fp32 sums in other orders than the double version, with exponentials of the device. 16-bit activations
  // are rounded between the steps of an op: a few units of 2^-11 and 2^-8.
  constexpr double kFp32 = 1e-5, kFp16 = 2e-3, kBf16 = 1.5e-2;
  struct Types {
    DType weights;
    DType activations;
    double tolerance;
    double activation_tolerance;
  };
  const Types types[] = {
      {DType::kF32, DType::kF32, kFp32, kFp32},
      {DType::kF16, DType::kF16, kFp16, kFp16},
      {DType::kBf16, DType::kBf16, kBf16, kBf16},
      {DType::kBf16, DType::kF32, kBf16, kFp32},
  };
  std::vector<Case> cases;
  for (const Types& t : types) {
    const auto make = [dtype = t.activations](int) {
      auto backend = MakeCudaBackend({.activation_dtype = dtype});
      GF_CHECK(backend.ok()) << backend.status().ToString();
      return *std::move(backend);
    };
    cases.push_back({.name = std::string(Name(t.weights)) + "_activations_" + Name(t.activations),
                     .make = make,
                     .weight_dtype = t.weights,
                     .cache_dtype = t.weights,
                     .activation_dtype = t.activations,
                     .tolerance = t.tolerance,
                     .activation_tolerance = t.activation_tolerance,
                     .bit_invariant = false,
                     .thorough = !slow && t.activations == DType::kBf16,
                     .slow = slow});
  }
  return cases;
}

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_CUDA_CUDA_CASES_H_
