#include "coordinator/scheduler/scheduler.h"

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/stage_memory.h"
#include "coordinator/scheduler/scheduler_test_util.h"
#include "coordinator/scheduler/step.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Tokens of each chunk of a Step, by sequence in the order of the Step.
std::vector<int64_t> ChunkTokens(const StepPlan& plan) {
  std::vector<int64_t> tokens;
  for (const StepPlan::Chunk& chunk : plan.chunks) tokens.push_back(chunk.tokens);
  return tokens;
}

// ---- One request ----

TEST(SchedulerTest, ReadsThePromptInChunksThenDecodes) {
  FakeCluster cluster;
  cluster.Up(0, Roomy());
  const auto client = NewClient();
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
  cluster.Generate(FakePrompt(160), 1, NewClient());
  EXPECT_EQ(cluster.Plan(0), 4) << "one for each stage, one on its way";
  EXPECT_EQ(cluster.scheduler.Load(0).steps_in_flight, 4);
  cluster.Answer(0);
  EXPECT_EQ(cluster.Plan(0), 4);
}

TEST(SchedulerTest, MaxTokensZeroOnlyReadsThePrompt) {
  FakeCluster cluster;
  cluster.Up(0, Roomy());
  const auto client = NewClient();
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
  cluster.Up(0, Roomy());
  const std::vector<int32_t> answer = FakeAnswer(FakePrompt(8), 0, 6);
  const auto by_id = NewClient(), by_verdict = NewClient();
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
  Scheduler scheduler({1});
  scheduler.GenerationReady(0, Roomy(), 0);
  const auto client = NewClient();
  Request request;
  request.prompt = {1};
  request.generate.emplace();
  scheduler.Submit(1, request, client, 0);
  StepPlan plan;
  ASSERT_TRUE(scheduler.NextStep(0, 0, &plan));
  StepResult result;
  result.id = plan.id;
  result.chunks.emplace_back().sequence = plan.chunks[0].sequence;
  ASSERT_TRUE(scheduler.Apply(0, &result, 1).ok());
  EXPECT_EQ(client->finishes[0], Finish::kEndOfText);
}

// ---- What a Step is made of ----

TEST(SchedulerTest, DecodingGoesFirstAndPreFillFillsTheRest) {
  FakeCluster cluster;
  cluster.Up(0, Roomy());
  cluster.Generate(FakePrompt(4), 10, NewClient());
  cluster.Generate(FakePrompt(4), 10, NewClient());
  cluster.Plan(0);
  cluster.Answer(0);
  cluster.Generate(FakePrompt(100), 1, NewClient());
  cluster.Plan(0);
  EXPECT_THAT(ChunkTokens(cluster.plans[0].front()), ElementsAre(1, 1, 14));
}

TEST(SchedulerTest, DecodingSequencesAreDealtOverTheStages) {
  FakeCluster cluster;
  cluster.Up(0, Roomy(3));
  for (int i = 0; i < 6; ++i) cluster.Generate(FakePrompt(2, i), 50, NewClient());
  cluster.Plan(0);
  while (cluster.scheduler.Load(0).steps_in_flight > 0) cluster.Answer(0);
  EXPECT_EQ(cluster.Plan(0), 3);
  for (const StepPlan& plan : cluster.plans[0]) EXPECT_THAT(ChunkTokens(plan), ElementsAre(1, 1));
}

TEST(SchedulerTest, AShortPromptOvertakesALongOne) {
  FakeCluster cluster;
  cluster.Up(0, Roomy());
  const auto lengthy = NewClient(), brief = NewClient();
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
  cluster.Up(0, Roomy());
  const auto lengthy = NewClient();
  cluster.Generate(FakePrompt(800), 1, lengthy);
  // Short ones without end.
  int steps = 0;
  for (; !lengthy->status.has_value() && steps < 1000; ++steps) {
    for (int i = 0; i < 2; ++i) cluster.Generate(FakePrompt(8, steps), 0, NewClient());
    cluster.Plan(0);
    cluster.Answer(0);
  }
  EXPECT_LE(steps, 800 / 8 + 3);
  EXPECT_GE(steps, 800 / 16);
}

