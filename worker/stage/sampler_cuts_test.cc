// top_p, top_k, min_p and the temperature.
#include <cstdint>
#include <limits>
#include <map>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/stage/sampler.h"
#include "worker/stage/sampler_test_util.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;

SamplingOptions WithTopP(double top_p) {
  SamplingOptions options = Plain();
  options.top_p = top_p;
  return options;
}

SamplingOptions WithTopK(int64_t top_k) {
  SamplingOptions options = Plain();
  options.top_k = top_k;
  return options;
}

SamplingOptions WithMinP(double min_p) {
  SamplingOptions options = Plain();
  options.min_p = min_p;
  return options;
}

TEST(SamplerTest, TopPKeepsTheTokenThatReachesIt) {
  EXPECT_THAT(Support(WithTopP(0), FourLogits()), ElementsAre(2));
  EXPECT_THAT(Support(WithTopP(0.39), FourLogits()), ElementsAre(2));
  EXPECT_THAT(Support(WithTopP(0.41), FourLogits()), ElementsAre(0, 2));
  EXPECT_THAT(Support(WithTopP(0.69), FourLogits()), ElementsAre(0, 2));
  EXPECT_THAT(Support(WithTopP(0.71), FourLogits()), ElementsAre(0, 2, 3));
  EXPECT_THAT(Support(WithTopP(0.91), FourLogits()), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Support(WithTopP(1), FourLogits()), ElementsAre(0, 1, 2, 3));
}

TEST(SamplerTest, TopPKeepsEqualsOfTheLast) {
  EXPECT_THAT(Support(WithTopP(0), {3, 1, 3, 3, 2}), ElementsAre(0, 2, 3));
  EXPECT_THAT(Support(WithTopP(0.9), {0, 2, 2, 1, 1, 1, 0}), ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(Support(WithTopP(0), {0.0F, -0.0F, -1}), ElementsAre(0, 1));
}

TEST(SamplerTest, TopPOneKeepsWhatHasNoProbabilityInFp32) {
  EXPECT_THAT(Support(WithTopP(1), {0, -1000, -3e38F}), ElementsAre(0, 1, 2));
}

TEST(SamplerTest, TopKTakesTheLowestIdsOfEquals) {
  EXPECT_THAT(Support(WithTopK(1), FourLogits()), ElementsAre(2));
  EXPECT_THAT(Support(WithTopK(3), FourLogits()), ElementsAre(0, 2, 3));
  EXPECT_THAT(Support(WithTopK(4), FourLogits()), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Support(WithTopK(3), {5, 5, 7, 5, 5}), ElementsAre(0, 1, 2));
  EXPECT_THAT(Support(WithTopK(std::numeric_limits<int64_t>::max()), {5, 4}), ElementsAre(0, 1));
}

TEST(SamplerTest, MinPIsAShareOfTheLargest) {
  EXPECT_THAT(Support(WithMinP(0.26), FourLogits()), ElementsAre(0, 2, 3));
  EXPECT_THAT(Support(WithMinP(0.24), FourLogits()), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Support(WithMinP(1), {1, 2, 2}), ElementsAre(1, 2));
}

TEST(SamplerTest, TheShortestOfTheCutsRemains) {
  SamplingOptions options = WithTopP(0.71);
  options.top_k = 2;
  EXPECT_THAT(Support(options, FourLogits()), ElementsAre(0, 2));
  options.min_p = 0.8;
  EXPECT_THAT(Support(options, FourLogits()), ElementsAre(2));
}

TEST(SamplerTest, TemperatureChangesProbabilitiesButNotWhatIsKept) {
  for (const double temperature : {1e-300, 1e-3, 0.5, 2.0, 100.0}) {
    SamplingOptions options = WithTopP(0.71);
    options.temperature = temperature;
    EXPECT_THAT(Support(options, FourLogits()), ElementsAre(0, 2, 3)) << temperature;
  }
  SamplingOptions options = Plain();
  options.temperature = 0.5;
  std::map<int32_t, double> probabilities = Probabilities(options, FourLogits());
  EXPECT_NEAR(probabilities[0], 0.09 / 0.3, 1e-6);
  EXPECT_NEAR(probabilities[1], 0.01 / 0.3, 1e-6);
  options.temperature = 1e-3;
  probabilities = Probabilities(options, FourLogits());
  EXPECT_EQ(probabilities[2], 1);
  options.temperature = 100;
  probabilities = Probabilities(options, FourLogits());
  EXPECT_NEAR(probabilities[1], 0.25, 0.003);
}

TEST(SamplerTest, SmallTemperatureDrawsAmongEquals) {
  SamplingOptions options = Plain();
  options.temperature = 1e-3;
  const std::map<int32_t, double> probabilities = Probabilities(options, {4, 5, 5, 4.9F});
  EXPECT_EQ(probabilities.at(1), 0.5);
  EXPECT_EQ(probabilities.at(2), 0.5);
}

TEST(SamplerTest, OneTokenIsAlwaysDrawn) {
  for (const double temperature : {0.0, 1.0}) {
    Sampler sampler({.temperature = temperature, .logprobs = 5}, Vocabulary(1));
    SamplerScratch scratch;
    for (int position = 0; position < 10; ++position) {
      const Token token = sampler.Sample(std::vector<float>{-7}, position, scratch).value();
      EXPECT_EQ(token.id, 0);
      EXPECT_EQ(token.logprob, 0);
      EXPECT_EQ(token.top.size(), 1);
      sampler.Observe(token.id);
    }
  }
}

}  // namespace
}  // namespace goldfinch
