// goldfinch load-test --scenario, against a fake server.
#include "clients/cli/load_test/load_test_scenario_run.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "clients/cli/remote/remote_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class ScenarioRunTest : public RemoteCommandsTest {
 protected:
  ScenarioRunTest() {
    service_.model.set_vocab_size(257);
    service_.model.set_max_model_len(1000);
    // Every answer has as many tokens as were asked for.
    service_.generate = [this](grpc::ServerContext*, const v1::GenerateRequest& request, GenerateWriter* writer) {
      See(request);
      for (uint32_t index = 0; index < std::max(1u, request.n()); ++index) {
        writer->Write(Text(index, "a"));
        for (uint32_t i = 1; i < request.max_tokens(); ++i) writer->Write(Text(index, "b"));
      }
      return grpc::Status::OK;
    };
  }

  void See(const v1::GenerateRequest& request) {
    std::lock_guard<std::mutex> lock(mutex_);
    seen_.push_back(request);
  }

  LoadTestOptions Options(const std::string& scenario) {
    LoadTestOptions options;
    options.remote = remote_;
    options.scenario = Write("scenario.textproto", scenario);
    options.json = true;
    return options;
  }

  // Requests for so many tokens of an answer, of which each group has its own number.
  std::vector<v1::GenerateRequest> Seen(uint32_t max_tokens) {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<v1::GenerateRequest> seen;
    for (const v1::GenerateRequest& request : seen_) {
      if (request.max_tokens() == max_tokens) seen.push_back(request);
    }
    return seen;
  }

 private:
  std::mutex mutex_;
  std::vector<v1::GenerateRequest> seen_;
};

std::vector<uint32_t> Ids(const v1::GenerateRequest& request) {
  return {request.ids().ids().begin(), request.ids().ids().end()};
}