TEST(SchedulerTest, HigherPriorityGoesFirst) {
  FakeCluster cluster;
  cluster.Up(0, Roomy());
  const auto low = NewClient(), high = NewClient();
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
  GroupCapacity capacity = Roomy();
  capacity.max_sequences = 2;
  cluster.Up(0, capacity);
  std::vector<std::shared_ptr<FakeClient>> clients;
  for (int i = 0; i < 5; ++i) cluster.Generate(FakePrompt(4, i), 3, clients.emplace_back(NewClient()));
  EXPECT_EQ(cluster.scheduler.running(), 2);
  EXPECT_EQ(cluster.scheduler.waiting(), 3);
  cluster.RunAll();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(clients[i]->tokens[0], FakeAnswer(FakePrompt(4, i), 0, 3));
  EXPECT_GT(clients[4]->usage.queue_seconds, clients[2]->usage.queue_seconds);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerTest, RequestsWaitForCachePagesOfTheirWorstCase) {
  FakeCluster cluster;
  GroupCapacity capacity = Roomy();
  capacity.cache_tokens = 4 * kCachePageTokens;
  cluster.Up(0, capacity);
  // 10 + 129 - 1 positions: three pages.
  cluster.Generate(FakePrompt(10), 129, NewClient());
  EXPECT_EQ(cluster.scheduler.Load(0).cache_tokens_reserved, 3 * kCachePageTokens);
  const auto large = NewClient(), small = NewClient();
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
  const auto last = NewClient();
  cluster.Generate(FakePrompt(4), 1, NewClient());
  cluster.Generate(FakePrompt(4), 1, NewClient());
  cluster.Generate(FakePrompt(4), 1, last);
  ASSERT_TRUE(last->status.has_value());
  EXPECT_EQ(last->status->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(last->status->message()), HasSubstr("3 requests of "));
}

