// Histories of a scheduler whose requests begin with what was kept of others, on shelves that are lost and in a store
// whose moves take a while and fail.
#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/context_keeper.h"
#include "coordinator/context_keeper_store_test_util.h"
#include "coordinator/scheduler_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(ContextKeeperStoreTest, WhatWasKeptIsThereAfterARestart) {
  FakeStore store;
  {
    Keeping keeping(&store);
    keeping.Up(0);
    keeping.cluster.Generate(Prompt(3000), 1, NewClient());
    keeping.cluster.RunAll();
    keeping.ExpectNothingLeft();
    EXPECT_EQ(store.files.size(), 1U);
  }
  Keeping keeping(&store);
  keeping.Up(0);
  const auto client = NewClient();
  keeping.cluster.Generate(Prompt(3000, {7, 8}), 3, client);
  keeping.cluster.RunAll();
  EXPECT_EQ(client->tokens[0], FakeAnswer(Prompt(3000, {7, 8}), 0, 3));
  EXPECT_EQ(client->usage.cached_tokens, 3000);
  EXPECT_EQ(keeping.brings, 1);
  keeping.ExpectNothingLeft();
}

TEST(ContextKeeperStoreTest, ALostGroupCostsAReload) {
  FakeStore store;
  Keeping keeping(&store, 1, 1 << 30, {}, {.first_tokens = 1000, .cost_tokens = 20});
  keeping.Up(0);
  keeping.cluster.step_seconds = 1;
  const auto client = NewClient();
  const std::vector<int32_t> prompt = Prompt(20'000);
  keeping.cluster.Generate(prompt, 40, client);
  while (client->tokens[0].size() < 10) keeping.cluster.RunUntil(keeping.cluster.now + 1);
  EXPECT_GE(store.files.size(), 6U) << "growing distances and the end";
  keeping.Lose(0);
  keeping.Up(0);
  keeping.cluster.RunAll();
  EXPECT_EQ(client->tokens[0], FakeAnswer(prompt, 0, 40));
  EXPECT_EQ(client->usage.recoveries, 1);
  EXPECT_GT(client->usage.reread_tokens, 0);
  EXPECT_LT(client->usage.reread_tokens, 60);
  EXPECT_LT(keeping.cluster.groups.at(0)->tokens_run(), 60) << "what it had generated, and the rest";
  keeping.ExpectNothingLeft();
}

TEST(ContextKeeperStoreTest, ThoseWhoWaitForTheSameShareItsMoves) {
  FakeStore store;
  {
    Keeping keeping(&store);
    keeping.Up(0);
    keeping.cluster.Generate(Prompt(3000), 1, NewClient());
    keeping.cluster.RunAll();
  }
  Keeping keeping(&store);
  keeping.move_seconds = [] { return 3.0; };
  keeping.Up(0);
  std::vector<std::shared_ptr<FakeClient>> clients;
  for (int32_t i = 0; i < 5; ++i) {
    clients.push_back(NewClient());
    keeping.cluster.Generate(Prompt(3000, {i + 1}), 1, clients.back());
  }
  keeping.cluster.RunAll();
  for (const auto& client : clients) EXPECT_EQ(client->usage.cached_tokens, 3000);
  EXPECT_EQ(keeping.brings, 1);
  keeping.ExpectNothingLeft();
}

TEST(ContextKeeperStoreTest, NoFailureOfTheStoreFailsARequest) {
  FakeStore store;
  {
    Keeping keeping(&store);
    keeping.Up(0);
    keeping.cluster.Generate(Prompt(3000), 1, NewClient());
    keeping.cluster.RunAll();
  }
  const FakeStore before = store;
  for (const absl::Status& status :
       {absl::DataLossError("damaged"), absl::NotFoundError("gone"), absl::ResourceExhaustedError("a shelf is full"),
        absl::PermissionDeniedError("not yours"), absl::DeadlineExceededError("stuck")}) {
    SCOPED_TRACE(status.ToString());
    store = before;
    Keeping keeping(&store);
    keeping.fails = [&](bool) { return status; };
    keeping.Up(0);
    const auto client = NewClient();
    keeping.cluster.Generate(Prompt(3000, {7}), 5, client);
    keeping.cluster.RunAll();
    EXPECT_EQ(*client->status, absl::OkStatus());
    EXPECT_EQ(client->tokens[0], FakeAnswer(Prompt(3000, {7}), 0, 5));
    EXPECT_EQ(client->usage.cached_tokens, 0);
    keeping.fails = [](bool) { return absl::OkStatus(); };
    keeping.ExpectNothingLeft();
  }
}

TEST(ContextKeeperStoreTest, NobodyWaitsForEver) {
  FakeStore store;
  {
    Keeping keeping(&store);
    keeping.Up(0);
    keeping.cluster.Generate(Prompt(3000), 1, NewClient());
    keeping.cluster.RunAll();
  }
  Keeping keeping(&store, 1, 1 << 30, {.wait_seconds_max = 4});
  keeping.move_seconds = [] { return 1000.0; };
  keeping.Up(0);
  const auto client = NewClient();
  keeping.cluster.Generate(Prompt(3000, {7}), 1, client);
  keeping.cluster.RunAll();
  EXPECT_EQ(*client->status, absl::OkStatus());
  EXPECT_EQ(client->usage.cached_tokens, 0);
  EXPECT_GE(client->usage.queue_seconds, 3);
}

TEST(ContextKeeperStoreTest, AStoreInMemoryIsForLongTexts) {
  FakeStore store;
  Keeping keeping(&store, 1, 1 << 30, {.durable = false, .protect_tokens = 2000});
  keeping.Up(0);
  keeping.cluster.Generate(Prompt(1500), 1, NewClient());
  keeping.cluster.RunAll();
  EXPECT_EQ(keeping.saves, 0);
  keeping.cluster.Generate(FakePrompt(2500, 3), 1, NewClient());
  keeping.cluster.RunAll();
  EXPECT_EQ(keeping.saves, 1);
  EXPECT_EQ(keeping.keeper.store()->long_bytes(), store.bytes());
}

TEST(ContextKeeperStoreTest, AfterAnErrorNothingIsSavedForAWhile) {
  FakeStore store;
  Keeping keeping(&store, 1, 1 << 30, {.pause_seconds = 100});
  keeping.fails = [](bool) { return absl::ResourceExhaustedError("the disk is full"); };
  keeping.Up(0);
  for (int32_t i = 0; i < 5; ++i) {
    keeping.cluster.Generate(FakePrompt(1000, 10 * i), 1, NewClient());
    keeping.cluster.RunAll();
  }
  EXPECT_EQ(keeping.saves, 1);
  keeping.cluster.now += 101;
  keeping.fails = [](bool) { return absl::OkStatus(); };
  keeping.ExpectNothingLeft();
  EXPECT_EQ(keeping.saves, 5) << "but for the one that failed";
}

// Texts with common beginnings, shelves and a store that are too small, groups that end, restarts, moves that fail, and
// requests that are cancelled.
TEST(ContextKeeperStoreTest, EveryAnswerIsExactAndNothingIsLeft) {
  int64_t loaded = 0, saved = 0, failures = 0, tokens_saved = 0;
  for (uint32_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto below = [&](int limit) { return static_cast<int>(random() % limit); };
    FakeStore store;
    for (int life = 0; life < 3; ++life) {
      StoreTierOptions options = {.bytes_max = 20'000 + below(200'000),
                                  .durable = below(4) > 0,
                                  .protect_tokens = 300,
                                  .wait_seconds_max = 5,
                                  .pause_seconds = 1};
      const int64_t shelf_bytes = 5'000 + below(60'000);
      Keeping keeping(&store, /*replicas=*/2, shelf_bytes, options, {.first_tokens = 200, .cost_tokens = 20});
      keeping.bytes_max_seen = std::max(options.bytes_max, store.bytes());
      FakeCluster& cluster = keeping.cluster;
      cluster.step_seconds = 0.1;
      keeping.move_seconds = [&] { return below(30) * 0.1; };
      const int worst = below(3);
      keeping.fails = [&](bool) -> absl::Status {
        if (worst == 0 || below(6) > 0) return absl::OkStatus();
        const absl::StatusCode codes[] = {absl::StatusCode::kDataLoss, absl::StatusCode::kNotFound,
                                          absl::StatusCode::kResourceExhausted, absl::StatusCode::kUnavailable};
        return absl::Status(codes[below(4)], "fails");
      };
      GroupCapacity capacity = Roomy(1 + below(2));
      capacity.max_sequences = 2 + below(6);
      for (const int replica : {0, 1}) keeping.Up(replica, capacity);
      struct Asked {
        std::vector<int32_t> prompt;
        int64_t tokens = 0;
        std::shared_ptr<FakeClient> client;
        bool cancelled = false;
      };
      std::vector<Asked> all;
      for (int i = 0; i < 50; ++i) {
        Asked asked = {FakePrompt(1 + below(900), below(3)), 1 + below(40), NewClient()};
        if (below(2) == 0) asked.prompt[below(static_cast<int>(asked.prompt.size()))] = 1 + below(3);
        const uint64_t number = cluster.Generate(asked.prompt, asked.tokens, asked.client);
        cluster.RunUntil(cluster.now + below(20) * 0.1);
        if (below(10) == 0) {
          asked.cancelled = true;
          cluster.scheduler.Cancel(number, absl::CancelledError(""), cluster.now);
        }
        if (below(12) == 0) {
          const int replica = below(2);
          keeping.Lose(replica);
          if (below(2) == 0) cluster.RunUntil(cluster.now + 1);
          keeping.Up(replica, capacity);
        }
        all.push_back(std::move(asked));
      }
      cluster.RunAll();
      for (const Asked& asked : all) {
        ASSERT_TRUE(asked.client->status.has_value());
        if (asked.cancelled) continue;
        ASSERT_TRUE(asked.client->status->ok()) << *asked.client->status;
        EXPECT_EQ(asked.client->tokens[0], FakeAnswer(asked.prompt, 0, asked.tokens));
      }
      keeping.ExpectNothingLeft();
      loaded += keeping.keeper.store()->brought();
      saved += keeping.keeper.store()->saved();
      failures += keeping.keeper.store()->moves_failed();
      tokens_saved += keeping.keeper.counters().tokens_saved;
      for (const int replica : {0, 1}) keeping.Lose(replica);
      EXPECT_EQ(keeping.keeper.bytes(), 0);
    }
  }
  EXPECT_GT(loaded, 500);
  EXPECT_GT(saved, 1000);
  EXPECT_GT(failures, 100);
  EXPECT_GT(tokens_saved, 100'000);
}

}  // namespace
}  // namespace goldfinch
