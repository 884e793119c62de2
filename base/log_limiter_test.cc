#include "base/log_limiter.h"

#include "base/token_bucket.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(TokenBucket, FillsAtItsRateUpToItsCapacity) {
  TokenBucket bucket(/*per_second=*/2, /*capacity=*/3, /*now=*/10);
  EXPECT_TRUE(bucket.full(10));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(bucket.Take(10));
  EXPECT_FALSE(bucket.Take(10));
  EXPECT_DOUBLE_EQ(bucket.SecondsUntil(1, 10), 0.5);
  EXPECT_FALSE(bucket.Take(10.25));
  EXPECT_TRUE(bucket.Take(10.5));
  EXPECT_FALSE(bucket.full(11.5));
  EXPECT_TRUE(bucket.full(1000));
  EXPECT_DOUBLE_EQ(bucket.Tokens(1000), 3);
  bucket.Spend(5, 1000);
  EXPECT_EQ(bucket.SecondsUntil(3, 1000), 2.5) << "with the debt";
  EXPECT_EQ(bucket.SecondsUntil(99, 1000), 2.5) << "more than it can hold";
  bucket.GiveBack(1);
  EXPECT_EQ(bucket.Tokens(1000), -1);
  bucket.SetRate(/*per_second=*/10, /*capacity=*/7, /*now=*/1001);
  EXPECT_EQ(bucket.Tokens(1001), 5) << "it got 2 at the old rate, and can hold 4 more";
  bucket.GiveBack(99);
  EXPECT_EQ(bucket.Tokens(1001), 7);
}

TEST(LogLimiter, SaysHowManyLinesItLeftOut) {
  LogLimiter limiter(/*per_second=*/1, /*burst=*/2);
  EXPECT_EQ(limiter.Take(0), "");
  EXPECT_EQ(limiter.Take(0), "");
  for (int i = 0; i < 6000; ++i) EXPECT_EQ(limiter.Take(0.5), std::nullopt);
  EXPECT_EQ(limiter.Take(1), " (6000 more like this were not logged)");
  EXPECT_EQ(limiter.Take(1.5), std::nullopt);
  EXPECT_EQ(limiter.Take(10), " (1 more like this were not logged)");
  EXPECT_EQ(limiter.Take(10), "");
}

}  // namespace
}  // namespace goldfinch
