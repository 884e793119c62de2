// A cluster whose split follows the traffic, while streams go on.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "coordinator/planner/stage_cost.h"
#include "gtest/gtest.h"
#include "tests/cluster/local_cluster.h"

namespace goldfinch {
namespace {

constexpr char kDemoModel[] = "tests/demo_model/model.pth";
constexpr auto kPause = std::chrono::milliseconds(2);
constexpr auto kPatience = std::chrono::seconds(60);
constexpr int kStreams = 4;
constexpr int64_t kLongAnswer = 200;

// Long prompts and short answers. The first stage then has two of the four Finch-side layers; for long answers it has
// more of them, as GOLD layers take as long as the others.
constexpr ExpectedTraffic kReading{.prompt_tokens = 2000, .output_tokens = 4, .context_tokens = 2004, .sequences = 4};

std::vector<int32_t> Prompt(size_t tokens, int number) {
  std::vector<int32_t> ids(tokens);
  for (size_t i = 0; i < tokens; ++i) ids[i] = 1 + static_cast<int32_t>((i * 7 + static_cast<size_t>(number)) % 200);
  return ids;
}

// Draws kLongAnswer tokens, which depend on the number.
std::shared_ptr<WatchedRequest> Write(LocalCluster& cluster, int number) {
  return cluster.Generate(Prompt(8, number), kLongAnswer, [number](Request* request) {
    request->generate->sampling.temperature = 1;
    request->generate->sampling.seed = number;
    request->generate->sampling.banned_tokens = {0};  // none of them ends before it must
  });
}

int FirstLayerOfStageOne(LocalCluster& cluster) {
  const v1::GroupInfo group = cluster.Info().groups(0);
  return group.state() == v1::READY && group.stages_size() == 2 ? static_cast<int>(group.stages(1).first_layer()) : -1;
}

TEST(SplitsTest, TheSplitFollowsTheTrafficAndNoStreamNotices) {
  std::vector<std::vector<int32_t>> answers;
  {
    LocalCluster alone(kDemoModel, 1);
    alone.AwaitReady();
    for (int i = 0; i < kStreams; ++i) {
      const auto request = Write(alone, i);
      ASSERT_TRUE(request->Wait().ok());
      answers.push_back(request->tokens());
    }
  }
  LocalCluster cluster(kDemoModel, 2, [](CoordinatorOptions* options) {
    options->prefix_cache = false;
    options->traffic_half_life_seconds = 0.3;
    options->split_period_seconds = 0.05;
    options->membership.partition.traffic = kReading;
    options->membership.replan = true;
    options->membership.replan_after_seconds = 0.2;
  });
  cluster.AwaitReady();
  const int before = FirstLayerOfStageOne(cluster);
  EXPECT_EQ(before, 2);
  for (int i = 0; i < 3; ++i) {
    const auto request = cluster.Generate(Prompt(2000, i), 2);
    ASSERT_TRUE(request->Wait().ok()) << request->Wait();
  }
  EXPECT_EQ(FirstLayerOfStageOne(cluster), before) << "it is as it was expected";

  std::atomic<bool> changed = false;
  std::atomic<int> recoveries = 0;
  std::vector<std::thread> clients;
  for (int i = 0; i < kStreams; ++i) {
    clients.emplace_back([&, i] {
      while (!changed) {
        const auto request = Write(cluster, i);
        ASSERT_TRUE(request->Wait().ok()) << request->Wait();
        EXPECT_EQ(request->tokens(), answers[i]) << i;
        recoveries += request->usage().recoveries;
      }
    });
  }
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  int after = before;
  while ((after == before || after < 0) && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(kPause);
    after = FirstLayerOfStageOne(cluster);
  }
  changed = true;
  for (std::thread& client : clients) client.join();
  EXPECT_GT(after, before);
  EXPECT_GT(recoveries, 0) << "streams went on from one split to the other";
  const v1::GetClusterInfoResponse info = cluster.Info();
  EXPECT_GT(info.groups(0).expected_traffic().output_tokens(), info.groups(0).expected_traffic().prompt_tokens());
  EXPECT_GT(info.traffic().output_tokens(), info.traffic().prompt_tokens());
  cluster.ExpectNothingHeld();
}

TEST(SplitsTest, LinksAreMeasuredWhenTheGroupIsIdle) {
  LocalCluster cluster(kDemoModel, 3);
  cluster.AwaitReady();
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  const auto measured = [&cluster](int stage) { return !cluster.Info().groups(0).stages(stage).links().empty(); };
  while (!measured(0) || !measured(1)) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << cluster.Info().ShortDebugString();
    std::this_thread::sleep_for(kPause);
  }
  const v1::GetClusterInfoResponse info = cluster.Info();
  for (int stage = 0; stage < 2; ++stage) {
    EXPECT_GT(info.groups(0).stages(stage).links(0).round_trip_seconds(), 0) << stage;
  }
  EXPECT_GT(cluster.Metric("link_round_trip_seconds"), 0);
  ASSERT_TRUE(cluster.Generate(Prompt(20, 1), 5)->Wait().ok());
}

}  // namespace
}  // namespace goldfinch
