#include "coordinator/scheduler.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/scheduler_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr GroupCapacity kRoomy{.stages = 1,
                               .max_sequences = 64,
                               .cache_tokens = 1 << 20,
                               .max_sequence_tokens = 1 << 16,
                               .max_step_tokens = 16,
                               .max_logit_rows = 64};

GroupCapacity Roomy(int stages) {
  GroupCapacity capacity = kRoomy;
  capacity.stages = stages;
  return capacity;
}

std::shared_ptr<FakeClient> Client(int samples = 1) { return std::make_shared<FakeClient>(samples); }

// Tokens of each chunk of a Step, by sequence in the order of the Step.
std::vector<int64_t> ChunkTokens(const StepPlan& plan) {
  std::vector<int64_t> tokens;
  for (const StepPlan::Chunk& chunk : plan.chunks) tokens.push_back(chunk.tokens);
  return tokens;
}

void ExpectNothingLeft(FakeCluster& cluster) {
  cluster.RunAll();
  EXPECT_EQ(cluster.scheduler.running(), 0);
  EXPECT_EQ(cluster.scheduler.waiting(), 0);
  for (const auto& [index, group] : cluster.groups) {
    EXPECT_EQ(group->sequences(), 0U);
    const GroupLoad load = cluster.scheduler.Load(index);
    EXPECT_EQ(load.sequences, 0);
    EXPECT_EQ(load.cache_tokens_reserved, 0);
    EXPECT_EQ(load.steps_in_flight, 0);
  }
}

// ---- One request ----

TEST(SchedulerTest, ReadsThePromptInChunksThenDecodes) {
  FakeCluster cluster;
  cluster.Up(0, kRoomy);
  const auto client = Client();
  cluster.Generate(FakePrompt(40), 5, client, [](Request* request) { request->progress = true; });
  cluster.RunAll();
  ASSERT_TRUE(client->status.has_value());
  EXPECT_TRUE(client->status->ok());
  EXPECT_EQ(client->tokens[0], FakeAnswer(FakePrompt(40), 0, 5));
  EXPECT_EQ(client->finishes[0], Finish::kLength);
  EXPECT_THAT(client->progress, ElementsAre(16, 32, 40));
  EXPECT_EQ(client->usage.prompt_tokens, 40);
  EXPECT_EQ(client->usage.completion_tokens, 5);
  EXPECT_EQ(cluster.groups[0]->tokens_run(), 44) << "the last token is not run";
  ExpectNothingLeft(cluster);
}

TEST(SchedulerTest, ChunksOfALongPromptFollowEachOtherThroughTheStages) {
  FakeCluster cluster;
  cluster.Up(0, Roomy(3));
  cluster.Generate(FakePrompt(160), 1, Client());
  EXPECT_EQ(cluster.Plan(0), 4) << "one for each stage, one on its way";
  EXPECT_EQ(cluster.scheduler.Load(0).steps_in_flight, 4);
  cluster.Answer(0);
  EXPECT_EQ(cluster.Plan(0), 4);
}

TEST(SchedulerTest, MaxTokensZeroOnlyReadsThePrompt) {
  FakeCluster cluster;
  cluster.Up(0, kRoomy);
  const auto client = Client();
  cluster.Generate(FakePrompt(20), 0, client);
  cluster.RunAll();
  EXPECT_TRUE(client->status->ok());
  EXPECT_EQ(client->finishes[0], Finish::kLength);
  EXPECT_TRUE(client->tokens[0].empty());
  EXPECT_EQ(cluster.groups[0]->tokens_run(), 20);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerTest, StopIdsAndVerdictsEndASample) {
  FakeCluster cluster;
  cluster.Up(0, kRoomy);
  const std::vector<int32_t> answer = FakeAnswer(FakePrompt(8), 0, 6);
  const auto by_id = Client(), by_verdict = Client();
  cluster.Generate(FakePrompt(8), 6, by_id, [&](Request* request) { request->generate->stop_ids = {answer[2]}; });
  by_verdict->verdict = [&](int, int32_t token) {
    return token == answer[3] ? RequestSink::Verdict::kStop : RequestSink::Verdict::kContinue;
  };
  cluster.Generate(FakePrompt(8), 6, by_verdict);
  cluster.RunAll();
  EXPECT_EQ(by_id->finishes[0], Finish::kStop);
  EXPECT_EQ(by_id->tokens[0], std::vector<int32_t>(answer.begin(), answer.begin() + 3));
  EXPECT_EQ(by_verdict->finishes[0], Finish::kStop);
  EXPECT_EQ(by_verdict->tokens[0], std::vector<int32_t>(answer.begin(), answer.begin() + 4));
  ExpectNothingLeft(cluster);
}

