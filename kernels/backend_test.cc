// The CPU back end against the plain double versions: the common suite with the cases of the CPU.
#include <memory>
#include <string>
#include <utility>

#include "hwy/targets.h"
#include "kernels/backend_test_util.h"

namespace goldfinch {
namespace {

// Every type on every instruction set of this machine.
std::vector<Case> CpuCases() {
  constexpr std::pair<DType, DType> kTypes[] = {
      {DType::kF32, DType::kF32}, {DType::kF16, DType::kF16}, {DType::kBf16, DType::kBf16}};
  std::vector<Case> cases;
  for (int64_t target : {HWY_AVX3, HWY_AVX2, HWY_SSE4}) {
    if ((hwy::SupportedTargets() & target) == 0) continue;
    const auto make = [target](int threads) {
      hwy::SetSupportedTargetsForTest(target);
      hwy::GetChosenTarget().DeInit();  // the next op chooses again
      return MakeCpuBackend(threads);
    };
    for (const auto& [weights, cache] : kTypes) {
      cases.push_back({.name = std::string(hwy::TargetName(target)) + "_" + Name(weights),
                       .make = make,
                       .weight_dtype = weights,
                       .cache_dtype = cache,
                       .bit_invariant = true,
                       .thorough = cases.size() == 2});  // bf16 on the best instruction set
    }
  }
  return cases;
}

TEST(CpuBackendTest, DescribesItself) {
  for (const Case& test_case : CpuCases()) {
    const std::unique_ptr<Backend> backend = test_case.make(2);
    const std::string target = test_case.name.substr(0, test_case.name.find('_'));
    EXPECT_EQ(backend->Describe(), "cpu, 2 threads, " + target);
    EXPECT_EQ(backend->threads(), 2);
    EXPECT_GE(test_case.make(0)->threads(), 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, BackendTest, testing::ValuesIn(CpuCases()), testing::PrintToStringParamName());

}  // namespace
}  // namespace goldfinch
