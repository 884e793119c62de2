#include "clients/cli/load_test/load_test_schedule.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;

LengthDistribution Lengths(const std::string& text) {
  const auto lengths = LengthDistribution::Parse("--prompt-tokens", text);
  EXPECT_TRUE(lengths.ok()) << lengths.status();
  return *lengths;
}

std::vector<int64_t> Draws(const std::string& text, int count) {
  const LengthDistribution lengths = Lengths(text);
  PortableRandom random(1);
  std::vector<int64_t> draws(count);
  for (int64_t& draw : draws) draw = lengths.Draw(random);
  std::sort(draws.begin(), draws.end());
  return draws;
}

TEST(LengthDistributionTest, Fixed) { EXPECT_EQ(Draws("fixed:17", 3), (std::vector<int64_t>{17, 17, 17})); }

TEST(LengthDistributionTest, UniformDrawsEveryLengthEquallyOften) {
  const std::vector<int64_t> draws = Draws("uniform:3:6", 40'000);
  for (int64_t length = 3; length <= 6; ++length) {
    // Within six standard deviations.
    EXPECT_NEAR(std::count(draws.begin(), draws.end(), length), 10'000, 520) << length;
  }
  EXPECT_EQ(Draws("uniform:5:5", 2), (std::vector<int64_t>{5, 5}));
}

TEST(LengthDistributionTest, LognormalHasItsMedianAndSpread) {
  const std::vector<int64_t> draws = Draws("lognormal:1000:0.5", 40'001);
  EXPECT_NEAR(draws[20'000], 1000, 20);
  EXPECT_NEAR(draws[static_cast<size_t>(40'000 * 0.8413)], 1000 * std::exp(0.5), 40);  // one standard deviation above
  EXPECT_NEAR(draws[static_cast<size_t>(40'000 * 0.1587)], 1000 * std::exp(-0.5), 20);
  EXPECT_EQ(Draws("lognormal:9:0", 2), (std::vector<int64_t>{9, 9}));
}

TEST(LengthDistributionTest, LognormalIsClampedToTheLimits) {
  const std::vector<int64_t> draws = Draws("lognormal:1000:10", 10'000);
  EXPECT_EQ(draws.front(), 1);
  EXPECT_EQ(draws.back(), kLengthTokensMax);
}

TEST(LengthDistributionTest, RefusesWhatItCannotRead) {
  for (const auto& [text, says] : std::vector<std::pair<std::string, std::string>>{
           {"", "expected fixed:N"},
           {"fixed", "expected fixed:N"},
           {"fixed:1:2", "expected fixed:N"},
           {"uniform:1", "expected fixed:N"},
           {"normal:1:2", "expected fixed:N"},
           {"fixed:x", "x is not a number"},
           {"fixed:", "is not a number"},
           {"fixed:0", "from 1 to 4194304"},
           {"fixed:1.5", "whole numbers"},
           {"fixed:nan", "whole numbers"},
           {"fixed:4194305", "from 1 to 4194304"},
           {"uniform:0:5", "from 1 to"},
           {"uniform:5:4", "A is above B"},
           {"lognormal:5:-1", "SIGMA"},
           {"lognormal:5:nan", "SIGMA"},
       }) {
    const auto lengths = LengthDistribution::Parse("--output-tokens", text);
    ASSERT_TRUE(absl::IsInvalidArgument(lengths.status())) << text;
    EXPECT_THAT(std::string(lengths.status().message()), HasSubstr("--output-tokens is \"" + text + "\", "));
    EXPECT_THAT(std::string(lengths.status().message()), HasSubstr(says));
  }
}

TEST(LoadScheduleTest, ArrivalsArePoisson) {
  LoadSchedule schedule(50, Lengths("fixed:1"), Lengths("fixed:1"), 3);
  constexpr int kCount = 20'000;
  double last = 0, squares = 0;
  for (int i = 0; i < kCount; ++i) {
    const ScheduledRequest request = schedule.Next();
    EXPECT_EQ(request.number, i);
    ASSERT_GE(request.start_seconds, last);
    squares += (request.start_seconds - last) * (request.start_seconds - last);
    last = request.start_seconds;
  }
  const double mean = last / kCount;
  EXPECT_NEAR(mean, 1.0 / 50, 0.001);
  // The standard deviation of exponential gaps is their mean.
  EXPECT_NEAR(std::sqrt(squares / kCount - mean * mean), mean, 0.001);
}

TEST(LoadScheduleTest, DependsOnItsSeedAlone) {
  const auto first = [](uint64_t seed) {
    return LoadSchedule(1, Lengths("uniform:1:100000"), Lengths("uniform:1:100000"), seed).Next();
  };
  EXPECT_EQ(first(5).start_seconds, first(5).start_seconds);
  EXPECT_EQ(first(5).prompt_tokens, first(5).prompt_tokens);
  EXPECT_EQ(first(5).output_tokens, first(5).output_tokens);
  EXPECT_EQ(PromptIds(first(5), 257), PromptIds(first(5), 257));
  EXPECT_NE(first(5).prompt_tokens, first(6).prompt_tokens);
  EXPECT_NE(first(5).seed, first(6).seed);
}

TEST(MixSeedTest, DependsOnBothNumbers) {
  std::set<uint64_t> seeds;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    for (uint64_t number = 0; number < 100; ++number) seeds.insert(MixSeed(seed, number));
  }
  EXPECT_EQ(seeds.size(), 10'000u);
  EXPECT_EQ(MixSeed(0, 0), 0xE220A8397B1DCDAFu);  // the first number of SplitMix64 with seed 0
}

TEST(PromptIdsTest, UseTheWholeVocabularyButTheEndOfText) {
  ScheduledRequest request;
  request.prompt_tokens = 5000;
  request.seed = 1;
  const std::vector<uint32_t> ids = PromptIds(request, 257);
  EXPECT_EQ(ids.size(), 5000u);
  const std::set<uint32_t> different(ids.begin(), ids.end());
  EXPECT_EQ(*different.begin(), 1u);
  EXPECT_EQ(*different.rbegin(), 256u);
  EXPECT_EQ(different.size(), 256u);
}

}  // namespace
}  // namespace goldfinch