TEST(SchedulerTest, TokenZeroEndsTheText) {
  Scheduler scheduler(1);
  scheduler.GroupUp(0, kRoomy, 0);
  const auto client = Client();
  Request request;
  request.prompt = {1};
  request.generate.emplace();
  scheduler.Submit(1, request, client, 0);
  StepPlan plan;
  ASSERT_TRUE(scheduler.NextStep(0, 0, &plan));
  cluster::v1::StepDone done;
  done.set_id(plan.id);
  done.add_results()->set_sequence(plan.chunks[0].sequence);
  ASSERT_TRUE(scheduler.Apply(0, done, 1).ok());
  EXPECT_EQ(client->finishes[0], Finish::kEndOfText);
}

// ---- What a Step is made of ----

TEST(SchedulerTest, DecodingGoesFirstAndPreFillFillsTheRest) {
  FakeCluster cluster;
  cluster.Up(0, kRoomy);
  cluster.Generate(FakePrompt(4), 10, Client());
  cluster.Generate(FakePrompt(4), 10, Client());
  cluster.Plan(0);
  cluster.Answer(0);
  cluster.Generate(FakePrompt(100), 1, Client());
  cluster.Plan(0);
  EXPECT_THAT(ChunkTokens(cluster.plans[0].front()), ElementsAre(1, 1, 14));
}

TEST(SchedulerTest, DecodingSequencesAreDealtOverTheStages) {
  FakeCluster cluster;
  cluster.Up(0, Roomy(3));
  for (int i = 0; i < 6; ++i) cluster.Generate(FakePrompt(2, i), 50, Client());
  cluster.Plan(0);
  while (cluster.scheduler.Load(0).steps_in_flight > 0) cluster.Answer(0);
  EXPECT_EQ(cluster.Plan(0), 3);
  for (const StepPlan& plan : cluster.plans[0]) EXPECT_THAT(ChunkTokens(plan), ElementsAre(1, 1));
}

TEST(SchedulerTest, AShortPromptOvertakesALongOne) {
  FakeCluster cluster;
  cluster.Up(0, kRoomy);
  const auto lengthy = Client(), brief = Client();
  cluster.Generate(FakePrompt(1000), 1, lengthy);
  cluster.Plan(0);
  cluster.Generate(FakePrompt(8), 1, brief);
  cluster.Answer(0);
  cluster.Plan(0);
  cluster.Answer(0);
  EXPECT_FALSE(brief->status.has_value());
  cluster.Answer(0);
  EXPECT_TRUE(brief->status.has_value()) << "in the first Step that was planned after it came";
  EXPECT_FALSE(lengthy->status.has_value());
}

TEST(SchedulerTest, ALongPromptKeepsHalfOfWhatIsThere) {
  FakeCluster cluster;
  cluster.Up(0, kRoomy);
  const auto lengthy = Client();
  cluster.Generate(FakePrompt(800), 1, lengthy);
  // Short ones without end.
  int steps = 0;
  for (; !lengthy->status.has_value() && steps < 1000; ++steps) {
    for (int i = 0; i < 2; ++i) cluster.Generate(FakePrompt(8, steps), 0, Client());
    cluster.Plan(0);
    cluster.Answer(0);
  }
  EXPECT_LE(steps, 800 / 8 + 3);
  EXPECT_GE(steps, 800 / 16);
}

TEST(SchedulerTest, HigherPriorityGoesFirst) {
  FakeCluster cluster;
  cluster.Up(0, kRoomy);
  const auto low = Client(), high = Client();
  cluster.Generate(FakePrompt(64), 1, low);
  cluster.Generate(FakePrompt(64), 1, high, [](Request* request) { request->priority = 1; });
  while (!high->status.has_value()) {
    cluster.Plan(0);
    cluster.Answer(0);
    EXPECT_FALSE(low->status.has_value());
  }
  ExpectNothingLeft(cluster);
}

