#include "coordinator/metrics/traffic_record.h"

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

constexpr double kHalfLife = 10;

// What is seen of a request that has been served: its prompt, and the tokens that it was answered with.
SchedulerEvents Served(int64_t prompt_tokens, int64_t sampled_tokens, int64_t cached_tokens = 0) {
  SchedulerEvents events;
  events.prompt_tokens = prompt_tokens;
  events.cached_tokens = cached_tokens;
  events.completion_tokens = events.sampled_tokens = sampled_tokens;
  for (int64_t i = 0; i < sampled_tokens; ++i) events.sampled_positions += prompt_tokens + i;
  events.first_token_seconds.push_back(0.1);
  SchedulerEvents::Ended ended;
  ended.finishes.push_back(Finish::kLength);
  ended.usage.completion_tokens = sampled_tokens;
  events.ended.push_back(std::move(ended));
  return events;
}

class TrafficRecordTest : public testing::Test {
 protected:
  // Passes time in which so many sequences run.
  void Pass(double seconds, std::vector<int> sequences) {
    const double end = now + seconds;
    for (; now < end; now += 0.5) record.Observe(sequences, now);
    record.Observe(sequences, now);
  }

  double now = 0;
  TrafficRecord record{kHalfLife};
};

TEST_F(TrafficRecordTest, NothingIsKnownBeforeTheFirstRequest) {
  EXPECT_FALSE(record.Average());
  Pass(1, {1});
  SchedulerEvents reading;
  reading.prompt_tokens = 512;
  record.Count(reading);
  EXPECT_FALSE(record.Average()) << "nobody knows how long its prompt is";
}

TEST_F(TrafficRecordTest, RequestsOnAverage) {
  Pass(1, {3});
  record.Count(Served(1000, 10));
  record.Count(Served(2000, 30, /*cached_tokens=*/600));
  const auto average = record.Average();
  ASSERT_TRUE(average);
  EXPECT_EQ(average->prompt_tokens, 1200) << "that were read";
  EXPECT_EQ(average->output_tokens, 20);
  EXPECT_EQ(average->context_tokens, (10 * 1004.5 + 30 * 2014.5) / 40) << "that sampled tokens attend to";
  EXPECT_EQ(average->sequences, 3);
}

TEST_F(TrafficRecordTest, RequestsThatOnlyReadCount) {
  SchedulerEvents read = Served(1000, 0);
  read.first_token_seconds.clear();
  record.Count(read);
  SchedulerEvents scored;
  scored.prompt_tokens = 500;
  scored.completion_tokens = 7;
  scored.ended.emplace_back();
  scored.ended[0].usage.completion_tokens = 7;
  record.Count(scored);
  SchedulerEvents failed;
  failed.ended.emplace_back();
  failed.ended[0].status = absl::CancelledError();
  record.Count(failed);
  EXPECT_EQ(record.Average()->prompt_tokens, 750);
  EXPECT_EQ(record.Average()->output_tokens, 1) << "one at least";
}

TEST_F(TrafficRecordTest, SequencesAreThoseOfAGroupWhileAnyRun) {
  record.Count(Served(1, 1));
  Pass(5, {8, 4, 0});
  EXPECT_EQ(record.Average()->sequences, 6);
  Pass(1000, {0, 0, 0});
  EXPECT_EQ(record.Average()->sequences, 6) << "a quiet night is no traffic";
}

TEST_F(TrafficRecordTest, ThePastCountsEverLess) {
  for (int i = 0; i < 100; ++i) {
    record.Count(Served(10'000, 10));
    Pass(1, {1});
  }
  EXPECT_EQ(record.Average()->prompt_tokens, 10'000);
  for (int i = 0; i < 10; ++i) {
    record.Count(Served(100, 1000));
    Pass(1, {16});
  }
  EXPECT_NEAR(record.Average()->prompt_tokens, 5050, 100) << "half and half after a half-life";
  EXPECT_NEAR(record.Average()->output_tokens, 505, 10);
  for (int i = 0; i < 100; ++i) {
    record.Count(Served(100, 1000));
    Pass(1, {16});
  }
  EXPECT_LT(record.Average()->prompt_tokens, 115);
  EXPECT_GE(record.Average()->output_tokens, 999);
  EXPECT_EQ(record.Average()->sequences, 16);
}

TEST_F(TrafficRecordTest, AStreamThatIsOlderThanWhatIsRememberedIsNotEndless) {
  record.Count(Served(100, 1));
  for (int64_t drawn = 1; drawn < 2000; drawn += 10) {
    SchedulerEvents events;
    events.sampled_tokens = 10;
    for (int64_t i = 0; i < 10; ++i) events.sampled_positions += 100 + drawn + i;
    record.Count(events);
    Pass(1, {1});
  }
  const auto average = record.Average();
  ASSERT_TRUE(average);
  EXPECT_NEAR(static_cast<double>(average->context_tokens), 1950, 50) << "where it is now";
  EXPECT_LE(average->output_tokens, 2 * average->context_tokens);
  EXPECT_GT(average->output_tokens, average->context_tokens);
  EXPECT_EQ(average->prompt_tokens, 1) << "nothing is read any more";
}

TEST_F(TrafficRecordTest, AnEternityChangesNoAverageToNonsense) {
  record.Count(Served(1000, 10));
  now = 1e9;
  Pass(1, {1});
  now = 2e9;
  Pass(1, {1});
  EXPECT_FALSE(record.Average()) << "nothing is left of it";
}

}  // namespace
}  // namespace goldfinch
