// Every golden case through the whole service but its sockets, in pipelines of one to six stages.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/cluster/local_cluster.h"
#include "tests/parity/golden_case.h"

namespace goldfinch {
namespace {

constexpr double kTolerance = 1e-5;  // fp32 sums in another order than the reference's float64

class GoldenClusterTest : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenClusterTest, ScoresAsTheReferenceWhateverTheSplit) {
  const GoldenCase golden = ReadGoldenCase(GetParam());
  const auto vocab = static_cast<int64_t>(golden.logits.size() / golden.tokens.size());
  // The last position's logits are those that a continuation is scored by.
  std::vector<float> first;
  for (const int stages : {1, 2, 3, 6}) {
    SCOPED_TRACE(absl::StrCat(stages, " stages"));
    LocalCluster cluster(absl::StrCat("tests/golden/", GetParam(), "/model.pth"), stages);
    cluster.AwaitReady();
    const auto request = cluster.Score(golden.tokens, {{7}}, /*score_prompt=*/true);
    ASSERT_TRUE(request->Wait().ok()) << request->Wait();
    std::vector<float> logits = request->logits(-1);
    logits.insert(logits.end(), request->logits(0).begin(), request->logits(0).end());
    EXPECT_LE(RelativeError(logits, golden.logits), kTolerance);
    if (first.empty()) first = logits;
    EXPECT_EQ(logits, first) << "splitting changes results";
    // Log-probabilities against the reference's logits.
    const std::vector<OutputToken>& scores = request->scores(-1);
    ASSERT_EQ(scores.size(), golden.tokens.size() - 1);
    for (size_t row = 0; row < scores.size(); ++row) {
      const float* expected = golden.logits.data() + row * vocab;
      const double max = *std::max_element(expected, expected + vocab);
      double sum = 0;
      for (int64_t id = 0; id < vocab; ++id) sum += std::exp(expected[id] - max);
      ASSERT_EQ(scores[row].id, golden.tokens[row + 1]);
      ASSERT_NEAR(*scores[row].logprob, expected[scores[row].id] - max - std::log(sum), 1e-4);
      ASSERT_EQ(scores[row].top.size(), 3U);
      ASSERT_EQ(scores[row].top[0].id, std::max_element(expected, expected + vocab) - expected);
    }
    cluster.ExpectNothingHeld();
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, GoldenClusterTest, testing::ValuesIn(GoldenNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace goldfinch
