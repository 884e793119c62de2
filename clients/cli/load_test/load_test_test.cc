// goldfinch load-test, against a fake server.
#include "clients/cli/load_test/load_test.h"

#include <algorithm>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "clients/cli/remote/remote_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

using LoadTestTest = RemoteCommandsTest;

LoadTestOptions LoadTest(const RemoteOptions& remote) {
  LoadTestOptions options;
  options.remote = remote;
  options.rate = 2000;
  options.requests = 40;
  options.prompt_tokens = "uniform:3:5";
  options.output_tokens = "fixed:6";
  options.json = true;
  return options;
}

TEST_F(LoadTestTest, LoadTestSendsTheScheduleAndCounts) {
  service_.model.set_vocab_size(257);
  std::mutex mutex;
  std::vector<v1::GenerateRequest> seen;
  service_.generate = [&](grpc::ServerContext*, const v1::GenerateRequest& request, GenerateWriter* writer) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      seen.push_back(request);
    }
    writer->Write(Text(0, "a"));
    writer->Write(Text(0, "bcdef"));
    WriteUsage(writer);
    return grpc::Status::OK;
  };
  LoadTestOptions options = LoadTest(remote_);
  options.csv = testing::TempDir() + "/load.csv";
  const CommandOutput output = RunCommand(RunLoadTest, options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  const nlohmann::json json = nlohmann::json::parse(output.out);
  EXPECT_EQ(json["requests"], 40);
  EXPECT_EQ(json["completed"], 40);
  EXPECT_EQ(json["held"], 0);
  EXPECT_EQ(json["prompt_tokens"], 40 * 1234);
  EXPECT_EQ(json["output_tokens"], 40 * 6);
  EXPECT_EQ(json["time_to_first_token_seconds"]["count"], 40);
  EXPECT_EQ(json["inter_token_seconds"]["count"], 40 * 5);
  EXPECT_GT(json["end_to_end_seconds"]["p50"], 0);
  ASSERT_EQ(seen.size(), 40u);
  for (const v1::GenerateRequest& request : seen) {
    EXPECT_GE(request.ids().ids_size(), 3);
    EXPECT_LE(request.ids().ids_size(), 5);
    EXPECT_EQ(request.max_tokens(), 6u);
    EXPECT_TRUE(request.ignore_eos());
    for (const uint32_t id : request.ids().ids()) EXPECT_TRUE(id >= 1 && id < 257) << id;
  }
  std::ifstream csv(options.csv);
  std::vector<std::string> lines;
  for (std::string line; std::getline(csv, line);) lines.push_back(line);
  ASSERT_EQ(lines.size(), 41u);
  EXPECT_THAT(lines[0], StartsWith("request,"));
  EXPECT_THAT(lines[1], MatchesRegex("[0-9]+,[0-9.]+,[0-9.]+,[0-9.]+,[0-9.]+,1234,6,OK"));
}

TEST_F(LoadTestTest, LoadTestDoesNotWaitForAnswers) {
  service_.model.set_vocab_size(257);
  std::mutex mutex;
  std::condition_variable changed;
  int arrived = 0;
  // No request is answered before all have come.
  service_.generate = [&](grpc::ServerContext*, const v1::GenerateRequest&, GenerateWriter* writer) {
    std::unique_lock<std::mutex> lock(mutex);
    ++arrived;
    changed.notify_all();
    changed.wait(lock, [&] { return arrived == 16; });
    writer->Write(Text(0, "a"));
    return grpc::Status::OK;
  };
  LoadTestOptions options = LoadTest(remote_);
  options.requests = 16;
  const CommandOutput output = RunCommand(RunLoadTest, options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_EQ(nlohmann::json::parse(output.out)["completed"], 16);
}

TEST_F(LoadTestTest, LoadTestTellsOfTheSafetyLimit) {
  service_.model.set_vocab_size(257);
  std::mutex mutex;
  int running = 0, running_max = 0;
  service_.generate = [&](grpc::ServerContext*, const v1::GenerateRequest&, GenerateWriter* writer) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      running_max = std::max(running_max, ++running);
    }
    writer->Write(Text(0, "a"));
    std::lock_guard<std::mutex> lock(mutex);
    --running;
    return grpc::Status::OK;
  };
  LoadTestOptions options = LoadTest(remote_);
  options.rate = 1e6;
  options.max_concurrency = 1;
  options.json = false;
  const CommandOutput output = RunCommand(RunLoadTest, options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_THAT(output.out, HasSubstr("waited because --max-concurrency is 1:"));
  EXPECT_EQ(running_max, 1);
}

TEST_F(LoadTestTest, LoadTestCountsErrorsByCode) {
  service_.model.set_vocab_size(257);
  std::mutex mutex;
  int calls = 0;
  service_.generate = [&](grpc::ServerContext*, const v1::GenerateRequest&, GenerateWriter* writer) {
    std::lock_guard<std::mutex> lock(mutex);
    if (++calls % 4 == 0) return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "queue is full");
    writer->Write(Text(0, "a"));
    return grpc::Status::OK;
  };
  CommandOutput output = RunCommand(RunLoadTest, LoadTest(remote_));
  ASSERT_TRUE(output.status.ok()) << output.status;
  const nlohmann::json json = nlohmann::json::parse(output.out);
  EXPECT_EQ(json["completed"], 30);
  EXPECT_EQ(json["errors"]["RESOURCE_EXHAUSTED"]["count"], 10);
  EXPECT_THAT(std::string(json["errors"]["RESOURCE_EXHAUSTED"]["message"]), HasSubstr("queue is full"));
  service_.generate = [](grpc::ServerContext*, const v1::GenerateRequest&, GenerateWriter*) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "no group");
  };
  output = RunCommand(RunLoadTest, LoadTest(remote_));
  EXPECT_TRUE(absl::IsUnavailable(output.status)) << output.status;
  EXPECT_EQ(nlohmann::json::parse(output.out)["failed"], 40);
}

TEST_F(LoadTestTest, LoadTestWithAPromptFile) {
  service_.model.set_vocab_size(257);
  std::mutex mutex;
  std::set<std::string> seen;
  service_.generate = [&](grpc::ServerContext*, const v1::GenerateRequest& request, GenerateWriter*) {
    std::lock_guard<std::mutex> lock(mutex);
    seen.insert(request.text());
    return grpc::Status::OK;
  };
  LoadTestOptions options = LoadTest(remote_);
  options.prompt_file = Write("prompts", "one\n\n  \ntwo\n");
  ASSERT_TRUE(RunCommand(RunLoadTest, options).status.ok());
  EXPECT_THAT(seen, ElementsAre("one", "two"));
  options.prompt_file = Write("none", "\n \n");
  EXPECT_TRUE(absl::IsInvalidArgument(RunCommand(RunLoadTest, options).status));
}

}  // namespace
}  // namespace goldfinch
