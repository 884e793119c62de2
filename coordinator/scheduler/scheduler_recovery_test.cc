// The scheduler's requests survive the ends of generations.
#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "base/stage_memory.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/scheduler_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(SchedulerRecoveryTest, RequestsGoOnInTheNextGeneration) {
  FakeCluster cluster;
  cluster.Up(0, Roomy(2));
  const auto client = NewClient(2);
  cluster.Generate(FakePrompt(50), 12, client, [](Request* request) { request->generate->samples = 2; });
  while (client->tokens[0].size() < 5) {
    cluster.Plan(0);
    cluster.Answer(0);
  }
  cluster.Plan(0);
  cluster.Lose(0);
  EXPECT_EQ(cluster.scheduler.waiting(), 1);
  cluster.Up(0, Roomy());
  cluster.RunAll();
  for (int i = 0; i < 2; ++i) EXPECT_EQ(client->tokens[i], FakeAnswer(FakePrompt(50), i, 12));
  EXPECT_EQ(client->usage.recoveries, 1);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerRecoveryTest, RequestsGoOnInTheGroupOfAnotherReplica) {
  FakeCluster cluster;
  cluster.Up(0, Roomy());
  const auto client = NewClient();
  cluster.Generate(FakePrompt(50), 12, client);
  cluster.Plan(0);
  cluster.Up(1, Roomy());
  cluster.Lose(0);
  cluster.RunAll();
  EXPECT_EQ(client->tokens[0], FakeAnswer(FakePrompt(50), 0, 12));
  ExpectNothingLeft(cluster);
}

TEST(SchedulerRecoveryTest, WhatNoLongerFitsAfterALossIsEnded) {
  FakeCluster cluster;
  cluster.Up(0, Roomy());
  const auto client = NewClient(), small = NewClient();
  cluster.Generate(FakePrompt(500), 2, client);
  cluster.Generate(FakePrompt(5), 2, small);
  cluster.Lose(0);
  GroupCapacity capacity = Roomy();
  capacity.cache_tokens = 128;
  cluster.Up(0, capacity);
  EXPECT_EQ(client->status->code(), absl::StatusCode::kResourceExhausted);
  cluster.RunAll();
  EXPECT_TRUE(small->status->ok());
  ExpectNothingLeft(cluster);
}

TEST(SchedulerRecoveryTest, WhatBringsEveryGroupDownIsEnded) {
  FakeCluster cluster;
  const auto poison = NewClient(), fine = NewClient();
  cluster.Generate(FakePrompt(5), 2, poison);
  for (int loss = 0; loss < Scheduler::kLossesMax; ++loss) {
    EXPECT_FALSE(poison->status.has_value());
    cluster.Up(0, Roomy());
    cluster.Plan(0);
    cluster.Lose(0);
  }
  ASSERT_TRUE(poison->status.has_value());
  EXPECT_EQ(poison->status->code(), absl::StatusCode::kInternal);
  cluster.Up(0, Roomy());
  cluster.Generate(FakePrompt(5), 2, fine);
  ExpectNothingLeft(cluster);
  EXPECT_TRUE(fine->status->ok());
}

TEST(SchedulerRecoveryTest, ARequestThatGetsFurtherSurvivesAnyNumberOfLosses) {
  FakeCluster cluster;
  const auto client = NewClient();
  GroupCapacity capacity = Roomy();
  capacity.max_step_tokens = 64;
  cluster.Generate(FakePrompt(5), 20, client);
  for (int loss = 0; loss < 3 * Scheduler::kLossesMax; ++loss) {
    cluster.Up(0, capacity);
    cluster.Plan(0);
    cluster.Answer(0);
    cluster.Lose(0);
  }
  cluster.Up(0, capacity);
  cluster.RunAll();
  EXPECT_EQ(client->tokens[0], FakeAnswer(FakePrompt(5), 0, 20));
  EXPECT_EQ(client->usage.recoveries, 3 * Scheduler::kLossesMax);
}

TEST(SchedulerRecoveryTest, WhatOnlyALostGroupCanHoldWaitsForIt) {
  FakeCluster cluster(/*max_queue=*/10, /*replicas=*/2);
  GroupCapacity small = Roomy();
  small.cache_tokens = 128;
  cluster.Up(0, Roomy());
  const auto client = NewClient();
  cluster.Generate(FakePrompt(500), 2, client);
  cluster.Plan(0);
  cluster.Up(1, small);
  cluster.Lose(0);
  cluster.RunAll();
  EXPECT_FALSE(client->status.has_value());
  cluster.Up(0, Roomy());
  cluster.RunAll();
  ASSERT_TRUE(client->status.has_value());
  EXPECT_EQ(client->tokens[0], FakeAnswer(FakePrompt(500), 0, 2));
  ExpectNothingLeft(cluster);
}

