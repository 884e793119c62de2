#include "coordinator/contexts/transfer_rate.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(TransferRateTest, BeginsAsGiven) {
  const TransferRate rate(1e9, 1e-3);
  EXPECT_DOUBLE_EQ(rate.Seconds(0), 1e-3);
  EXPECT_DOUBLE_EQ(rate.Seconds(1e9), 1.001);
}

TEST(TransferRateTest, LearnsRateAndFixedPartFromMovesOfManySizes) {
  TransferRate rate(1e9, 1e-3);
  for (int i = 0; i < 100; ++i) {
    const int64_t bytes = 1'000'000 * (1 + i % 9);
    rate.Measured(bytes, 5e-3 + static_cast<double>(bytes) / 2e8);
  }
  EXPECT_NEAR(rate.bytes_per_second(), 2e8, 1e7);
  EXPECT_NEAR(rate.fixed_seconds(), 5e-3, 5e-4);
}

TEST(TransferRateTest, MovesOfOneSizeAreLearnedToo) {
  TransferRate rate(1e9, 1e-3);
  for (int i = 0; i < 100; ++i) rate.Measured(9'000'000, 0.09);
  EXPECT_NEAR(rate.Seconds(9e6), 0.09, 5e-3);
}

TEST(TransferRateTest, FollowsAChange) {
  TransferRate rate(1e9, 1e-3);
  for (int i = 0; i < 100; ++i) rate.Measured(100'000'000, 0.1);
  for (int i = 0; i < 100; ++i) rate.Measured(100'000'000, 1);
  EXPECT_NEAR(rate.Seconds(1e8), 1, 0.05);
}

TEST(TransferRateTest, OneThatWasHeldUpDoesNotCountInFull) {
  TransferRate rate(1e9, 1e-3);
  for (int i = 0; i < 50; ++i) rate.Measured(100'000'000, 0.1);
  rate.Measured(100'000'000, 3600);
  EXPECT_LT(rate.Seconds(1e8), 0.2);
}

TEST(TransferRateTest, NonsenseIsIgnored) {
  TransferRate rate(1e9, 1e-3);
  rate.Measured(0, 1);
  rate.Measured(-5, 1);
  rate.Measured(1000, 0);
  rate.Measured(1000, -1);
  rate.Measured(1000, std::numeric_limits<double>::quiet_NaN());
  rate.Measured(1000, std::numeric_limits<double>::infinity());
  EXPECT_DOUBLE_EQ(rate.Seconds(1e9), 1.001);
  for (int i = 0; i < 100; ++i) rate.Measured(1, 1e-12);  // nothing takes no time or less
  EXPECT_GT(rate.fixed_seconds(), 0);
  EXPECT_GT(rate.bytes_per_second(), 0);
  EXPECT_TRUE(std::isfinite(rate.bytes_per_second()));
}

}  // namespace
}  // namespace goldfinch
