// The device that the tests of numbers run on, as the environment says:
//   GOLDFINCH_TEST_DEVICE  cpu (if not set), cuda, cuda:N, or fake: a device that computes with the CPU (FakeDevice)
//   GOLDFINCH_TEST_DTYPE   of activations, as --dtype; auto if not set
#ifndef GOLDFINCH_TESTS_PARITY_TEST_DEVICE_H_
#define GOLDFINCH_TESTS_PARITY_TEST_DEVICE_H_

#include <memory>
#include <string>

#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"

namespace goldfinch {

struct TestDevice {
  std::unique_ptr<Backend> backend = nullptr;
  std::string why_not = {};  // if there is no back end: tests are skipped
  // Whether results are the same, bit for bit, whatever shares a batch.
  bool exact = true;
  bool slow = false;  // emulated: few tests, small ones
  // The limit of ||ours - expected|| / ||expected|| in logits, where `expected` is what the definitions say.
  double tolerance = 0;
};

// One for the process. Aborts if the environment names no device.
const TestDevice& GetTestDevice();

// Another back end of that device, for a thread of its own. Aborts if it cannot be had.
std::unique_ptr<Backend> MakeTestBackend();

// Equal, or if they need not be exact, nearly so.
testing::AssertionResult Same(absl::Span<const float> ours, absl::Span<const float> expected,
                              bool exact = GetTestDevice().exact);
// The largest relative error that Same has seen.
double LargestDifference();

// For a fixture's SetUp.
#define GOLDFINCH_SKIP_WITHOUT_DEVICE() \
  if (GetTestDevice().backend == nullptr) GTEST_SKIP() << GetTestDevice().why_not

}  // namespace goldfinch

#endif  // GOLDFINCH_TESTS_PARITY_TEST_DEVICE_H_