// ---- Admission ----

TEST(SchedulerTest, RequestsWaitForASlotInTheOrderOfTheirArrival) {
  FakeCluster cluster;
  GroupCapacity capacity = kRoomy;
  capacity.max_sequences = 2;
  cluster.Up(0, capacity);
  std::vector<std::shared_ptr<FakeClient>> clients;
  for (int i = 0; i < 5; ++i) cluster.Generate(FakePrompt(4, i), 3, clients.emplace_back(Client()));
  EXPECT_EQ(cluster.scheduler.running(), 2);
  EXPECT_EQ(cluster.scheduler.waiting(), 3);
  cluster.RunAll();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(clients[i]->tokens[0], FakeAnswer(FakePrompt(4, i), 0, 3));
  EXPECT_GT(clients[4]->usage.queue_seconds, clients[2]->usage.queue_seconds);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerTest, RequestsWaitForCachePagesOfTheirWholeCourse) {
  FakeCluster cluster;
  GroupCapacity capacity = kRoomy;
  capacity.cache_tokens = 4 * kCachePageTokens;
  cluster.Up(0, capacity);
  // 10 + 129 - 1 positions: three pages.
  cluster.Generate(FakePrompt(10), 129, Client());
  EXPECT_EQ(cluster.scheduler.Load(0).cache_tokens_reserved, 3 * kCachePageTokens);
  const auto large = Client(), small = Client();
  cluster.Generate(FakePrompt(65), 1, large);
  EXPECT_EQ(cluster.scheduler.waiting(), 1);
  cluster.Generate(FakePrompt(5), 1, small);
  EXPECT_EQ(cluster.scheduler.waiting(), 2) << "the one before it would starve";
  cluster.RunAll();
  EXPECT_TRUE(large->status->ok());
  EXPECT_TRUE(small->status->ok());
  ExpectNothingLeft(cluster);
}

TEST(SchedulerTest, AFullQueueRefuses) {
  FakeCluster cluster(/*max_queue=*/2);
  const auto last = Client();
  cluster.Generate(FakePrompt(4), 1, Client());
  cluster.Generate(FakePrompt(4), 1, Client());
  cluster.Generate(FakePrompt(4), 1, last);
  ASSERT_TRUE(last->status.has_value());
  EXPECT_EQ(last->status->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(last->status->message()), HasSubstr("2 requests wait already (--max-queue)"));
}

TEST(SchedulerTest, WhatCanNeverFitIsRefusedAtOnce) {
  FakeCluster cluster;
  GroupCapacity capacity = kRoomy;
  capacity.cache_tokens = 128;
  capacity.max_sequences = 2;
  cluster.Up(0, capacity);
  const auto too_long = Client(), too_many = Client(3);
  cluster.Generate(FakePrompt(100), 100, too_long);
  EXPECT_EQ(too_long->status->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(too_long->status->message()), HasSubstr("256 tokens of cache; there are 2 sequences"));
  cluster.Generate(FakePrompt(1), 1, too_many, [](Request* request) { request->generate->samples = 3; });
  EXPECT_EQ(too_many->status->code(), absl::StatusCode::kResourceExhausted);
}

TEST(SchedulerTest, GroupsShareTheQueue) {
  FakeCluster cluster;
  cluster.Up(0, kRoomy);
  cluster.Up(1, kRoomy);
  for (int i = 0; i < 4; ++i) cluster.Generate(FakePrompt(50, i), 2, Client());
  EXPECT_EQ(cluster.scheduler.Load(0).sequences, 2);
  EXPECT_EQ(cluster.scheduler.Load(1).sequences, 2);
  ExpectNothingLeft(cluster);
}

// ---- Samples and scores ----

