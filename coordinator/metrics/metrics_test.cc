#include "coordinator/metrics/metrics.h"

#include <fstream>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "gmock/gmock.h"
#include "google/protobuf/descriptor.h"
#include "gtest/gtest.h"
#include "prometheus/metric_family.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"
#include "protos/contexts.pb.h"
#include "protos/generate.pb.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

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
  metrics.AddRereadTokens(15);
  metrics.CountParkings(2);
  metrics.CountDeadlineRefusal();
  metrics.CountDeadlineMiss();
  metrics.CountDeadlineMiss();
  metrics.ObserveTimeToFirstToken(0.03);
  metrics.ObserveInterTokenLatency(0.5);
  RequestUsage usage;
  usage.prompt_tokens = 700;
  usage.completion_tokens = 30;
  usage.queue_seconds = 0.25;
  usage.prefill_seconds = 0.75;
  usage.decode_seconds = 1;
  metrics.ObserveRequest(2, usage);
  usage.decode_seconds = 0;  // one token
  metrics.ObserveRequest(1, usage);
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
  metrics.SetWorkers(9, 2);
  Metrics::Memory memory;
  memory.cache_bytes = 10;
  memory.gold_kept_bytes = 14;
  memory.transformer_cache_bytes = 1000;
  memory.state_bytes = 11;
  memory.cache_tokens_used = 64;
  memory.cache_tokens_reserved = 128;
  memory.cache_tokens_max = 640;
  memory.slots_used = 3;
  memory.slots_max = 16;
  metrics.SetMemory(memory);
  metrics.SetTraffic({.prompt_tokens = 900, .output_tokens = 80, .context_tokens = 1000, .sequences = 6});
  metrics.SetSplitGain(0, 0.25);
  metrics.SetLinks(0, {{.from = 0, .to = 1, .bytes_per_second = 2e9, .round_trip_seconds = 0.125}});
  metrics.CountStep(5, 512);
  metrics.ObserveStepScheduling(2e-5);
  metrics.ObserveStep(0.04, 0.05, 1e6);

  const std::string model = "model_name=\"finch \\\"x\\\"\"";
  const auto value = [&](const std::string& name, const std::string& more = "") {
    return Value(metrics, absl::StrCat("goldfinch_", name, "{", model, more.empty() ? "" : ",", more, "}"));
  };
  EXPECT_EQ(value("num_requests_running"), "3");
  EXPECT_EQ(value("num_requests_waiting"), "4");
  EXPECT_EQ(value("prompt_tokens_total"), "11");
  EXPECT_EQ(value("generation_tokens_total"), "7");
  EXPECT_EQ(value("reread_tokens_total"), "15");
  EXPECT_EQ(value("sequence_parkings_total"), "2");
  EXPECT_EQ(value("time_to_first_token_seconds_count"), "1");
  EXPECT_EQ(value("time_to_first_token_seconds_bucket", "le=\"0.05\""), "1");
  EXPECT_EQ(value("time_to_first_token_seconds_bucket", "le=\"0.025\""), "0");
  EXPECT_EQ(value("inter_token_latency_seconds_sum"), "0.5");
  EXPECT_EQ(value("e2e_request_latency_seconds_sum"), "3");
  EXPECT_EQ(value("request_queue_time_seconds_sum"), "0.5");
  EXPECT_EQ(value("request_prefill_time_seconds_sum"), "1.5");
  EXPECT_EQ(value("request_decode_time_seconds_sum"), "1");
  EXPECT_EQ(value("request_decode_time_seconds_count"), "1");
  EXPECT_EQ(value("request_prompt_tokens_sum"), "1400");
  EXPECT_EQ(value("request_prompt_tokens_bucket", "le=\"500\""), "0");
  EXPECT_EQ(value("request_prompt_tokens_bucket", "le=\"1000\""), "2");
  EXPECT_EQ(value("request_generation_tokens_sum"), "60");
  EXPECT_EQ(value("request_deadline_refusals_total"), "1");
  EXPECT_EQ(value("request_deadline_misses_total"), "2");
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
  EXPECT_EQ(value("workers_spare"), "2");
  EXPECT_EQ(value("cache_bytes"), "10");
  EXPECT_EQ(value("gold_kept_bytes"), "14");
  EXPECT_EQ(value("state_bytes"), "11");
  EXPECT_EQ(value("transformer_cache_bytes"), "1000");
  EXPECT_EQ(value("cache_tokens_used"), "64");
  EXPECT_EQ(value("cache_tokens_reserved"), "128");
  EXPECT_EQ(value("cache_tokens_max"), "640");
  EXPECT_EQ(value("slots_used"), "3");
  EXPECT_EQ(value("slots_max"), "16");
  EXPECT_EQ(value("traffic_prompt_tokens"), "900");
  EXPECT_EQ(value("traffic_output_tokens"), "80");
  EXPECT_EQ(value("traffic_context_tokens"), "1000");
  EXPECT_EQ(value("traffic_sequences"), "6");
  EXPECT_EQ(value("split_gain_ratio", "replica=\"0\""), "0.25");
  EXPECT_EQ(value("link_bytes_per_second", "replica=\"0\",stage=\"0\",to_stage=\"1\""), "2000000000");
  EXPECT_EQ(value("link_round_trip_seconds", "replica=\"0\",stage=\"0\",to_stage=\"1\""), "0.125");
  EXPECT_EQ(value("steps_total"), "1");
  EXPECT_EQ(value("step_sequences_sum"), "5");
  EXPECT_EQ(value("step_tokens_sum"), "512");
  EXPECT_EQ(value("step_scheduling_seconds_count"), "1");
  EXPECT_EQ(value("step_seconds_sum"), "0.04");
  EXPECT_EQ(value("step_target_seconds"), "0.05");
  EXPECT_EQ(value("attended_positions_total"), "1000000");
}

