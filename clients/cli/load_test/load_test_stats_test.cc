#include "clients/cli/load_test/load_test_stats.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(LatencyHistogramTest, QuantilesAreRightToOnePercent) {
  LatencyHistogram latencies;
  for (int i = 1000; i >= 1; --i) latencies.Add(i * 1e-3);
  for (const auto& [share, seconds] : {std::pair{0.5, 0.5}, {0.9, 0.9}, {0.99, 0.99}, {0.0, 0.001}}) {
    EXPECT_GE(latencies.Quantile(share), seconds * 0.999) << share;
    EXPECT_LE(latencies.Quantile(share), seconds * 1.01) << share;
  }
  EXPECT_EQ(latencies.Quantile(1), 1.0);
  EXPECT_EQ(latencies.max(), 1.0);
  EXPECT_EQ(latencies.count(), 1000);
}

TEST(LatencyHistogramTest, EmptyAndOfOneValueAndBeyondItsRange) {
  LatencyHistogram latencies;
  EXPECT_EQ(latencies.Quantile(0.5), 0);
  latencies.Add(0.25);
  for (const double share : {0.0, 0.5, 0.99, 1.0}) EXPECT_EQ(latencies.Quantile(share), 0.25);
  latencies.Add(0);
  latencies.Add(-1);  // possible where clocks differ
  EXPECT_LE(latencies.Quantile(0.5), 1e-6);
  latencies.Add(1e9, 10);
  EXPECT_EQ(latencies.max(), 1e9);
  EXPECT_EQ(latencies.count(), 13);
}

RequestRecord Record() {
  RequestRecord record;
  record.number = 4;
  record.scheduled_seconds = 1;
  record.sent_seconds = 3;
  record.first_token_seconds = 4;
  record.done_seconds = 8;
  record.prompt_tokens = 100;
  record.output_tokens = 16;
  return record;
}

TEST(LoadTestStatsTest, LatenciesCountFromTheScheduledTime) {
  LoadTestStats stats;
  stats.Add(Record());
  const nlohmann::json json = stats.Json(2);
  EXPECT_EQ(json["time_to_first_token_seconds"]["max"], 3);
  EXPECT_EQ(json["end_to_end_seconds"]["max"], 7);
  EXPECT_EQ(json["send_lag_seconds_max"], 2);
  EXPECT_EQ(json["seconds"], 8);
  EXPECT_EQ(json["output_tokens_per_second"], 2);
  EXPECT_EQ(json["requests_per_second_asked"], 2);
}

TEST(LoadTestStatsTest, FailedRequestsHaveNoEndToEndLatency) {
  LoadTestStats stats;
  stats.Add(Record());
  RequestRecord failed = Record();
  failed.status = absl::UnavailableError("first\nreason");
  stats.Add(failed);
  failed.status = absl::UnavailableError("second");
  failed.first_token_seconds.reset();
  failed.output_tokens = 0;
  stats.Add(failed);
  EXPECT_EQ(stats.completed(), 1);
  EXPECT_EQ(stats.finished(), 3);
  EXPECT_EQ(stats.first_error().message(), "first\nreason");
  const nlohmann::json json = stats.Json(1);
  EXPECT_EQ(json["time_to_first_token_seconds"]["count"], 2);
  EXPECT_EQ(json["end_to_end_seconds"]["count"], 1);
  EXPECT_EQ(json["prompt_tokens"], 100);
  EXPECT_EQ(json["output_tokens"], 32);
  EXPECT_EQ(json["errors"]["UNAVAILABLE"]["count"], 2);
  EXPECT_THAT(stats.Table(1, 10), HasSubstr("  2 UNAVAILABLE, the first: first\\x0areason\n"));
}

TEST(LoadTestStatsTest, WhatTheTestHasCutIsNeitherCompletedNorFailed) {
  LoadTestStats stats;
  EXPECT_EQ(stats.seconds(), 0);
  RequestRecord cut = Record();
  cut.cut = true;
  cut.status = absl::CancelledError("cut");
  stats.Add(cut);
  cut.first_token_seconds.reset();
  cut.scheduled_seconds = 0.5;
  cut.done_seconds = 2;
  stats.Add(cut);
  EXPECT_EQ(stats.completed(), 0);
  EXPECT_EQ(stats.failed(), 0);
  EXPECT_EQ(stats.cut(), 2);
  EXPECT_EQ(stats.finished(), 2);
  EXPECT_TRUE(stats.first_error().ok());
  EXPECT_EQ(stats.prompt_tokens(), 100);  // of the one whose prompt was read
  EXPECT_EQ(stats.output_tokens(), 32);
  EXPECT_EQ(stats.seconds(), 7.5);
}

TEST(LoadTestStatsTest, AGapIsSplitAmongItsTokens) {
  LoadTestStats stats;
  stats.AddGap(1, 4);
  const nlohmann::json json = stats.Json(1);
  EXPECT_EQ(json["inter_token_seconds"]["count"], 4);
  EXPECT_EQ(json["inter_token_seconds"]["max"], 0.25);
}

TEST(LoadTestStatsTest, TableReportsRequestsThatWereHeld) {
  LoadTestStats stats;
  stats.Add(Record());
  EXPECT_THAT(stats.Table(1, 1024), Not(HasSubstr("held")));
  EXPECT_THAT(stats.Table(1, 1024),
              HasSubstr("requests  1 in 8.00 s, 0.125/s; asked for 1/s; sent at most 2.00 s late"));
  stats.AddHeld();
  EXPECT_THAT(stats.Table(1, 1024), HasSubstr("held      1 waited because --max-concurrency is 1,024"));
}

TEST(CsvTest, OneFieldPerColumn) {
  const auto commas = [](const std::string& line) { return std::count(line.begin(), line.end(), ','); };
  RequestRecord record = Record();
  EXPECT_EQ(CsvRow(record), "4,1.000000,3.000000,4.000000,8.000000,100,16,OK");
  record.first_token_seconds.reset();
  record.status = absl::DeadlineExceededError("a,b");
  EXPECT_EQ(CsvRow(record), "4,1.000000,3.000000,,8.000000,100,16,DEADLINE_EXCEEDED");
  EXPECT_EQ(commas(CsvHeader()), commas(CsvRow(record)));
}

}  // namespace
}  // namespace goldfinch
