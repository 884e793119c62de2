#include "tests/parity/test_device.h"

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/check.h"
#ifdef GOLDFINCH_TEST_EMULATED
#include "kernels/cuda/cuda_backend.h"
#else
#include "kernels/open_backend.h"
#endif
#include "tests/parity/golden_case.h"
#include "worker/model/fake_device.h"

namespace goldfinch {
namespace {

// Sums of a few hundred fp32 products through 2 to 6 layers err by about 1e-6, as measured here; anything computed
// otherwise than the definitions say (another epsilon, a row too many, fp16 somewhere) errs by more than 1e-5.
constexpr double kF32Tolerance = 1e-5;
// Activations rounded to bf16, or inputs of products rounded to the type of the weights, which is bf16 in nearly all
// cases: twice the largest error of the fake device (0.025, the golden case of six layers).
constexpr double kBf16Tolerance = 5e-2;

// Activations rounded to fp16, inputs of products not rounded further: likewise.
constexpr double kF16Tolerance = 6e-3;
// Two results may err either way, and the error of one row may be above that of many.
constexpr double kSameFactor = 2;

double difference_max = 0;

std::string Environment(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == '\0' ? otherwise : value;
}

std::string DeviceName() { return Environment("GOLDFINCH_TEST_DEVICE", "cpu"); }

#ifdef GOLDFINCH_TEST_EMULATED
constexpr bool kSlow = true;
#else
constexpr bool kSlow = false;
#endif

// The type of activations on the fake device, and on the CUDA back end where that is emulated.
DType ActivationType() {
  const std::string dtype = Environment("GOLDFINCH_TEST_DTYPE", "auto");
  const std::optional<DType> activations = dtype == "auto" ? DType::kF32 : ParseFloatDType(dtype);
  GF_CHECK(activations) << "GOLDFINCH_TEST_DTYPE is " << dtype;
  return *activations;
}

absl::StatusOr<std::unique_ptr<Backend>> OpenOne() {
  if (DeviceName() == "fake") {
    return std::make_unique<FakeDevice>(MakeCpuBackend(/*threads=*/1), ActivationType());
  }
#ifdef GOLDFINCH_TEST_EMULATED
  // There is no CPU back end beside it.
  GF_CHECK_EQ(DeviceName(), "cuda");
  return MakeCudaBackend({.activation_dtype = ActivationType()});
#else
  return OpenBackend({.device = DeviceName(), .dtype = Environment("GOLDFINCH_TEST_DTYPE", "auto"), .threads = 1});
#endif
}

TestDevice Open() {
  absl::StatusOr<std::unique_ptr<Backend>> backend = OpenOne();
  GF_CHECK(!absl::IsInvalidArgument(backend.status())) << backend.status();
  GF_CHECK(backend.ok() || DeviceName() != "cpu") << backend.status();
  if (!backend.ok()) return {.why_not = std::string(backend.status().message())};
  TestDevice device{.backend = *std::move(backend), .tolerance = kF32Tolerance};
  if (DeviceName() == "cpu") return device;
  if (DeviceName() == "fake") {
    const DType activations = device.backend->activation_dtype();
    if (activations == DType::kF16) device.tolerance = kF16Tolerance;
    if (activations == DType::kBf16) device.tolerance = kBf16Tolerance;
    return device;
  }
  device.exact = false;
  device.slow = kSlow;
  device.tolerance = kBf16Tolerance;
  return device;
}

}  // namespace

const TestDevice& GetTestDevice() {
  // Not destroyed: a driver may be gone by then.
  static const TestDevice& device = *new TestDevice(Open());
  return device;
}

std::unique_ptr<Backend> MakeTestBackend() {
  absl::StatusOr<std::unique_ptr<Backend>> backend = OpenOne();
  GF_CHECK(backend.ok()) << backend.status();
  return *std::move(backend);
}

testing::AssertionResult Same(absl::Span<const float> ours, absl::Span<const float> expected, bool exact) {
  if (ours.size() == expected.size() && std::equal(ours.begin(), ours.end(), expected.begin())) {
    return testing::AssertionSuccess();
  }
  if (ours.size() != expected.size()) {
    return testing::AssertionFailure() << ours.size() << " numbers, expected " << expected.size();
  }
  const double error = RelativeError(ours, expected);
  const double limit = exact ? 0 : kSameFactor * GetTestDevice().tolerance;
  difference_max = std::max(difference_max, error);
  if (error <= limit) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "the relative difference is " << error << ", the limit " << limit;
}

double LargestDifference() { return difference_max; }

}  // namespace goldfinch
