#include "coordinator/scheduler/step_cost.h"

#include <cmath>
#include <limits>
#include <random>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(ChunkWorkTest, FinchLayersReadRowsAlone) {
  const StepWork work = ChunkWork({}, 1000, 1512, 1);
  EXPECT_EQ(work.rows, 512);
  EXPECT_EQ(work.attended, 0);
}

TEST(ChunkWorkTest, LayersWithKeysAndValuesAttendFromEveryRow) {
  const StepWork work = ChunkWork({.every_row = true}, 10, 13, 0);
  EXPECT_EQ(work.attended, 11 + 12 + 13);
}

TEST(ChunkWorkTest, GoldLayersRunForTheRowsThatLogitsNeed) {
  const AttentionShape gold{.gold_rows_before = 2};
  EXPECT_EQ(ChunkWork(gold, 0, 100, 0).attended, 0);
  EXPECT_EQ(ChunkWork(gold, 64, 100, 1).attended, 98 + 99 + 100);
  // The rows before a decoding one have been run.
  EXPECT_EQ(ChunkWork(gold, 100, 101, 1, /*decodes=*/true).attended, 101);
  // A sequence may be shorter than the rows that would be wanted.
  EXPECT_EQ(ChunkWork(gold, 0, 2, 1).attended, 1 + 2);
}

// A device of fixed speeds, and Steps of every kind in turn.
class StepCostTest : public testing::Test {
 protected:
  static constexpr double kStep = 0.07, kRow = 4e-3, kAttend = 5e-6;

  static double Truth(const StepWork& work) { return kStep + kRow * work.rows + kAttend * work.attended; }
  StepWork Random() {
    std::uniform_int_distribution<int> kind(0, 2);
    std::uniform_real_distribution<double> share(0, 1);
    switch (kind(random_)) {
      case 0:  // decoding
        return {std::floor(1 + 15 * share(random_)), 1e5 * share(random_)};
      case 1:  // a chunk of a prompt
        return {std::floor(1 + 511 * share(random_)), 0};
      default:  // the end of one
        return {std::floor(1 + 511 * share(random_)), 3e5 * share(random_)};
    }
  }
  void Teach(StepCost& cost, int steps, double noise = 0) {
    std::uniform_real_distribution<double> factor(1 - noise, 1 + noise);
    for (int i = 0; i < steps; ++i) {
      const StepWork work = Random();
      cost.Measured(work, Truth(work) * factor(random_));
    }
  }
  void ExpectNear(const StepCost& cost, double tolerance) {
    for (int i = 0; i < 300; ++i) {
      const StepWork work = Random();
      const double truth = Truth(work);
      ASSERT_NEAR(cost.Seconds(work), truth, tolerance * truth)
          << work.rows << " rows, " << work.attended << " attended";
    }
  }

  std::mt19937 random_{1};
};

TEST_F(StepCostTest, FollowsADeviceWhateverThePlannerThought) {
  for (const double prior : {0.0, 1e-5, kRow, 1.0}) {
    StepCost cost(prior);
    Teach(cost, 400);
    ExpectNear(cost, 0.25);
  }
}

TEST_F(StepCostTest, StaysNearWithNoise) {
  StepCost cost(1e-4);
  Teach(cost, 600, 0.2);
  ExpectNear(cost, 0.4);
}

TEST_F(StepCostTest, OneStepThatWasHeldUpSpoilsLittle) {
  StepCost cost(1e-3);
  Teach(cost, 400);
  const StepWork work{1, 5e4};
  const double before = cost.Seconds(work);
  cost.Measured(work, 100 * Truth(work));
  EXPECT_LT(cost.Seconds(work), 1.5 * before);
}

TEST_F(StepCostTest, DecodingTeachesNothingOfRows) {
  StepCost cost(kRow);
  for (int i = 0; i < 50; ++i) cost.Measured({1, 0}, kStep);
  EXPECT_NEAR(cost.row_seconds(), kRow, 0.3 * kRow);
  EXPECT_NEAR(cost.step_seconds(), kStep, 0.1 * kStep);
}

TEST_F(StepCostTest, WhatOnlyEndsSequencesTeachesNothing) {
  StepCost cost(kRow);
  Teach(cost, 100);
  for (int i = 0; i < 200; ++i) {
    cost.Measured({1, 100}, Truth({1, 100}));
    cost.Measured({}, 2e-5);
  }
  EXPECT_NEAR(cost.step_seconds(), kStep, 0.2 * kStep);
  EXPECT_NEAR(cost.row_seconds(), kRow, 0.2 * kRow);
}

// Whatever workers claim, a device that is measured for a while is known.
TEST_F(StepCostTest, RecoversFromAbsurdTimes) {
  for (const double seconds : {1.1e-6, 1e-4, 1e4}) {
    StepCost cost(kRow);
    Teach(cost, 50);
    for (int i = 0; i < 50; ++i) cost.Measured(Random(), seconds);
    Teach(cost, 1000);
    ExpectNear(cost, 0.25);
  }
}

TEST_F(StepCostTest, IgnoresTimesThatAreNone) {
  StepCost cost(kRow);
  const double before = cost.Seconds({10, 10});
  for (const double seconds : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    cost.Measured({10, 10}, seconds);
  }
  EXPECT_EQ(cost.Seconds({10, 10}), before);
}

}  // namespace
}  // namespace goldfinch
