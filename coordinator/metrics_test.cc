#include "coordinator/metrics.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"

namespace goldfinch {
namespace {

std::string Text(const Metrics& metrics) {
  return prometheus::TextSerializer().Serialize(metrics.registry()->Collect());
}

// The value of the line that begins so, or "" if there is none.
std::string Value(const Metrics& metrics, const std::string& series) {
  const std::string text = "\n" + Text(metrics);
  const size_t at = text.find("\n" + series + " ");
  if (at == std::string::npos) return "";
  const size_t begin = at + series.size() + 2;
  return text.substr(begin, text.find('\n', begin) - begin);
}

TEST(Metrics, EverySeriesHasItsNameLabelsAndValue) {
  Metrics metrics("finch \"x\"");
  metrics.SetRequestsRunning(3);
  metrics.SetRequestsWaiting(4);
  metrics.AddPromptTokens(5);
  metrics.AddPromptTokens(6);
  metrics.AddCompletionTokens(7);
  metrics.AddReplayedTokens(15);
  metrics.CountParkings(2);
  metrics.ObserveTimeToFirstToken(0.03);
  metrics.ObserveInterTokenLatency(0.5);
  metrics.ObserveRequestLatency(2);
  metrics.CountSuccess(Finish::kEndOfText);
  metrics.CountSuccess(Finish::kStop);
  metrics.CountSuccess(Finish::kStop);
  metrics.CountSuccess(Finish::kLength);
  metrics.CountScored();
  metrics.CountFailure("Generate", absl::StatusCode::kUnavailable);
  metrics.CountFailure("Tokenize", static_cast<absl::StatusCode>(99));
  metrics.CountRecovery();
  metrics.SetGroupGeneration(8);
  metrics.SetGroupsReady(1);
  metrics.SetWorkersConnected(9);
  metrics.SetMemory({10, 14, 1000, 11, 12, 13});
  metrics.CountStep();
  metrics.ObserveStepScheduling(2e-5);

  const std::string model = "model_name=\"finch \\\"x\\\"\"";
  const auto value = [&](const std::string& name, const std::string& more = "") {
    return Value(metrics, absl::StrCat("goldfinch_", name, "{", model, more.empty() ? "" : ",", more, "}"));
  };
  EXPECT_EQ(value("num_requests_running"), "3");
  EXPECT_EQ(value("num_requests_waiting"), "4");
  EXPECT_EQ(value("prompt_tokens_total"), "11");
  EXPECT_EQ(value("generation_tokens_total"), "7");
  EXPECT_EQ(value("replayed_tokens_total"), "15");
  EXPECT_EQ(value("sequence_parkings_total"), "2");
  EXPECT_EQ(value("time_to_first_token_seconds_count"), "1");
  EXPECT_EQ(value("time_to_first_token_seconds_bucket", "le=\"0.05\""), "1");
  EXPECT_EQ(value("time_to_first_token_seconds_bucket", "le=\"0.025\""), "0");
  EXPECT_EQ(value("inter_token_latency_seconds_sum"), "0.5");
  EXPECT_EQ(value("e2e_request_latency_seconds_sum"), "2");
  EXPECT_EQ(value("request_success_total", "finished_reason=\"end_of_text\""), "1");
  EXPECT_EQ(value("request_success_total", "finished_reason=\"stop\""), "2");
  EXPECT_EQ(value("request_success_total", "finished_reason=\"length\""), "1");
  EXPECT_EQ(value("request_success_total", "finished_reason=\"scored\""), "1");
  EXPECT_EQ(value("request_failure_total", "code=\"UNAVAILABLE\",method=\"Generate\""), "1");
  EXPECT_EQ(value("request_failure_total", "code=\"UNKNOWN\",method=\"Tokenize\""), "1");
  EXPECT_EQ(value("request_failure_total", "code=\"CANCELLED\",method=\"GetClusterInfo\""), "0");
  EXPECT_EQ(value("request_recoveries_total"), "1");
  EXPECT_EQ(value("group_generation"), "8");
  EXPECT_EQ(value("groups_ready"), "1");
  EXPECT_EQ(value("workers_connected"), "9");
  EXPECT_EQ(value("cache_bytes"), "10");
  EXPECT_EQ(value("gold_kept_bytes"), "14");
  EXPECT_EQ(value("state_bytes"), "11");
  EXPECT_EQ(value("cache_tokens_reserved"), "12");
  EXPECT_EQ(value("cache_tokens_max"), "13");
  EXPECT_EQ(value("steps_total"), "1");
  EXPECT_EQ(value("step_scheduling_seconds_count"), "1");
}

TEST(Metrics, StagesAndBoundariesAddUpEachForItself) {
  Metrics metrics("m");
  metrics.AddStageSeconds(0, 1, {1, 2, 3});
  metrics.AddStageSeconds(0, 1, {0.5, 0, 0});
  metrics.AddStageSeconds(1, 1, {4, 0, 0});
  metrics.AddBoundaryBytes(0, 1, {100, 20, 3});
  metrics.AddBoundaryBytes(0, 1, {0, 20, 3});
  EXPECT_EQ(Value(metrics, "goldfinch_stage_busy_seconds_total{model_name=\"m\",replica=\"0\",stage=\"1\"}"), "1.5");
  EXPECT_EQ(Value(metrics, "goldfinch_stage_bubble_seconds_total{model_name=\"m\",replica=\"0\",stage=\"1\"}"), "2");
  EXPECT_EQ(Value(metrics, "goldfinch_stage_idle_seconds_total{model_name=\"m\",replica=\"0\",stage=\"1\"}"), "3");
  EXPECT_EQ(Value(metrics, "goldfinch_stage_busy_seconds_total{model_name=\"m\",replica=\"1\",stage=\"1\"}"), "4");
  const auto boundary = [&](const std::string& kind) {
    return Value(metrics, absl::StrCat("goldfinch_boundary_bytes_total{model_name=\"m\",boundary=\"1\",kind=\"", kind,
                                       "\",replica=\"0\"}"));
  };
  EXPECT_EQ(boundary("hidden"), "100");
  EXPECT_EQ(boundary("compressed"), "40");
  EXPECT_EQ(boundary("ids"), "6");
}

}  // namespace
}  // namespace goldfinch
