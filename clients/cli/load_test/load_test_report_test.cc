#include "clients/cli/load_test/load_test_report.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

RequestRecord Record(double scheduled, double first, double done) {
  RequestRecord record;
  record.scheduled_seconds = record.sent_seconds = scheduled;
  record.first_token_seconds = first;
  record.done_seconds = done;
  record.prompt_tokens = 100;
  record.output_tokens = 10;
  return record;
}

scenario::Aim Aim(const std::string& group, scenario::Measure measure) {
  scenario::Aim aim;
  aim.set_group(group);
  aim.set_measure(measure);
  return aim;
}

// Users who got their first token after 0.5 s and others after 0.1 s while it was quiet and after 0.4 s together.
ScenarioResult Result() {
  ScenarioResult result;
  result.scenario.set_name("chat");
  result.together_seconds = 10;
  GroupResult& users = result.groups.emplace_back();
  users.settings.set_name("users");
  users.quiet.emplace();
  users.quiet->Add(Record(0, 0.1, 1));
  users.quiet->AddGap(0.01, 1);
  users.together.Add(Record(2, 2.4, 4));
  users.together.Add(Record(4, 4.4, 7));
  users.together.AddGap(0.05, 1);
  GroupResult& hog = result.groups.emplace_back();
  hog.settings.set_name("hog");
  hog.settings.set_background(true);
  hog.together.Add(Record(0, 0.5, 10));
  return result;
}

TEST(AimsTest, MetOrMissedByTimeAndByTimesQuiet) {
  ScenarioResult result = Result();
  const auto add = [&](scenario::Aim aim) { *result.scenario.add_aims() = aim; };
  scenario::Aim aim = Aim("users", scenario::TIME_TO_FIRST_TOKEN_P99);
  aim.set_at_most_ms(500);
  add(aim);
  aim.set_at_most_ms(300);
  add(aim);
  aim.set_at_most_times_quiet(5);
  add(aim);
  aim.set_at_most_times_quiet(3);
  add(aim);
  aim = Aim("users", scenario::INTER_TOKEN_P50);
  aim.set_at_most_ms(60);
  add(aim);
  aim = Aim("hog", scenario::INTER_TOKEN_P99);  // nothing was measured
  aim.set_at_most_ms(1e6);
  add(aim);
  std::vector<bool> met;
  const std::vector<AimResult> aims = CheckAims(result);
  for (const AimResult& one : aims) met.push_back(one.met);
  EXPECT_EQ(met, (std::vector<bool>{true, false, true, false, true, false}));
  EXPECT_EQ(aims[1].Line(), "MISSED  users: time to first token, p99 is 400 ms, at most 300 ms");
  EXPECT_EQ(aims[2].Line(), "met     users: time to first token, p99 is 400 ms, at most 500 ms (5 times quiet)");
  EXPECT_EQ(aims[5].Line(), "MISSED  hog: inter-token, p99 is -, at most 1000 s");
  const nlohmann::json json = ScenarioJson(result)["aims"];
  EXPECT_EQ(json[1]["limit_seconds"], 0.3);
  EXPECT_EQ(json[1]["met"], false);
  EXPECT_EQ(json[3]["at_most_times_quiet"], 3);
  EXPECT_EQ(json[5]["seconds"], nlohmann::json());
  EXPECT_THAT(ScenarioTable(result), HasSubstr("aim     MISSED  users: time to first token, p99 is 400 ms"));
}

TEST(ReportTest, RatesAreThoseOfTheGroupsOwnTime) {
  const nlohmann::json json = ScenarioJson(Result());
  EXPECT_EQ(json["groups"][0]["together"]["seconds"], 5);
  EXPECT_EQ(json["groups"][0]["together"]["output_tokens_per_second"], 4);
  EXPECT_EQ(json["groups"][0]["together"]["prompt_tokens_per_second"], 40);
  EXPECT_NEAR(json["groups"][0]["times_quiet"]["time_to_first_token_p99"], 4, 0.1);
  EXPECT_NEAR(json["groups"][0]["times_quiet"]["inter_token_p50"], 5, 0.1);
  EXPECT_EQ(json["groups"][1]["quiet"], nlohmann::json());
  EXPECT_EQ(json["output_tokens_per_second"], 3);
  EXPECT_EQ(json["requests"], 4);
}