TEST(Metrics, LinksAndGainsEndWithTheGeneration) {
  Metrics metrics("m");
  EXPECT_THAT(Text(metrics), Not(HasSubstr("goldfinch_traffic_prompt_tokens{"))) << "nobody has asked anything yet";
  metrics.SetLinks(0, {{.from = 0, .to = 1, .bytes_per_second = 2e9, .round_trip_seconds = 1},
                       {.from = 0, .to = 2, .bytes_per_second = 0, .round_trip_seconds = 1}});
  EXPECT_THAT(Text(metrics), HasSubstr("goldfinch_link_round_trip_seconds{model_name=\"m\",replica=\"0\",stage=\"0\","
                                       "to_stage=\"2\"} 1"));
  EXPECT_THAT(Text(metrics), Not(HasSubstr("goldfinch_link_bytes_per_second{model_name=\"m\",replica=\"0\","
                                           "stage=\"0\",to_stage=\"2\"")))
      << "a speed that is not known is no speed";
  metrics.SetSplitGain(0, 0.5);
  metrics.SetSplitGain(1, 0.5);
  metrics.ClearSplit(0);
  EXPECT_THAT(Text(metrics), Not(HasSubstr("goldfinch_link_round_trip_seconds{")));
  EXPECT_THAT(Text(metrics), Not(HasSubstr("goldfinch_split_gain_ratio{model_name=\"m\",replica=\"0\"}")));
  EXPECT_THAT(Text(metrics), HasSubstr("goldfinch_split_gain_ratio{model_name=\"m\",replica=\"1\"} 0.5"));
  metrics.ClearSplit(2);
}

// A method has the name of its request.
void ExpectFailuresOf(const google::protobuf::ServiceDescriptor& service, const Metrics& metrics) {
  constexpr absl::string_view kSuffix = "Request";
  for (int i = 0; i < service.method_count(); ++i) {
    const std::string request(service.method(i)->input_type()->name());
    ASSERT_TRUE(absl::EndsWith(request, kSuffix)) << request;
    const std::string name = request.substr(0, request.size() - kSuffix.size());
    const std::string labels = absl::StrCat("{model_name=\"m\",code=\"INTERNAL\",method=\"", name, "\"}");
    EXPECT_EQ(Value(metrics, "goldfinch_request_failure_total" + labels), "0") << name;
  }
}

TEST(Metrics, FailuresOfEveryMethodOfTheApiAreThereFromTheStart) {
  const Metrics metrics("m");
  ExpectFailuresOf(*v1::GenerateRequest::descriptor()->file()->FindServiceByName("Goldfinch"), metrics);
  ExpectFailuresOf(*v1::CreateContextRequest::descriptor()->file()->FindServiceByName("Contexts"), metrics);
}

