// Penalties, biases and banned tokens.
#include <cmath>
#include <cstdint>
#include <map>
#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/stage/sampler.h"
#include "worker/stage/sampler_test_util.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;

TEST(SamplerTest, OccurrencesDecayAfterEachToken) {
  SamplingOptions options = Plain();
  options.presence_penalty = 0.5;
  options.frequency_penalty = 0.25;
  options.penalty_decay = 0.9;
  const std::vector<float> logits(4, 1);
  Sampler sampler(options, Vocabulary(4, {}, {3}));
  // By how much the logit of an id is below that of id 0, which never occurs.
  const auto penalty = [&](int32_t id) {
    const std::map<int32_t, double> probabilities = Probabilities(sampler, logits);
    return std::log(probabilities.at(0) / probabilities.at(id));
  };
  EXPECT_NEAR(penalty(1), 0, 1e-6) << "nothing has occurred";
  sampler.Observe(1);
  EXPECT_NEAR(penalty(1), 0.5 + 0.25, 1e-6);
  EXPECT_NEAR(penalty(2), 0, 1e-6);
  sampler.Observe(2);
  EXPECT_NEAR(penalty(1), 0.5 + 0.25 * 0.9, 1e-6);
  EXPECT_NEAR(penalty(2), 0.5 + 0.25, 1e-6);
  sampler.Observe(1);
  EXPECT_NEAR(penalty(1), 0.5 + 0.25 * (0.9 * 0.9 + 1), 1e-6);
  EXPECT_NEAR(penalty(2), 0.5 + 0.25 * 0.9, 1e-6);
  sampler.Observe(3);
  sampler.Observe(3);
  EXPECT_NEAR(penalty(3), 0.5, 1e-6) << "repeats freely: presence counts, occurrences do not";
  EXPECT_NEAR(penalty(1), 0.5 + 0.25 * (0.9 * 0.9 + 1) * 0.81, 1e-6) << "and it lets the others decay";
  for (int i = 0; i < 10000; ++i) sampler.Observe(3);
  EXPECT_NEAR(penalty(1), 0.5, 1e-6) << "presence stays for good";
}

TEST(SamplerTest, GreedyTakesTheLowestIdOfEqualsAndObeysPenalties) {
  SamplingOptions options;
  options.temperature = 0;
  Sampler sampler(options, Vocabulary(5));
  const std::vector<float> logits = {1, 3, 2.9F, 3, 3};
  SamplerScratch scratch;
  std::vector<int32_t> drawn;
  for (int position = 0; position < 5; ++position) {
    drawn.push_back(sampler.Sample(logits, position, scratch)->id);
    sampler.Observe(drawn.back());
  }
  // 1, 3 and 4 fall to 2.6 each, then 2; what decayed longest is best after that.
  EXPECT_THAT(drawn, ElementsAre(1, 3, 4, 2, 1));
}

TEST(SamplerTest, BiasesAddUp) {
  SamplingOptions options = Plain();
  options.logit_bias = {{1, 2.0}, {2, -1.0}, {1, 0.5}};
  const std::map<int32_t, double> probabilities = Probabilities(options, {0, 0, 0});
  EXPECT_NEAR(std::log(probabilities.at(1) / probabilities.at(0)), 2.5, 1e-6);
  EXPECT_NEAR(std::log(probabilities.at(2) / probabilities.at(0)), -1, 1e-6);
}

TEST(SamplerTest, BannedTokensAndIdsWithoutMeaningAreNeverDrawn) {
  SamplingOptions options = Plain();
  options.banned_tokens = {0, 2, 2, 6};
  options.logit_bias = {{2, 100}, {4, 100}, {7, 100}};
  const std::vector<float> logits = {50, 1, 50, 1, 50, 0, 50, 50};
  for (const double temperature : {0.0, 1.0, 100.0}) {
    options.temperature = temperature;
    const Sampler sampler(options, Vocabulary(8, {4, 7}));
    for (const auto& [id, probability] : Probabilities(sampler, logits)) {
      EXPECT_TRUE(id == 1 || id == 3 || id == 5) << id;
    }
    for (const int32_t id : Draw(sampler, logits, 200)) EXPECT_TRUE(id == 1 || id == 3 || id == 5) << id;
  }
}

TEST(SamplerTest, IdsFarAboveTheLimitMayBeNamed) {
  std::vector<int32_t> holes(997);
  std::iota(holes.begin(), holes.end(), 3);
  SamplingOptions options;
  options.logit_bias = {{900, 5}};
  options.banned_tokens = {999, 1};
  Sampler sampler(options, Vocabulary(1000, holes));
  sampler.Observe(950);
  for (const int32_t id : Draw(sampler, std::vector<float>(1000, 1), 100)) EXPECT_TRUE(id == 0 || id == 2) << id;
}

}  // namespace
}  // namespace goldfinch