TEST(SchedulerTest, SamplesShareThePromptsWorkAndDrawAsRequestsOfTheirOwn) {
  FakeCluster cluster;
  cluster.Up(0, kRoomy);
  const auto client = Client(3);
  cluster.Generate(FakePrompt(200), 4, client, [](Request* request) {
    request->generate->samples = 3;
    request->generate->sampling.seed = 7;
  });
  // Three full pages that are shared, one of its own for each.
  EXPECT_EQ(cluster.scheduler.Load(0).cache_tokens_reserved, (3 + 3) * kCachePageTokens);
  cluster.RunAll();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(client->tokens[i], FakeAnswer(FakePrompt(200), 7 + i, 4)) << i;
  EXPECT_EQ(cluster.groups[0]->tokens_run(), 199 + 3 * 4);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerTest, SamplesOfAPromptOfOneToken) {
  FakeCluster cluster;
  cluster.Up(0, kRoomy);
  const auto client = Client(2);
  cluster.Generate({5}, 3, client, [](Request* request) { request->generate->samples = 2; });
  cluster.RunAll();
  for (int i = 0; i < 2; ++i) EXPECT_EQ(client->tokens[i], FakeAnswer({5}, i, 3));
  ExpectNothingLeft(cluster);
}

void ExpectScores(const FakeClient& client, int continuation, std::vector<int32_t> before,
                  const std::vector<int32_t>& text) {
  const auto found = client.scores.find(continuation);
  ASSERT_NE(found, client.scores.end()) << continuation;
  ASSERT_EQ(found->second.size(), text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    EXPECT_EQ(found->second[i].id, text[i]);
    EXPECT_EQ(found->second[i].logprob, FakeLogprob(before, text[i]));
    before.push_back(text[i]);
  }
}

TEST(SchedulerTest, ScoresPromptAndContinuations) {
  for (const bool score_prompt : {false, true}) {
    FakeCluster cluster;
    GroupCapacity capacity = kRoomy;
    capacity.max_logit_rows = 5;
    cluster.Up(0, capacity);
    const std::vector<int32_t> prompt = FakePrompt(43);
    const std::vector<std::vector<int32_t>> continuations = {{9}, FakePrompt(20, 50), {3, 4}};
    const auto client = Client();
    cluster.Score(prompt, continuations, score_prompt, client);
    cluster.RunAll();
    ASSERT_TRUE(client->status.has_value());
    EXPECT_TRUE(client->status->ok()) << client->status->ToString();
    for (int i = 0; i < 3; ++i) ExpectScores(*client, i, prompt, continuations[i]);
    if (score_prompt) ExpectScores(*client, -1, {prompt[0]}, {prompt.begin() + 1, prompt.end()});
    EXPECT_EQ(client->scores.size(), score_prompt ? 4U : 3U);
    EXPECT_EQ(cluster.groups[0]->tokens_run(), 42 + 1 + 20 + 2);
    ExpectNothingLeft(cluster);
  }
}

TEST(SchedulerTest, ScoresAPromptAlone) {
  FakeCluster cluster;
  cluster.Up(0, kRoomy);
  const auto client = Client(), one = Client();
  const std::vector<int32_t> prompt = FakePrompt(30);
  cluster.Score(prompt, {}, true, client);
  cluster.Score({4}, {}, true, one);
  EXPECT_TRUE(one->status.has_value()) << "there is nothing before its only token";
  cluster.RunAll();
  ExpectScores(*client, -1, {prompt[0]}, {prompt.begin() + 1, prompt.end()});
  ExpectNothingLeft(cluster);
}

// ---- Clients that leave or do not read ----

