// The CUDA back end against the plain double versions, on a device. Without one the tests are skipped.
#include <iostream>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_cases.h"

namespace goldfinch {
namespace {

std::vector<Case> DeviceCases() {
  const auto backend = MakeCudaBackend({});
  return backend.ok() ? CudaCases(/*slow=*/false) : std::vector<Case>{};
}

TEST(CudaDeviceTest, ThereIsADevice) {
  const auto backend = MakeCudaBackend({});
  if (!backend.ok()) GTEST_SKIP() << "no test of CUDA kernels on a device: " << backend.status().message();
  std::cout << (*backend)->Describe() << std::endl;
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(BackendTest);
INSTANTIATE_TEST_SUITE_P(Cuda, BackendTest, testing::ValuesIn(DeviceCases()), testing::PrintToStringParamName());

}  // namespace
}  // namespace goldfinch
