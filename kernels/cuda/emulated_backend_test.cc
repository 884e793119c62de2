// The CUDA back end against the plain double versions, its kernels run by the emulation on the CPU.
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_cases.h"

namespace goldfinch {
namespace {

std::vector<Case> EmulatedCases() {
  std::vector<Case> cases = CudaCases(/*slow=*/true);
#ifdef __SANITIZE_ADDRESS__
  // Sanitizers make it several times slower still, and types differ in numbers, not in addresses.
  std::erase_if(cases, [](const Case& c) { return c.name != "bf16_activations_bf16"; });
#endif
  return cases;
}

INSTANTIATE_TEST_SUITE_P(CudaEmulated, BackendTest, testing::ValuesIn(EmulatedCases()),
                         testing::PrintToStringParamName());

}  // namespace
}  // namespace goldfinch