TEST(ReportTest, FailuresByCodeAndWhatWasCutShort) {
  ScenarioResult result = Result();
  RequestRecord record = Record(1, 2, 3);
  record.cut = true;
  record.status = absl::CancelledError("cut");
  result.groups[1].together.Add(record);
  EXPECT_EQ(result.failed(), 0);
  EXPECT_TRUE(result.first_error().ok());
  record.cut = false;
  record.status = absl::ResourceExhaustedError("queue\nfull");
  result.groups[1].together.Add(record);
  EXPECT_EQ(result.failed(), 1);
  EXPECT_EQ(result.finished(), 6);
  EXPECT_EQ(result.first_error().message(), "queue\nfull");
  const nlohmann::json hog = ScenarioJson(result)["groups"][1]["together"];
  EXPECT_EQ(hog["cut"], 1);
  EXPECT_EQ(hog["prompt_tokens"], 200);
  EXPECT_EQ(hog["errors"]["RESOURCE_EXHAUSTED"]["count"], 1);
  EXPECT_THAT(ScenarioTable(result), HasSubstr("  1 RESOURCE_EXHAUSTED in hog, the first: queue\\x0afull\n"));
}

TEST(ReportTest, TheTableHasARowForEachRun) {
  ScenarioResult result = Result();
  result.variant = "small";
  result.memory_status = absl::PermissionDeniedError("for operators");
  const std::string table = ScenarioTable(result);
  EXPECT_THAT(table, HasSubstr("scenario chat, variant small with seed 0; 0.00 s of quiet runs, 10.00 s together\n"));
  EXPECT_THAT(table, HasSubstr("users            quiet               1       0    100 ms    100 ms"));
  EXPECT_THAT(table, HasSubstr("hog              background          1       0    500 ms    500 ms         -"));
  EXPECT_THAT(table, HasSubstr("memory  unknown: for operators\n"));
  EXPECT_THAT(table, Not(HasSubstr("--max-concurrency")));
  result.held = 3;
  result.max_concurrency = 1024;
  EXPECT_THAT(ScenarioTable(result), HasSubstr("held     3 waited because --max-concurrency is 1,024\n"));
  EXPECT_EQ(ScenarioJson(result)["memory"], nlohmann::json());
}

TEST(MemoryUseTest, SharesOverAllGroupsOfWorkers) {
  v1::GetClusterInfoResponse cluster;
  for (int i = 0; i < 2; ++i) {
    v1::GroupInfo& group = *cluster.add_groups();
    group.set_cache_tokens_max(1000);
    group.set_cache_tokens_reserved(i == 0 ? 1000 : 200);
    group.set_sequences(3);
    group.set_sequences_max(64);
    group.add_stages()->set_memory_bytes(500);
    group.mutable_stages(0)->set_weight_bytes(100);
  }
  cluster.set_cache_bytes(150);
  cluster.set_state_bytes(50);
  cluster.set_gold_kept_bytes(100);
  cluster.set_requests_waiting(7);
  MemoryUse memory;
  memory.Add(cluster);
  cluster.set_requests_waiting(0);
  for (v1::GroupInfo& group : *cluster.mutable_groups()) group.set_cache_tokens_reserved(0);
  cluster.set_cache_bytes(0);
  memory.Add(cluster);
  const nlohmann::json json = memory.Json();
  EXPECT_EQ(json["looks"], 2);
  EXPECT_EQ(json["cache_tokens_max"], 2000);
  EXPECT_DOUBLE_EQ(json["cache_idle_share_mean"], 0.7);
  EXPECT_DOUBLE_EQ(json["cache_idle_share_mean_while_waiting"], 0.4);
  EXPECT_DOUBLE_EQ(json["cache_idle_share_least"], 0.4);
  EXPECT_NEAR(json["memory_idle_share_mean"], (0.5 + 0.65) / 2, 1e-9);
  EXPECT_EQ(json["cache_bytes_most"], 150);
  EXPECT_EQ(json["requests_waiting_most"], 7);
  EXPECT_THAT(memory.Line(), HasSubstr("of 2,000 cache tokens, 70 % idle at the mean of 2 looks, 40 % at least, "
                                       "40 % while requests waited; of "));
  EXPECT_THAT(memory.Line(), HasSubstr("at most 6 of 128 slots used and 7 requests waiting"));
}

}  // namespace
}  // namespace goldfinch