TEST(SchedulerTest, WhatCanNeverFitIsRefusedAtOnce) {
  FakeCluster cluster;
  GroupCapacity capacity = Roomy();
  capacity.cache_tokens = 128;
  capacity.max_sequences = 2;
  cluster.Up(0, capacity);
  const auto too_long = NewClient();
  cluster.Generate(FakePrompt(100), 100, too_long);
  EXPECT_EQ(too_long->status->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(
      std::string(too_long->status->message()),
      HasSubstr(
          "may need 199 tokens, 256 with the rest of their pages; max_model_len is 65536 and the caches hold 128"));
}

TEST(SchedulerTest, SamplesThatFindNoSlotComeAfterTheOthers) {
  FakeCluster cluster;
  GroupCapacity capacity = Roomy();
  capacity.max_sequences = 2;
  cluster.Up(0, capacity);
  const auto many = NewClient(5);
  cluster.Generate(FakePrompt(10), 3, many, [](Request* request) { request->generate->samples = 5; });
  cluster.RunUntil(3);
  // Also when a group has become smaller while they run.
  cluster.Lose(0);
  capacity.max_sequences = 1;
  cluster.Up(0, capacity);
  ExpectNothingLeft(cluster);
  EXPECT_TRUE(many->status->ok()) << *many->status;
  for (int i = 0; i < 5; ++i) EXPECT_EQ(many->tokens[i], FakeAnswer(FakePrompt(10), i, 3)) << i;
}

TEST(SchedulerTest, GroupsShareTheQueue) {
  FakeCluster cluster;
  cluster.Up(0, Roomy());
  cluster.Up(1, Roomy());
  for (int i = 0; i < 4; ++i) cluster.Generate(FakePrompt(50, i), 2, NewClient());
  EXPECT_EQ(cluster.scheduler.Load(0).sequences, 2);
  EXPECT_EQ(cluster.scheduler.Load(1).sequences, 2);
  ExpectNothingLeft(cluster);
}

// ---- Samples and scores ----

TEST(SchedulerTest, SamplesShareThePromptsWorkAndDrawAsRequestsOfTheirOwn) {
  FakeCluster cluster;
  cluster.Up(0, Roomy());
  const auto client = NewClient(3);
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
  cluster.Up(0, Roomy());
  const auto client = NewClient(2);
  cluster.Generate({5}, 3, client, [](Request* request) { request->generate->samples = 2; });
  cluster.RunAll();
  for (int i = 0; i < 2; ++i) EXPECT_EQ(client->tokens[i], FakeAnswer({5}, i, 3));
  ExpectNothingLeft(cluster);
}

TEST(SchedulerTest, ScoresPromptAndContinuations) {
  for (const bool score_prompt : {false, true}) {
    FakeCluster cluster;
    GroupCapacity capacity = Roomy();
    capacity.max_logit_rows = 5;
    cluster.Up(0, capacity);
    const std::vector<int32_t> prompt = FakePrompt(43);
    const std::vector<std::vector<int32_t>> continuations = {{9}, FakePrompt(20, 50), {3, 4}};
    const auto client = NewClient();
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
  cluster.Up(0, Roomy());
  const auto client = NewClient(), one = NewClient();
  const std::vector<int32_t> prompt = FakePrompt(30);
  cluster.Score(prompt, {}, true, client);
  cluster.Score({4}, {}, true, one);
  EXPECT_TRUE(one->status.has_value()) << "there is nothing before its only token";
  cluster.RunAll();
  ExpectScores(*client, -1, {prompt[0]}, {prompt.begin() + 1, prompt.end()});
  ExpectNothingLeft(cluster);
}

TEST(SchedulerTest, RawLogitsAreDeliveredWithTheirTokens) {
  struct LogitsClient : FakeClient {
    Verdict OnScores(int continuation, int64_t first, absl::Span<const OutputToken> scored,
                     std::string logits) override {
      all[continuation] += logits;
      return FakeClient::OnScores(continuation, first, scored, "");
    }
    std::map<int, std::string> all;  // by continuation
  };
  for (const bool score_prompt : {false, true}) {
    FakeCluster cluster;
    cluster.scheduler.SetModel(/*vocab_size=*/2, 1, 1);
    cluster.Up(0, Roomy());
    const auto client = std::make_shared<LogitsClient>();
    Request request;
    request.prompt = FakePrompt(3);
    request.score.emplace();
    request.score->continuations = {{5, 6}};
    request.score->score_prompt = score_prompt;
    request.score->logits = true;
    cluster.scheduler.Submit(1, std::move(request), client, 0);
    cluster.Plan(0);
    // One row of 8 bytes for each position: "0...", "1...", and so on.
    StepResult::Chunk& answer = cluster.in_flight[0].front().chunks[0];
    for (size_t row = 0; row < answer.logprobs.size(); ++row) {
      answer.logits += std::string(8, static_cast<char>('0' + row + 4 - answer.logprobs.size()));
    }
    cluster.Answer(0);
    EXPECT_TRUE(client->status->ok());
    EXPECT_EQ(client->all[-1], score_prompt ? "0000000011111111" : "");
    EXPECT_EQ(client->all[0], "2222222233333333");
    ExpectNothingLeft(cluster);
  }
}

// ---- Clients that leave or do not read ----

TEST(SchedulerTest, ACancelledRequestIsClosedByTheNextStepAndItsResultsAreDropped) {
  FakeCluster cluster;
  cluster.Up(0, Roomy());
  const auto client = NewClient();
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
  const auto client = NewClient();
  const uint64_t number = cluster.Generate(FakePrompt(8), 100, client);
  cluster.scheduler.Cancel(number, absl::CancelledError("gone"), cluster.now);
  cluster.scheduler.Cancel(number, absl::CancelledError("again"), cluster.now);
  EXPECT_EQ(client->status->message(), "gone");
  cluster.Up(0, Roomy());
  ExpectNothingLeft(cluster);
}

TEST(SchedulerTest, APausedRequestKeepsItsMemoryAndComputesNothing) {
  FakeCluster cluster;
  cluster.Up(0, Roomy());
  const auto slow = NewClient(), other = NewClient();
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

// ---- Answers with errors ----

TEST(SchedulerTest, AnAnswerThatDoesNotFitTheStepIsAnError) {
  const auto apply = [](const std::function<void(StepResult*)>& edit) {
    FakeCluster cluster;
    cluster.Up(0, Roomy());
    cluster.Generate(FakePrompt(5), 2, NewClient());
    cluster.Plan(0);
    StepResult result = cluster.in_flight[0].front();
    edit(&result);
    return std::string(cluster.scheduler.Apply(0, &result, 1).message());
  };
  EXPECT_THAT(apply([](StepResult* result) { result->id = 9; }), HasSubstr("step 9 was answered out of order"));
  EXPECT_THAT(apply([](StepResult* result) { result->chunks.clear(); }), HasSubstr("no result for sequence"));
  EXPECT_THAT(apply([](StepResult* result) { result->chunks[0].sequence = 99; }), HasSubstr("no result for"));
  EXPECT_THAT(apply([](StepResult* result) { result->chunks.emplace_back(); }), HasSubstr("1 unexpected results"));
  EXPECT_THAT(apply([](StepResult* result) { result->chunks[0].logprobs.push_back(1); }), HasSubstr("has 1 logprobs"));
  EXPECT_THAT(apply([](StepResult* result) { result->chunks[0].top.resize(2); }), HasSubstr("2 lists of top logprobs"));
  EXPECT_THAT(apply([](StepResult* result) { result->chunks[0].token = 1U << 31; }),
              HasSubstr("token 2147483648 is not below vocab_size"));
}

TEST(SchedulerTest, ASequenceThatCannotGoOnEndsItsRequestAlone) {
  FakeCluster cluster;
  cluster.Up(0, Roomy());
  const auto broken = NewClient(), fine = NewClient();
  cluster.Generate(FakePrompt(5), 2, broken);
  cluster.Generate(FakePrompt(6), 2, fine);
  cluster.Plan(0);
  cluster.in_flight[0].front().chunks[0].error = "logits are not finite";
  cluster.Answer(0);
  cluster.RunAll();
  EXPECT_EQ(broken->status->code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(fine->status->ok());
  ExpectNothingLeft(cluster);
}

}  // namespace
}  // namespace goldfinch
