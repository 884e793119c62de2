// A scheduler whose requests begin with what was kept of others: whole histories with workers that check every Step.
#include "coordinator/keeper/context_keeper.h"

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "coordinator/scheduler/scheduler_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

// Groups with shelves of so many bytes; a token has 10, a snapshot 100.
struct Keeping {
  explicit Keeping(int64_t shelf_bytes = 1 << 30, int replicas = 1, const SnapshotOptions& snapshots = {})
      : keeper(snapshots), cluster(100, replicas), shelf_bytes(shelf_bytes) {
    keeper.SetModel({"f", "bytes", "bf16", "cpu-f32"});
    cluster.scheduler.SetKeeper(&keeper);
    cluster.planned = [this](int replica, const StepPlan& plan) {
      const ShelfDrops drops = keeper.TakeDrops(replica);
      for (const uint64_t segment : drops.snapshots) cluster.groups.at(replica)->DropSnapshot(segment);
      for (const uint64_t segment : drops.segments) cluster.groups.at(replica)->DropSegment(segment);
      keeper.StepPlanned(replica, plan.id);
    };
    cluster.answered = [this](int replica, uint64_t step) { keeper.StepAnswered(replica, step, {}, cluster.now); };
  }
  void Up(int replica, GroupCapacity capacity = Roomy()) {
    capacity.max_step_tokens = std::max<int64_t>(capacity.max_step_tokens, 1024);
    capacity.row_seconds = 0.01;
    keeper.GenerationReady(replica, {shelf_bytes, /*bytes_per_token=*/10, /*snapshot_bytes=*/100});
    cluster.Up(replica, capacity);
  }
  void Lose(int replica) {
    keeper.GenerationEnded(replica);
    cluster.Lose(replica);
  }

  ContextKeeper keeper;
  FakeCluster cluster;
  const int64_t shelf_bytes;
};

TEST(ContextKeeperTest, QuestionsOverOneDocumentReadItOnce) {
  Keeping keeping;
  FakeCluster& cluster = keeping.cluster;
  keeping.Up(0);
  for (int32_t question = 0; question < 64; ++question) {
    const auto client = NewClient();
    const std::vector<int32_t> prompt = Prompt(3000, {question + 1, 7});
    cluster.Generate(prompt, 2, client);
    cluster.RunAll();
    EXPECT_EQ(client->tokens[0], FakeAnswer(prompt, 0, 2));
    // The second question shows where texts part, and the third one finds a snapshot there.
    EXPECT_EQ(client->usage.cached_tokens, question < 2 ? 0 : 3000) << question;
  }
  EXPECT_EQ(keeping.keeper.counters().hits, 62);
  EXPECT_EQ(keeping.keeper.counters().tokens_saved, 62 * 3000);
  ExpectNothingLeft(cluster);
}

TEST(ContextKeeperTest, AFollowUpReadsNothingAgain) {
  Keeping keeping;
  keeping.Up(0);
  const auto first = NewClient(), second = NewClient();
  keeping.cluster.Generate(Prompt(500), 1, first);
  keeping.cluster.RunAll();
  keeping.cluster.Generate(Prompt(500, {7, 8, 9}), 1, second);
  keeping.cluster.RunAll();
  EXPECT_EQ(second->usage.cached_tokens, 500);
  ExpectNothingLeft(keeping.cluster);
}

TEST(ContextKeeperTest, AnAnswerIsSavedAtGrowingDistances) {
  Keeping keeping(1 << 30, 1, {.first_tokens = 500, .cost_tokens = 20});
  keeping.Up(0);
  const auto first = NewClient(), second = NewClient(), refused = NewClient();
  keeping.cluster.Generate(Prompt(490), 1100, first);
  keeping.cluster.RunAll();
  // 500 is so close to the end of the prompt that it would spare nothing; 1,000 and 1,500 are within the answer.
  EXPECT_EQ(keeping.keeper.bytes(), 1500 * 10 + 3 * 100);
  const std::vector<int32_t> chat = Prompt(490, first->tokens[0]);
  keeping.cluster.Generate(chat, 1, second);
  keeping.cluster.RunAll();
  EXPECT_EQ(second->usage.cached_tokens, 1500);
  EXPECT_EQ(second->tokens[0], FakeAnswer(chat, 0, 1));
  const int64_t bytes = keeping.keeper.bytes();
  keeping.cluster.Generate(FakePrompt(490, 50), 1100, refused, [](Request* request) { request->cache = false; });
  keeping.cluster.RunAll();
  EXPECT_EQ(keeping.keeper.bytes(), bytes);
}

// What a sequence would begin with can be asked without any trace.
TEST(ContextKeeperTest, APeekIsWhatBeginGives) {
  Keeping keeping;
  keeping.Up(0);
  const auto read = NewClient();
  keeping.cluster.Generate(Prompt(500), 1, read, [](Request* request) { request->breakpoints = {64, 200}; });
  keeping.cluster.RunAll();
  const std::vector<int32_t> prompt = Prompt(500, {7, 8});
  const Request request;
  for (const int64_t tokens_max : {502, 499, 200, 63}) {
    SCOPED_TRACE(tokens_max);
    const int64_t hits = keeping.keeper.counters().hits;
    const auto peeked = keeping.keeper.Peek(0, request, prompt, tokens_max, 0.01);
    EXPECT_EQ(keeping.keeper.counters().hits, hits);
    const auto begun = keeping.keeper.Begin(0, request, prompt, tokens_max, 0.01, keeping.cluster.now);
    EXPECT_EQ(peeked.segments, begun.segments);
    EXPECT_EQ(peeked.ends, begun.ends);
    EXPECT_EQ(peeked.tokens, begun.tokens);
    EXPECT_EQ(peeked.ends.empty() ? 0 : peeked.ends.back(), begun.tokens);
    EXPECT_EQ(begun.tokens, tokens_max == 502 ? 500 : tokens_max == 63 ? 0 : 200);
    EXPECT_TRUE(peeked.save_at.empty());
    if (!begun.segments.empty()) keeping.keeper.Release(0, begun);
  }
  ExpectNothingLeft(keeping.cluster);
}