TEST_F(ScenarioRunTest, QuietRunsAndThenAllTogether) {
  const LoadTestOptions options = Options(
      "name: 'two' "
      "groups { name: 'users' clients: 3 requests: 2 prompt_tokens: 9 max_tokens: 5 n: 2 priority: -7 "
      "         quiet_requests: 2 } "
      "groups { name: 'others' background: true requests: 1 prompt_tokens: 11 max_tokens: 6 }");
  const CommandOutput output = RunCommand(RunScenario, options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  const nlohmann::json json = nlohmann::json::parse(output.out);
  EXPECT_EQ(json["scenario"], "two");
  EXPECT_EQ(json["requests"], 2 + 6 + 1);
  EXPECT_EQ(json["failed"], 0);
  const nlohmann::json users = json["groups"][0];
  EXPECT_EQ(users["quiet"]["completed"], 2);
  EXPECT_EQ(users["together"]["completed"], 6);
  EXPECT_EQ(users["together"]["output_tokens"], 6 * 2 * 5);
  EXPECT_EQ(users["together"]["prompt_tokens"], 6 * 9);
  EXPECT_EQ(users["together"]["time_to_first_token_seconds"]["count"], 6);
  // Each sample has its own first token, which no gap comes before.
  EXPECT_EQ(users["together"]["inter_token_seconds"]["count"], 6 * 2 * 4);
  EXPECT_EQ(json["groups"][1]["together"]["completed"], 1);
  EXPECT_EQ(json["groups"][1]["quiet"], nlohmann::json());
  EXPECT_GE(json["memory"]["looks"], 1);
  ASSERT_EQ(Seen(5).size(), 8u);
  ASSERT_EQ(Seen(6).size(), 1u);
  std::set<std::vector<uint32_t>> texts;
  for (const v1::GenerateRequest& request : Seen(5)) {
    EXPECT_EQ(request.ids().ids_size(), 9);
    EXPECT_EQ(request.n(), 2u);
    EXPECT_EQ(request.priority(), -7);
    EXPECT_TRUE(request.ignore_eos());
    texts.insert(Ids(request));
  }
  EXPECT_EQ(texts.size(), 8u);
  EXPECT_THAT(output.err, AllOf(HasSubstr("two: quiet run of users"), HasSubstr("two: all groups together")));
}

TEST_F(ScenarioRunTest, PromptsShareTheirBeginningAndFollowFromTheSeed) {
  LoadTestOptions options = Options(
      "name: 'shared' groups { name: 'a' clients: 2 prompt_tokens: 50 shared_prompt_tokens: 40 max_tokens: 5 }"
      "groups { name: 'b' prompt_tokens: 50 max_tokens: 6 }");
  const auto texts_with = [&](uint64_t seed) {
    options.seed = seed;
    EXPECT_TRUE(RunCommand(RunScenario, options).status.ok());
    std::set<std::vector<uint32_t>> texts, beginnings;
    for (const v1::GenerateRequest& request : Seen(5)) {
      texts.insert(Ids(request));
      beginnings.insert({request.ids().ids().begin(), request.ids().ids().begin() + 40});
    }
    EXPECT_EQ(beginnings.size(), seed);  // one for each seed so far
    return texts;
  };
  const std::set<std::vector<uint32_t>> first = texts_with(1);
  EXPECT_EQ(first.size(), 4u + 2u);  // in the quiet run and together
  EXPECT_EQ(texts_with(2).size(), 12u);
  options.seed = 1;
  EXPECT_TRUE(RunCommand(RunScenario, options).status.ok());
  std::set<std::vector<uint32_t>> texts;
  for (const v1::GenerateRequest& request : Seen(5)) texts.insert(Ids(request));
  EXPECT_EQ(texts.size(), 12u);  // the same as with the first seed
}

TEST_F(ScenarioRunTest, WhatWaitsForTheOthersIsCutWhenTheyHaveEnded) {
  // Requests for seven tokens get two of them and then nothing until they are cancelled.
  service_.generate = [&](grpc::ServerContext* context, const v1::GenerateRequest& request, GenerateWriter* writer) {
    See(request);
    writer->Write(Text(0, "a"));
    if (request.max_tokens() != 7) return grpc::Status::OK;
    writer->Write(Text(0, "b"));
    while (!context->IsCancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return grpc::Status::CANCELLED;
  };
  const CommandOutput output = RunCommand(
      RunScenario, Options("name: 'cut' "
                           "groups { name: 'stream' background: true until_others_end: true prompt_tokens: 3 "
                           "         max_tokens: 7 clients: 2 } "
                           "groups { name: 'users' requests: 3 prompt_tokens: 4 max_tokens: 5 start_seconds: 0.1 }"));
  ASSERT_TRUE(output.status.ok()) << output.status;
  const nlohmann::json json = nlohmann::json::parse(output.out);
  EXPECT_EQ(json["failed"], 0);
  const nlohmann::json stream = json["groups"][0]["together"];
  EXPECT_EQ(stream["cut"], 2);
  EXPECT_EQ(stream["completed"], 0);
  EXPECT_EQ(stream["output_tokens"], 4);
  EXPECT_EQ(stream["inter_token_seconds"]["count"], 2);
  EXPECT_EQ(json["groups"][1]["together"]["completed"], 3);
}

TEST_F(ScenarioRunTest, FailuresAreCountedByCodeAndAreAnError) {
  std::atomic<int> calls = 0;
  service_.generate = [&](grpc::ServerContext*, const v1::GenerateRequest& request, GenerateWriter* writer) {
    if (request.max_tokens() == 5 && ++calls % 2 == 0) {
      return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "queue is full");
    }
    writer->Write(Text(0, "a"));
    return grpc::Status::OK;
  };
  LoadTestOptions options = Options(
      "name: 'fails' groups { name: 'users' background: true clients: 10 prompt_tokens: 3 max_tokens: 5 "
      "burst_every_seconds: 0.01 requests: 2 }");
  const CommandOutput output = RunCommand(RunScenario, options);
  EXPECT_TRUE(absl::IsResourceExhausted(output.status)) << output.status;
  EXPECT_THAT(std::string(output.status.message()),
              AllOf(HasSubstr("10 of 20 requests failed, the first: "), HasSubstr("queue is full")));
  const nlohmann::json users = nlohmann::json::parse(output.out)["groups"][0]["together"];
  EXPECT_EQ(users["errors"]["RESOURCE_EXHAUSTED"]["count"], 10);
  options.json = false;
  EXPECT_THAT(RunCommand(RunScenario, options).out, HasSubstr("10 RESOURCE_EXHAUSTED in users, the first: "));
}

TEST_F(ScenarioRunTest, MissedAimsAreAnErrorOnlyIfAskedFor) {
  LoadTestOptions options = Options(
      "name: 'aims' groups { name: 'users' prompt_tokens: 3 max_tokens: 1 quiet_requests: 1 } "
      "aims { group: 'users' measure: INTER_TOKEN_P99 at_most_ms: 1 } "  // an answer of one token has none
      "aims { group: 'users' measure: TIME_TO_FIRST_TOKEN_P99 at_most_ms: 1000000 }");
  CommandOutput output = RunCommand(RunScenario, options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  const nlohmann::json aims = nlohmann::json::parse(output.out)["aims"];
  EXPECT_EQ(aims[0]["met"], false);
  EXPECT_EQ(aims[1]["met"], true);
  options.strict = true;
  output = RunCommand(RunScenario, options);
  EXPECT_TRUE(absl::IsFailedPrecondition(output.status));
  EXPECT_EQ(output.status.message(), "aims: 1 of 2 aims were missed");
}

TEST_F(ScenarioRunTest, GroupsMayHaveTheirOwnKeys) {
  std::mutex mutex;
  std::map<uint32_t, std::set<std::string>> keys;  // by max_tokens
  service_.generate = [&](grpc::ServerContext* context, const v1::GenerateRequest& request, GenerateWriter* writer) {
    const auto key = context->client_metadata().find("authorization");
    std::lock_guard<std::mutex> lock(mutex);
    keys[request.max_tokens()].insert(
        key == context->client_metadata().end() ? "" : std::string(key->second.data(), key->second.size()));
    writer->Write(Text(0, "a"));
    return grpc::Status::OK;
  };
  Write("their.key", "secret\n");
  LoadTestOptions options = Options(
      "name: 'keys' groups { name: 'a' prompt_tokens: 3 max_tokens: 5 api_key_file: 'their.key' } "
      "groups { name: 'b' prompt_tokens: 3 max_tokens: 6 }");
  options.remote.api_key_file = Write("own.key", "other\n");
  ASSERT_TRUE(RunCommand(RunScenario, options).status.ok());
  EXPECT_EQ(keys[5], std::set<std::string>{"Bearer secret"});
  EXPECT_EQ(keys[6], std::set<std::string>{"Bearer other"});
}

TEST_F(ScenarioRunTest, WhatCannotRunSaysSoBeforeItSendsAnything) {
  CommandOutput output =
      RunCommand(RunScenario, Options("name: 'long' groups { name: 'users' prompt_tokens: 990 max_tokens: 11 }"));
  EXPECT_EQ(output.status.message(),
            "group \"users\": prompt_tokens and max_tokens are 1,001 together, the server's max_model_len is 1,000");
  output = RunCommand(RunScenario, Options("name: 'none'"));
  EXPECT_THAT(std::string(output.status.message()), HasSubstr("scenario.textproto: groups is empty"));
  service_.generate = [](grpc::ServerContext*, const v1::GenerateRequest&, GenerateWriter*) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "no group");
  };
  output = RunCommand(RunScenario, Options("name: 'gone' groups { name: 'users' prompt_tokens: 9 }"));
  EXPECT_TRUE(absl::IsUnavailable(output.status)) << output.status;
  EXPECT_EQ(output.out, "");
}

TEST_F(ScenarioRunTest, TellsOfTheSafetyLimit) {
  std::atomic<int> running = 0, running_max = 0;
  service_.generate = [&](grpc::ServerContext*, const v1::GenerateRequest&, GenerateWriter* writer) {
    running_max = std::max(running_max.load(), ++running);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // long enough for the next request to be late
    writer->Write(Text(0, "a"));
    --running;
    return grpc::Status::OK;
  };
  LoadTestOptions options =
      Options("name: 'held' groups { name: 'users' background: true clients: 5 prompt_tokens: 3 max_tokens: 2 }");
  options.max_concurrency = 1;
  const CommandOutput output = RunCommand(RunScenario, options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  const nlohmann::json json = nlohmann::json::parse(output.out);
  EXPECT_EQ(json["groups"][0]["together"]["completed"], 5);
  EXPECT_GE(json["held"], 1);
  EXPECT_LE(json["held"], 4);
  EXPECT_EQ(running_max, 1);
}

}  // namespace
}  // namespace goldfinch