TEST(SchedulerTest, ACancelledRequestIsClosedByTheNextStepAndItsResultsAreDropped) {
  FakeCluster cluster;
  cluster.Up(0, kRoomy);
  const auto client = Client();
  const uint64_t number = cluster.Generate(FakePrompt(8), 100, client);
  cluster.Plan(0);
  cluster.scheduler.Cancel(number, absl::CancelledError("gone"), cluster.now);
  EXPECT_EQ(client->status->code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(cluster.scheduler.Load(0).sequences, 0);
  cluster.Answer(0);
  EXPECT_TRUE(client->tokens[0].empty());
  cluster.Plan(0);
  EXPECT_EQ(cluster.plans[0].front().close.size(), 1U);
  EXPECT_EQ(cluster.groups[0]->sequences(), 0U);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerTest, ARequestThatWaitsCanBeCancelled) {
  FakeCluster cluster;
  const auto client = Client();
  const uint64_t number = cluster.Generate(FakePrompt(8), 100, client);
  cluster.scheduler.Cancel(number, absl::CancelledError("gone"), cluster.now);
  cluster.scheduler.Cancel(number, absl::CancelledError("again"), cluster.now);
  EXPECT_EQ(client->status->message(), "gone");
  cluster.Up(0, kRoomy);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerTest, APausedRequestHoldsItsPlaceAndComputesNothing) {
  FakeCluster cluster;
  cluster.Up(0, kRoomy);
  const auto slow = Client(), other = Client();
  slow->verdict = [&](int, int32_t) {
    return slow->tokens[0].size() == 2 ? RequestSink::Verdict::kPause : RequestSink::Verdict::kContinue;
  };
  const uint64_t number = cluster.Generate(FakePrompt(8), 6, slow);
  cluster.Generate(FakePrompt(8, 9), 12, other);
  cluster.RunAll();
  EXPECT_EQ(slow->tokens[0].size(), 2U);
  EXPECT_EQ(other->tokens[0].size(), 12U);
  EXPECT_EQ(cluster.scheduler.running(), 1);
  cluster.scheduler.Resume(number);
  cluster.scheduler.Resume(number);
  cluster.RunAll();
  EXPECT_EQ(slow->tokens[0], FakeAnswer(FakePrompt(8), 0, 6));
  ExpectNothingLeft(cluster);
}

// ---- Losses ----

TEST(SchedulerTest, ALostGroupsRequestsGoOnInTheNextOne) {
  FakeCluster cluster;
  cluster.Up(0, Roomy(2));
  const auto client = Client(2);
  cluster.Generate(FakePrompt(50), 12, client, [](Request* request) { request->generate->samples = 2; });
  while (client->tokens[0].size() < 5) {
    cluster.Plan(0);
    cluster.Answer(0);
  }
  cluster.Plan(0);
  cluster.Lose(0);
  EXPECT_EQ(cluster.scheduler.waiting(), 1);
  cluster.Up(0, kRoomy);
  cluster.RunAll();
  for (int i = 0; i < 2; ++i) EXPECT_EQ(client->tokens[i], FakeAnswer(FakePrompt(50), i, 12));
  EXPECT_EQ(client->usage.recoveries, 1);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerTest, ALostGroupsRequestsGoToAnotherOne) {
  FakeCluster cluster;
  cluster.Up(0, kRoomy);
  const auto client = Client();
  cluster.Generate(FakePrompt(50), 12, client);
  cluster.Plan(0);
  cluster.Up(1, kRoomy);
  cluster.Lose(0);
  cluster.RunAll();
  EXPECT_EQ(client->tokens[0], FakeAnswer(FakePrompt(50), 0, 12));
  ExpectNothingLeft(cluster);
}

TEST(SchedulerTest, WhatNoLongerFitsAfterALossIsEnded) {
  FakeCluster cluster;
  cluster.Up(0, kRoomy);
  const auto client = Client(), small = Client();
  cluster.Generate(FakePrompt(500), 2, client);
  cluster.Generate(FakePrompt(5), 2, small);
  cluster.Lose(0);
  GroupCapacity capacity = kRoomy;
  capacity.cache_tokens = 128;
  cluster.Up(0, capacity);
  EXPECT_EQ(client->status->code(), absl::StatusCode::kResourceExhausted);
  cluster.RunAll();
  EXPECT_TRUE(small->status->ok());
  ExpectNothingLeft(cluster);
}

TEST(SchedulerTest, WhatBringsEveryGroupDownIsEnded) {
  FakeCluster cluster;
  const auto poison = Client(), fine = Client();
  cluster.Generate(FakePrompt(5), 2, poison);
  for (int loss = 0; loss < Scheduler::kLossesMax; ++loss) {
    EXPECT_FALSE(poison->status.has_value());
    cluster.Up(0, kRoomy);
    cluster.Plan(0);
    cluster.Lose(0);
  }
  ASSERT_TRUE(poison->status.has_value());
  EXPECT_EQ(poison->status->code(), absl::StatusCode::kInternal);
  cluster.Up(0, kRoomy);
  cluster.Generate(FakePrompt(5), 2, fine);
  ExpectNothingLeft(cluster);
  EXPECT_TRUE(fine->status->ok());
}

TEST(SchedulerTest, ARequestThatGetsFurtherSurvivesAnyNumberOfLosses) {
  FakeCluster cluster;
  const auto client = Client();
  GroupCapacity capacity = kRoomy;
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

TEST(SchedulerTest, WhatOnlyALostGroupCanHoldWaitsForIt) {
  FakeCluster cluster(/*max_queue=*/10, /*places=*/2);
  GroupCapacity small = kRoomy;
  small.cache_tokens = 128;
  cluster.Up(0, kRoomy);
  const auto client = Client();
  cluster.Generate(FakePrompt(500), 2, client);
  cluster.Plan(0);
  cluster.Up(1, small);
  cluster.Lose(0);
  cluster.RunAll();
  EXPECT_FALSE(client->status.has_value());
  cluster.Up(0, kRoomy);
  cluster.RunAll();
  ASSERT_TRUE(client->status.has_value());
  EXPECT_EQ(client->tokens[0], FakeAnswer(FakePrompt(500), 0, 2));
  ExpectNothingLeft(cluster);
}

TEST(SchedulerTest, CacheBytesCountASharedPromptOnceEvenAfterALoss) {
  FakeCluster cluster;
  cluster.scheduler.SetModel(1000, 10, 100);
  cluster.Up(0, kRoomy);
  const auto client = Client(2);
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
  cluster.Up(0, kRoomy);
  cluster.RunAll();
  ASSERT_TRUE(client->status.has_value());
  // 100 that are shared; the prompt's last token for each, and seven of the second's answer.
  EXPECT_EQ(client->usage.cache_bytes, 10 * (100 + 1 + 1 + 7));
  EXPECT_EQ(client->usage.transformer_cache_bytes, 100 * (100 + 1 + 1 + 7));
}

// Requests of every kind over several groups, with losses, cancels and clients that pause at random moments: whoever is
// not cancelled gets what it would have got alone.
TEST(SchedulerTest, NothingThatHappensChangesAnAnswer) {
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
    FakeCluster cluster(/*max_queue=*/100, /*places=*/2);
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
          Wanted wanted{FakePrompt(1 + below(150), below(100)), {}, 1 + below(12), 0, false, Client(1 + below(3))};
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
          Wanted wanted{FakePrompt(1 + below(60), below(100)), FakePrompt(1 + below(20)), 0, 0, false, Client()};
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

TEST(SchedulerTest, AnAnswerThatDoesNotFitTheStepIsAnError) {
  const auto apply = [](const std::function<void(cluster::v1::StepDone*)>& edit) {
    FakeCluster cluster;
    cluster.Up(0, kRoomy);
    cluster.Generate(FakePrompt(5), 2, Client());
    cluster.Plan(0);
    cluster::v1::StepDone done = cluster.in_flight[0].front();
    edit(&done);
    return std::string(cluster.scheduler.Apply(0, done, 1).message());
  };
  EXPECT_THAT(apply([](auto* done) { done->set_id(9); }), HasSubstr("step 9 was answered out of order"));
  EXPECT_THAT(apply([](auto* done) { done->clear_results(); }), HasSubstr("no result for sequence"));
  EXPECT_THAT(apply([](auto* done) { done->mutable_results(0)->set_sequence(99); }), HasSubstr("no result for"));
  EXPECT_THAT(apply([](auto* done) { done->add_results(); }), HasSubstr("1 results too many"));
  EXPECT_THAT(apply([](auto* done) { done->mutable_results(0)->add_logprobs(1); }), HasSubstr("not the token"));
  EXPECT_THAT(apply([](auto* done) { done->mutable_results(0)->set_token(1U << 31); }), HasSubstr("not the token"));
}

TEST(SchedulerTest, ASequenceThatCannotGoOnEndsItsRequestAlone) {
  FakeCluster cluster;
  cluster.Up(0, kRoomy);
  const auto broken = Client(), fine = Client();
  cluster.Generate(FakePrompt(5), 2, broken);
  cluster.Generate(FakePrompt(6), 2, fine);
  cluster.Plan(0);
  cluster.in_flight[0].front().mutable_results(0)->set_error("logits are not finite");
  cluster.Answer(0);
  cluster.RunAll();
  EXPECT_EQ(broken->status->code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(fine->status->ok());
  ExpectNothingLeft(cluster);
}

}  // namespace
}  // namespace goldfinch
