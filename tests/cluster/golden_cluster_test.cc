// Every golden case through the whole service but its sockets, in pipelines of one to six stages, on the device that
// the environment names (tests/parity/test_device.h).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/cluster/local_cluster.h"
#include "tests/parity/golden_case.h"
#include "tests/parity/test_device.h"

namespace goldfinch {
namespace {

// With a device that errs more, single numbers say little: the whole is compared.
constexpr double kSingleNumbersTolerance = 1e-4;

class GoldenClusterTest : public ::testing::TestWithParam<std::string> {
 public:
  void SetUp() override { GOLDFINCH_SKIP_WITHOUT_DEVICE(); }
};

TEST_P(GoldenClusterTest, ScoresAsTheReferenceWhateverTheSplit) {
  const TestDevice& device = GetTestDevice();
  const GoldenCase golden = ReadGoldenCase(GetParam());
  const auto vocab = static_cast<int64_t>(golden.logits.size() / golden.tokens.size());
  // The last position's logits are those that a continuation is scored by.
  std::vector<float> first;
  for (const int stages : {1, 2, 3, 6}) {
    SCOPED_TRACE(absl::StrCat(stages, " stages"));
    LocalCluster cluster(golden.checkpoint->path(), stages, {}, MakeTestBackend);
    cluster.AwaitReady();
    const auto request = cluster.Score(golden.tokens, {{7}}, /*score_prompt=*/true);
    ASSERT_TRUE(request->Wait().ok()) << request->Wait();
    std::vector<float> logits = request->logits(-1);
    logits.insert(logits.end(), request->logits(0).begin(), request->logits(0).end());
    EXPECT_LE(RelativeError(logits, golden.logits), device.tolerance);
    if (first.empty()) first = logits;
    EXPECT_TRUE(Same(logits, first)) << "splitting changes results";
    // Log-probabilities against the reference's logits.
    const std::vector<OutputToken>& scores = request->scores(-1);
    ASSERT_EQ(scores.size(), golden.tokens.size() - 1);
    for (size_t row = 0; row < scores.size(); ++row) {
      const float* expected = golden.logits.data() + row * vocab;
      const double max = *std::max_element(expected, expected + vocab);
      double sum = 0;
      for (int64_t id = 0; id < vocab; ++id) sum += std::exp(expected[id] - max);
      ASSERT_EQ(scores[row].id, golden.tokens[row + 1]);
      ASSERT_EQ(scores[row].top.size(), 3U);
      if (device.tolerance > kSingleNumbersTolerance) continue;
      ASSERT_NEAR(*scores[row].logprob, expected[scores[row].id] - max - std::log(sum), kSingleNumbersTolerance);
      ASSERT_EQ(scores[row].top[0].id, std::max_element(expected, expected + vocab) - expected);
    }
    cluster.ExpectNothingHeld();
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, GoldenClusterTest, testing::ValuesIn(GoldenNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace goldfinch
