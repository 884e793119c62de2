// The judge is judged first: the plain model agrees with the golden cases as far as their float32 numbers reach.
#include "tests/parity/reference_model.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/parity/golden_case.h"
#include "tests/parity/reference_weights.h"

namespace goldfinch {
namespace {

class ReferenceModelTest : public testing::TestWithParam<std::string> {};

TEST_P(ReferenceModelTest, AgreesWithTheGoldenCase) {
  const GoldenCase golden = ReadGoldenCase(GetParam());
  ReferenceConfig config;
  config.rope_base = golden.config.rope_base.value_or(0);
  const ReferenceOutput output = RunReference(ReadReferenceWeights(*golden.checkpoint), config, golden.tokens);
  constexpr double kTolerance = 1e-6;
  EXPECT_LE(RelativeError(golden.logits, output.logits), kTolerance);
  if (golden.compressed.empty()) {
    EXPECT_TRUE(output.compressed.empty());
  } else {
    EXPECT_LE(RelativeError(golden.compressed, output.compressed), kTolerance);
  }
  RecordProperty("relative_error", testing::PrintToString(RelativeError(golden.logits, output.logits)));
}

INSTANTIATE_TEST_SUITE_P(Golden, ReferenceModelTest, testing::ValuesIn(GoldenNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace goldfinch
