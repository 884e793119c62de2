#include "clients/cli/load_test/load_test_arrivals.h"

#include <cmath>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

Arrivals Of(const std::string& groups) {
  scenario::Scenario scenario;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(groups, &scenario)) << groups;
  return Arrivals({scenario.groups().begin(), scenario.groups().end()}, 1);
}

// The clients whose requests are to be sent by then, as "group.client@seconds".
std::vector<std::string> Due(Arrivals& arrivals, double now) {
  std::vector<std::string> due;
  while (const std::optional<Arrival> arrival = arrivals.Next(now)) {
    char text[64];
    std::snprintf(text, sizeof(text), "%d.%d@%g", arrival->group, arrival->client, arrival->seconds);
    due.emplace_back(text);
  }
  return due;
}

TEST(ArrivalsTest, AClosedLoopWaitsForTheAnswerAndThinks) {
  Arrivals arrivals = Of("groups { clients: 2 requests: 2 start_seconds: 1 think_seconds: 3 }");
  EXPECT_EQ(arrivals.next_seconds(), 1);
  EXPECT_THAT(Due(arrivals, 0.9), IsEmpty());
  EXPECT_THAT(Due(arrivals, 1.5), ElementsAre("0.0@1", "0.1@1"));
  EXPECT_EQ(arrivals.next_seconds(), std::nullopt);
  EXPECT_THAT(Due(arrivals, 100), IsEmpty());
  arrivals.Ended(0, 1, false, 10);
  EXPECT_EQ(arrivals.next_seconds(), 13);
  EXPECT_THAT(Due(arrivals, 13), ElementsAre("0.1@13"));
  arrivals.Ended(0, 1, false, 14);
  EXPECT_FALSE(arrivals.over());
  EXPECT_EQ(arrivals.next_seconds(), std::nullopt);
  arrivals.Ended(0, 0, false, 20);
  EXPECT_THAT(Due(arrivals, 30), ElementsAre("0.0@23"));
  arrivals.Ended(0, 0, false, 31);
  EXPECT_TRUE(arrivals.over());
}

TEST(ArrivalsTest, AClientWhoseRequestFailedWaitsForAMoment) {
  Arrivals arrivals = Of("groups { requests: 2 }");
  EXPECT_THAT(Due(arrivals, 0), ElementsAre("0.0@0"));
  arrivals.Ended(0, 0, /*failed=*/true, 0.1);
  EXPECT_EQ(arrivals.next_seconds(), 0.6);
}

TEST(ArrivalsTest, BurstsDoNotWaitForAnswers) {
  Arrivals arrivals = Of("groups { clients: 2 requests: 2 burst_every_seconds: 10 }");
  EXPECT_THAT(Due(arrivals, 25), ElementsAre("0.0@0", "0.1@0", "0.0@10", "0.1@10"));
  for (int client : {0, 1, 0}) arrivals.Ended(0, client, false, 30);
  EXPECT_FALSE(arrivals.over());
  arrivals.Ended(0, 1, false, 30);
  EXPECT_TRUE(arrivals.over());
}

TEST(ArrivalsTest, ARateHasItsMean) {
  Arrivals arrivals = Of("groups { rate: 50 requests: 20000 }");
  double last = 0, squares = 0;
  int count = 0;
  while (const std::optional<Arrival> arrival = arrivals.Next(1e9)) {
    ASSERT_GE(arrival->seconds, last);
    EXPECT_EQ(arrival->number, count++);
    squares += (arrival->seconds - last) * (arrival->seconds - last);
    last = arrival->seconds;
  }
  EXPECT_EQ(count, 20'000);
  const double mean = last / count;
  EXPECT_NEAR(mean, 1.0 / 50, 0.001);
  EXPECT_NEAR(std::sqrt(squares / count - mean * mean), mean, 0.001);  // as of exponential gaps
}

TEST(ArrivalsTest, SecondsCountFromTheStartOfTheGroup) {
  Arrivals arrivals = Of("groups { start_seconds: 5 seconds: 2 think_seconds: 1 }");
  EXPECT_THAT(Due(arrivals, 5), ElementsAre("0.0@5"));
  arrivals.Ended(0, 0, false, 6);
  EXPECT_THAT(Due(arrivals, 7), ElementsAre("0.0@7"));
  arrivals.Ended(0, 0, false, 7);
  EXPECT_TRUE(arrivals.over());
}

TEST(ArrivalsTest, SomeGoOnUntilTheOthersHaveEnded) {
  Arrivals arrivals =
      Of("groups { until_others_end: true } groups { start_seconds: 3 requests: 1 } "
         "groups { until_others_end: true burst_every_seconds: 2 start_seconds: 4 }");
  EXPECT_THAT(Due(arrivals, 0), ElementsAre("0.0@0"));
  arrivals.Ended(0, 0, false, 1);
  EXPECT_THAT(Due(arrivals, 4), ElementsAre("0.0@1", "1.0@3", "2.0@4"));
  EXPECT_FALSE(arrivals.over());
  arrivals.Ended(1, 0, false, 5);
  EXPECT_TRUE(arrivals.over());
  EXPECT_EQ(arrivals.next_seconds(), std::nullopt);
  EXPECT_THAT(Due(arrivals, 100), IsEmpty());
  arrivals.Ended(0, 0, true, 6);  // cut short
  EXPECT_THAT(Due(arrivals, 100), IsEmpty());
}

TEST(ArrivalsTest, AGroupWithNothingToDoHasEnded) {
  Arrivals arrivals = Of("groups { rate: 0.001 seconds: 0.001 } groups { until_others_end: true }");
  EXPECT_TRUE(arrivals.over());
  EXPECT_THAT(Due(arrivals, 100), IsEmpty());
}

}  // namespace
}  // namespace goldfinch
