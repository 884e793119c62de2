// The CUDA back end against the plain double versions, its kernels run by the emulation on the CPU.
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_cases.h"

namespace goldfinch {
namespace {

INSTANTIATE_TEST_SUITE_P(CudaEmulated, BackendTest, testing::ValuesIn(CudaCases(/*slow=*/true)),
                         testing::PrintToStringParamName());

}  // namespace
}  // namespace goldfinch
