#include "coordinator/contexts/snapshot_plan.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using Positions = std::vector<int64_t>;

TEST(SnapshotPlanTest, AShortPromptHasOneAtItsEnd) {
  EXPECT_EQ(PlanSnapshots({}, {.begin = 0, .end = 100}), Positions{100});
  EXPECT_EQ(PlanSnapshots({}, {.begin = 99, .end = 100}), Positions{100});
  EXPECT_EQ(PlanSnapshots({}, {.begin = 100, .end = 100}), Positions{});
  EXPECT_EQ(PlanSnapshots({}, {.begin = 100, .end = 0}), Positions{});
}

TEST(SnapshotPlanTest, DistancesGrowInLongTexts) {
  EXPECT_EQ(PlanSnapshots({}, {.begin = 0, .end = 100'000}),
            (Positions{8192, 16384, 24576, 36864, 55296, 82944, 100'000}));
}

TEST(SnapshotPlanTest, AMillionTokensHaveTenToTwentyAndCostTwoPercent) {
  const SnapshotOptions options;
  const Positions positions = PlanSnapshots(options, {.begin = 0, .end = 1 << 20});
  EXPECT_GE(positions.size(), 10u);
  EXPECT_LE(positions.size(), 20u);
  EXPECT_LE(static_cast<double>(positions.size()) * static_cast<double>(options.cost_tokens), 0.02 * (1 << 20));
  int64_t before = 0;
  for (const int64_t position : positions) {
    if (before >= 2 * options.first_tokens) {
      EXPECT_LE(position - before, before / 2) << "what is read again is at most a third";
    }
    before = position;
  }
}

// Two prompts with a common beginning have snapshots at the same positions of it, wherever they began.
TEST(SnapshotPlanTest, GrowingDistancesAreThoseOfTheText) {
  const Positions all = PlanSnapshots({}, {.begin = 0, .end = 500'000});
  const Positions rest = PlanSnapshots({}, {.begin = 30'000, .end = 600'000});
  for (const int64_t position : all) {
    if (position <= 30'000 || position == 500'000) continue;
    EXPECT_TRUE(std::count(rest.begin(), rest.end(), position)) << position;
  }
}

TEST(SnapshotPlanTest, AnswersGoOnAtTheDistancesOfTheText) {
  const auto answer = [](int64_t begin, int64_t end_max, const SnapshotOptions& options = {}) {
    Positions positions = {begin};
    PlanAnswer(options, begin, end_max, &positions);
    return positions;
  };
  EXPECT_EQ(answer(100, 30'000), (Positions{100, 8192, 16384, 24576}));
  EXPECT_EQ(answer(100, 24'576), (Positions{100, 8192, 16384, 24576}));
  EXPECT_EQ(answer(100, 8191), Positions{100});
  EXPECT_EQ(answer(8192 - 159, 20'000), (Positions{8192 - 159, 16384})) << "nothing is spared";
  EXPECT_EQ(answer(8192 - 160, 9000), (Positions{8192 - 160, 8192}));
  EXPECT_EQ(answer(5, std::numeric_limits<int64_t>::max(), {.first_tokens = 0}), Positions{5});
}

TEST(SnapshotPlanTest, BreakpointsCountHoweverCloseTheyAre) {
  const Positions breakpoints = {50, 20, 21, 20, 0, -7, 100, 300};
  EXPECT_EQ(PlanSnapshots({}, {.begin = 10, .end = 100, .breakpoints = breakpoints}), (Positions{20, 21, 50, 100}));
}

TEST(SnapshotPlanTest, PartingsCountIfTheySaveMoreThanTheyCost) {
  const SnapshotOptions options;
  const Positions partings = {100, 600, 700, 950, 1000};
  EXPECT_EQ(PlanSnapshots(options, {.begin = 0, .end = 1000, .partings = partings}), (Positions{600, 950, 1000}));
}

TEST(SnapshotPlanTest, OfManyMessagesTheLastBordersCountWithinTheCost) {
  Positions borders;
  for (int64_t position = 200; position < 40'000; position += 200) borders.push_back(position);
  const SnapshotOptions options;
  const Positions positions = PlanSnapshots(options, {.begin = 0, .end = 40'000, .borders = borders});
  EXPECT_LE(positions.size(), 1 + static_cast<size_t>(0.02 * 40'000 / 160));
  EXPECT_TRUE(std::count(positions.begin(), positions.end(), 39'800)) << "the last border";
  EXPECT_TRUE(std::count(positions.begin(), positions.end(), 8192));
}

TEST(SnapshotPlanTest, HostileWishesAreBounded) {
  Positions many(1'000'000);
  std::iota(many.begin(), many.end(), 1);
  std::reverse(many.begin(), many.end());
  const SnapshotOptions options;
  const int64_t end = static_cast<int64_t>(many.size());
  const Positions positions =
      PlanSnapshots(options, {.begin = 0, .end = end, .breakpoints = many, .borders = many, .partings = many});
  EXPECT_LE(positions.size(), 1u + 16 + 8 + 16 + 15);
  EXPECT_TRUE(std::is_sorted(positions.begin(), positions.end()));
  EXPECT_EQ(std::adjacent_find(positions.begin(), positions.end()), positions.end());
  EXPECT_EQ(positions.back(), end);
  EXPECT_EQ(positions[positions.size() - 2], end - 1) << "the last breakpoint";
}

TEST(SnapshotPlanTest, EndsOfTheNumbersAreNoTrouble) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(NextGrowing({}, kMax - 1), kMax);
  EXPECT_EQ(NextGrowing({.first_tokens = 0}, 5), kMax);
  EXPECT_EQ(NextGrowing({.first_tokens = 1}, 0), 1);
  EXPECT_EQ(NextGrowing({}, -3), 8192);
  EXPECT_EQ(PlanSnapshots({.first_tokens = 0, .cost_tokens = 0, .breakpoints_max = 0, .borders_max = 0},
                          {.begin = 0, .end = kMax, .breakpoints = Positions{1, 2}}),
            Positions{kMax});
}

}  // namespace
}  // namespace goldfinch