TEST(Metrics, WhatIsNotKnownOfAStepHasNoSeries) {
  Metrics metrics("m");
  metrics.ObserveStep(0.04, 0, 0);
  EXPECT_EQ(Value(metrics, "goldfinch_step_seconds_count{model_name=\"m\"}"), "1");
  EXPECT_THAT(Text(metrics), Not(HasSubstr("goldfinch_step_target_seconds{")));
  EXPECT_THAT(Text(metrics), Not(HasSubstr("goldfinch_attended_positions_total{")));
}

TEST(Metrics, TiersAreThoseOfThePresentGenerationAndDropsAddUp) {
  Metrics metrics("m");
  const auto value = [&](const std::string& name, const std::string& more) {
    return Value(metrics, absl::StrCat("goldfinch_gold_", name, "{model_name=\"m\",", more, "}"));
  };
  const auto sequences = [&](const std::string& tier) {
    return value("tier_sequences", absl::StrCat("replica=\"1\",stage=\"2\",tier=\"", tier, "\""));
  };
  const auto drops = [&] { return value("tier_drops_total", "replica=\"1\",stage=\"2\""); };
  metrics.SetTiers(1, 0, {});
  EXPECT_THAT(Text(metrics), Not(HasSubstr("goldfinch_gold_tier_sequences{"))) << "a stage without GOLD layers";
  metrics.SetTiers(1, 2, {.compressed_sequences = 3, .shared_sequences = 2, .full_sequences = 1, .drops = 4});
  EXPECT_EQ(sequences("compressed"), "3");
  EXPECT_EQ(sequences("shared"), "2");
  EXPECT_EQ(sequences("full"), "1");
  EXPECT_EQ(drops(), "4");
  metrics.SetTiers(1, 2, {.full_sequences = 7, .drops = 6});
  EXPECT_EQ(sequences("compressed"), "0");
  EXPECT_EQ(sequences("full"), "7");
  EXPECT_EQ(drops(), "6");
  metrics.SetTiers(1, 2, {.full_sequences = 7, .drops = 1});  // no honest worker says so
  EXPECT_EQ(drops(), "6");
  metrics.ClearTiers(0);
  EXPECT_EQ(sequences("full"), "7") << "of another replica";
  metrics.ClearTiers(1);
  EXPECT_EQ(sequences("full"), "0");
  metrics.SetTiers(1, 2, {.drops = 5});
  EXPECT_EQ(drops(), "11") << "a new generation counts from 0";
}

// Every metric is in a row of the page, under its name and its type, and the page has no others.
TEST(Metrics, ThePageListsThem) {
  Metrics metrics("m");
  metrics.ObserveStep(0.04, 0.05, 1);
  metrics.SetTiers(0, 0, {.full_sequences = 1});
  metrics.AddStageSeconds(0, 0, {});
  metrics.AddBoundaryBytes(0, 0, {});
  metrics.SetTraffic({});
  metrics.SetSplitGain(0, 0);
  metrics.SetLinks(0, {{.from = 0, .to = 1, .bytes_per_second = 1, .round_trip_seconds = 1}});
  std::set<std::string> known, listed;
  for (const prometheus::MetricFamily& family : metrics.registry()->Collect()) {
    EXPECT_FALSE(family.help.empty()) << family.name;
    const bool counter = family.type == prometheus::MetricType::Counter;
    EXPECT_EQ(absl::EndsWith(family.name, "_total"), counter) << family.name;
    const std::string type = counter                                            ? "counter"
                             : family.type == prometheus::MetricType::Histogram ? "histogram"
                                                                                : "gauge";
    known.insert(absl::StrCat("| `", family.name, "` | ", type, " |"));
  }
  std::ifstream page("docs/METRICS.md");
  ASSERT_TRUE(page.is_open());
  for (std::string line; std::getline(page, line);) {
    if (!absl::StartsWith(line, "| `goldfinch_")) continue;
    const size_t second = line.find('|', 1);
    const size_t third = line.find('|', second + 1);
    ASSERT_NE(third, std::string::npos) << line;
    listed.insert(line.substr(0, third + 1));
  }
  EXPECT_EQ(known, listed);
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
