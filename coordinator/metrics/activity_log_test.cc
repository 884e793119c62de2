#include "coordinator/metrics/activity_log.h"

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

ActivityLog::Present Nothing() { return {}; }

TEST(ActivityLogTest, SaysWhatHappenedInAMinute) {
  ActivityLog log(1000);
  SchedulerEvents events;
  events.prompt_tokens = 6000;
  events.completion_tokens = 300;
  events.reread_tokens = 60;
  events.parkings = 2;
  events.ended.resize(3);
  events.ended[1].status = absl::CancelledError("");
  log.Count(events);
  log.Count(events);
  for (int i = 0; i < 98; ++i) log.CountStep(0.02);
  log.CountStep(1.5);
  log.CountStep(1.5);
  int asked = 0;
  const auto present = [&] {
    ++asked;
    return ActivityLog::Present{4, 5, 6, 64, 70, 80, 900};
  };
  EXPECT_EQ(log.Take(1059.9, present), std::nullopt);
  EXPECT_EQ(asked, 0) << "the present is looked at once a minute";
  const auto line = log.Take(1060, present);
  ASSERT_TRUE(line.has_value());
  EXPECT_EQ(*line,
            "activity seconds=60 running=4 waiting=5 ended=4 failed=2 parkings=4 prompt_tokens_per_second=200.0 "
            "completion_tokens_per_second=10.0 reread_tokens_per_second=2.0 slots_used=6 slots_max=64 "
            "cache_pages_used=70 cache_pages_reserved=80 cache_pages_max=900 steps=100 step_seconds_p50=0.022 "
            "step_seconds_p99=1.4");
}

TEST(ActivityLogTest, IsSilentWhileIdle) {
  ActivityLog log(0);
  EXPECT_EQ(log.Take(60, Nothing), std::nullopt);
  EXPECT_EQ(log.Take(120, Nothing), std::nullopt);
  log.CountStep(1e-9);
  log.CountStep(1e9);
  const auto line = log.Take(181, Nothing);
  ASSERT_TRUE(line.has_value());
  EXPECT_THAT(*line, HasSubstr("seconds=61 running=0 "));
  EXPECT_THAT(*line, HasSubstr("steps=2 step_seconds_p50=1.1e-05 step_seconds_p99=8.9e+02"));
  EXPECT_EQ(log.Take(241, Nothing), std::nullopt) << "each minute counts for itself";
  // A request that nothing happens to is what an operator looks for.
  const auto waits = log.Take(301, [] { return ActivityLog::Present{.waiting = 1}; });
  ASSERT_TRUE(waits.has_value());
  EXPECT_THAT(*waits, HasSubstr("waiting=1 "));
  EXPECT_THAT(*waits, Not(HasSubstr("step_seconds")));
}

}  // namespace
}  // namespace goldfinch