TEST(ContextKeeperTest, ARequestCanRefuse) {
  Keeping keeping;
  keeping.Up(0);
  const auto first = NewClient(), second = NewClient(), third = NewClient();
  const auto refuse = [](Request* request) { request->cache = false; };
  keeping.cluster.Generate(Prompt(500), 1, first, refuse);
  keeping.cluster.RunAll();
  EXPECT_EQ(keeping.keeper.bytes(), 0);
  keeping.cluster.Generate(Prompt(500), 1, second);
  keeping.cluster.RunAll();
  keeping.cluster.Generate(Prompt(500, {7}), 1, third, refuse);
  keeping.cluster.RunAll();
  EXPECT_EQ(third->usage.cached_tokens, 0);
  ExpectNothingLeft(keeping.cluster);
}

TEST(ContextKeeperTest, ClientsWithKeysHaveTextsOfTheirOwn) {
  Keeping keeping;
  keeping.Up(0);
  const auto as = [](const std::string& key) {
    return [key](Request* request) {
      request->client = std::make_shared<goldfinch::Client>(goldfinch::Client{key, {}, key});
    };
  };
  const auto first = NewClient(), second = NewClient(), third = NewClient();
  keeping.cluster.Generate(Prompt(500), 1, first, as("a"));
  keeping.cluster.RunAll();
  keeping.cluster.Generate(Prompt(500, {7}), 1, second, as("b"));
  keeping.cluster.RunAll();
  EXPECT_EQ(second->usage.cached_tokens, 0);
  keeping.cluster.Generate(Prompt(500, {7}), 1, third, as("a"));
  keeping.cluster.RunAll();
  EXPECT_EQ(third->usage.cached_tokens, 500);
  ExpectNothingLeft(keeping.cluster);
}

TEST(ContextKeeperTest, WhatAShelfHasNoRoomForIsNotUsed) {
  Keeping keeping;
  keeping.cluster.answered = [&](int replica, uint64_t step) {
    keeping.keeper.StepAnswered(replica, step, {1, 2, 3}, keeping.cluster.now);
  };
  keeping.Up(0);
  const auto first = NewClient(), second = NewClient();
  keeping.cluster.Generate(Prompt(500), 1, first);
  keeping.cluster.RunAll();
  EXPECT_EQ(keeping.keeper.bytes(), 0);
  keeping.cluster.Generate(Prompt(500, {7}), 1, second);
  keeping.cluster.RunAll();
  EXPECT_EQ(second->usage.cached_tokens, 0);
  ExpectNothingLeft(keeping.cluster);
}

// Many texts with common beginnings, more than the shelves hold, groups that end, and requests that are cancelled.
TEST(ContextKeeperTest, EveryAnswerIsExactAndShelvesNeverOverflow) {
  int64_t saved = 0, evictions = 0;
  for (uint32_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto below = [&](int limit) { return static_cast<int>(random() % limit); };
    Keeping keeping(/*shelf_bytes=*/5'000 + below(60'000), /*replicas=*/2);
    FakeCluster& cluster = keeping.cluster;
    cluster.step_seconds = 0.1;
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
    for (int i = 0; i < 80; ++i) {
      Asked asked = {FakePrompt(1 + below(900), below(3)), 1 + below(40), NewClient(1 + below(3))};
      if (below(2) == 0) asked.prompt[below(static_cast<int>(asked.prompt.size()))] = 1 + below(3);
      const uint64_t number = cluster.Generate(asked.prompt, asked.tokens, asked.client, [&](Request* request) {
        request->generate->samples = static_cast<int>(asked.client->tokens.size());
        request->priority = below(2);
      });
      for (int replica = 0; replica < 2; ++replica) EXPECT_LE(keeping.keeper.bytes(), 2 * keeping.shelf_bytes);
      cluster.RunUntil(cluster.now + below(20) * 0.1);
      if (below(10) == 0) {
        asked.cancelled = true;
        cluster.scheduler.Cancel(number, absl::CancelledError(""), cluster.now);
      }
      if (below(15) == 0) {
        const int replica = below(2);
        keeping.Lose(replica);
        keeping.Up(replica, capacity);
      }
      all.push_back(std::move(asked));
    }
    cluster.RunAll();
    for (const Asked& asked : all) {
      ASSERT_TRUE(asked.client->status.has_value());
      if (asked.cancelled) continue;
      ASSERT_TRUE(asked.client->status->ok()) << *asked.client->status;
      for (size_t i = 0; i < asked.client->tokens.size(); ++i) {
        EXPECT_EQ(asked.client->tokens[i], FakeAnswer(asked.prompt, i, asked.tokens));
      }
    }
    ExpectNothingLeft(cluster);
    saved += keeping.keeper.counters().tokens_saved;
    evictions += keeping.keeper.counters().evictions;
    for (const int replica : {0, 1}) keeping.keeper.GenerationEnded(replica);
    EXPECT_EQ(keeping.keeper.bytes(), 0);
  }
  EXPECT_GT(saved, 10'000);
  EXPECT_GT(evictions, 100);
}

}  // namespace
}  // namespace goldfinch