TEST(SchedulerRecoveryTest, CacheBytesCountASharedPromptOnceEvenAfterALoss) {
  FakeCluster cluster;
  cluster.scheduler.SetModel(1000, 10, 100);
  cluster.Up(0, Roomy());
  const auto client = NewClient(2);
  // The second sample goes on alone after the loss.
  client->verdict = [](int sample, int32_t) {
    return sample == 0 ? RequestSink::Verdict::kStop : RequestSink::Verdict::kContinue;
  };
  cluster.Generate(FakePrompt(101), 8, client, [](Request* request) { request->generate->samples = 2; });
  while (client->tokens[1].size() < 3) {
    cluster.Plan(0);
    cluster.Answer(0);
  }
  cluster.Lose(0);
  cluster.Up(0, Roomy());
  cluster.RunAll();
  ASSERT_TRUE(client->status.has_value());
  // 100 that are shared; the prompt's last token for each, and seven of the second's answer.
  EXPECT_EQ(client->usage.cache_bytes, 10 * (100 + 1 + 1 + 7));
  EXPECT_EQ(client->usage.transformer_cache_bytes, 100 * (100 + 1 + 1 + 7));
}

// Requests of every kind over several groups, with losses, cancels and clients that pause at random moments: whoever is
// not cancelled gets what it would have got alone.
TEST(SchedulerRecoveryTest, NothingThatHappensChangesAnAnswer) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto below = [&](int limit) { return static_cast<int>(random() % limit); };
    struct Wanted {
      std::vector<int32_t> prompt, continuation;
      int64_t tokens = 0;
      uint64_t number = 0;
      bool cancelled = false;
      std::shared_ptr<FakeClient> client;
    };
    std::vector<Wanted> all;
    FakeCluster cluster(/*max_queue=*/100, /*replicas=*/2);
    const auto new_group = [&](int index) {
      GroupCapacity capacity = Roomy(1 + below(4));
      capacity.max_sequences = 3 + below(8);
      capacity.cache_tokens = kCachePageTokens * (16 + below(40));
      capacity.max_logit_rows = 12;
      cluster.Up(index, capacity);
    };
    new_group(0);
    new_group(1);
    for (int event = 0; event < 150; ++event) {
      const int group = below(2);
      const bool up = cluster.groups.contains(group);
      switch (below(12)) {
        case 0:
        case 1: {
          Wanted wanted{FakePrompt(1 + below(150), below(100)), {}, 1 + below(12), 0, false, NewClient(1 + below(3))};
          const auto paused_at = static_cast<size_t>(below(4));
          FakeClient* client = wanted.client.get();
          client->verdict = [client, paused_at](int sample, int32_t) {
            return client->tokens[sample].size() == paused_at ? RequestSink::Verdict::kPause
                                                              : RequestSink::Verdict::kContinue;
          };
          wanted.number = cluster.Generate(wanted.prompt, wanted.tokens, wanted.client, [&](Request* request) {
            request->generate->samples = static_cast<int>(client->tokens.size());
            request->generate->sampling.seed = seed;
            request->priority = below(2);
          });
          all.push_back(wanted);
          break;
        }
        case 2: {
          Wanted wanted{FakePrompt(1 + below(60), below(100)), FakePrompt(1 + below(20)), 0, 0, false, NewClient()};
          wanted.number = cluster.Score(wanted.prompt, {wanted.continuation, {7}}, below(2) == 0, wanted.client);
          all.push_back(wanted);
          break;
        }
        case 3:
          if (!all.empty() && below(4) == 0) {
            Wanted& wanted = all[below(static_cast<int>(all.size()))];
            wanted.cancelled = true;
            cluster.scheduler.Cancel(wanted.number, absl::CancelledError(""), cluster.now);
          }
          break;
        case 4:
          if (below(4) > 0) break;
          if (up) {
            cluster.Lose(group);
          } else {
            new_group(group);
          }
          break;
        case 5:
          if (!all.empty()) cluster.scheduler.Resume(all[below(static_cast<int>(all.size()))].number);
          break;
        default:
          if (up && cluster.Plan(group) > 0) cluster.Answer(group);
      }
    }
    for (int group = 0; group < 2; ++group) {
      if (!cluster.groups.contains(group)) new_group(group);
    }
    const auto all_ended = [&] {
      return std::all_of(all.begin(), all.end(), [](const Wanted& one) { return one.client->status.has_value(); });
    };
    for (int round = 0; round < 100 && !all_ended(); ++round) {
      for (const Wanted& wanted : all) cluster.scheduler.Resume(wanted.number);
      cluster.RunAll();
    }
    ExpectNothingLeft(cluster);
    for (const Wanted& wanted : all) {
      ASSERT_TRUE(wanted.client->status.has_value());
      if (wanted.cancelled || absl::IsInternal(*wanted.client->status)) continue;  // lost too often in a row
      ASSERT_TRUE(wanted.client->status->ok()) << *wanted.client->status;
      if (!wanted.continuation.empty()) {
        ExpectScores(*wanted.client, 0, wanted.prompt, wanted.continuation);
        continue;
      }
      for (size_t i = 0; i < wanted.client->tokens.size(); ++i) {
        EXPECT_EQ(wanted.client->tokens[i], FakeAnswer(wanted.prompt, seed + i, wanted.tokens));
      }
    }
  }
}

}  // namespace
}  // namespace goldfinch
