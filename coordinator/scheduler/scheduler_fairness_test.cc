// How the scheduler shares slots, memory and Steps between clients.
#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/stage_memory.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/scheduler_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;
using Verdict = RequestSink::Verdict;

// A request of the client of this name.
std::function<void(Request*)> Of(const std::string& name, std::function<void(Request*)> edit = {}) {
  return [client = std::make_shared<Client>(Client{name, {}}), edit](Request* request) {
    request->client = client;
    if (edit) edit(request);
  };
}

std::shared_ptr<FakeClient> Sink(int samples = 1) { return std::make_shared<FakeClient>(samples); }

std::function<void(Request*)> Samples(int samples) {
  return [samples](Request* request) { request->generate->samples = samples; };
}

GroupCapacity Slots(int slots) {
  GroupCapacity capacity = Roomy();
  capacity.max_sequences = slots;
  capacity.max_step_tokens = 256;
  return capacity;
}

// A cluster whose Steps take little of the times of the scheduler's rules.
struct QuickCluster : FakeCluster {
  explicit QuickCluster(const GroupCapacity& capacity) {
    step_seconds = 0.02;
    Up(0, capacity);
  }
};

// Runs until the request has a token, and returns how long that took.
double SecondsToFirstToken(FakeCluster& cluster, const FakeClient& sink) {
  const double start = cluster.now;
  while (sink.tokens[0].empty() && cluster.now < start + 1000) cluster.RunUntil(cluster.now + cluster.step_seconds);
  return cluster.now - start;
}

// ---- A client that has everything ----

TEST(SchedulerFairnessTest, AShortRequestGetsASlotOfAClientThatHoldsAllOfThem) {
  QuickCluster cluster(Slots(64));
  std::vector<std::shared_ptr<FakeClient>> streams;
  for (int i = 0; i < 64; ++i) cluster.Generate(FakePrompt(20, i), 1000, streams.emplace_back(Sink()), Of("greedy"));
  for (int i = 0; i < 64; ++i) cluster.Generate(FakePrompt(20, i), 1000, streams.emplace_back(Sink()), Of("greedy"));
  cluster.RunUntil(2);
  EXPECT_EQ(cluster.scheduler.Load(0).sequences, 64);
  for (int i = 0; i < 20; ++i) {
    const auto brief = Sink();
    cluster.Generate(FakePrompt(9, i), 3, brief, Of("modest"));
    EXPECT_LE(SecondsToFirstToken(cluster, *brief), 2 * cluster.step_seconds);
    cluster.RunUntil(cluster.now + 0.2);
    EXPECT_TRUE(brief->status.has_value());
  }
  cluster.RunAll();
  for (int i = 0; i < 128; ++i) EXPECT_EQ(streams[i]->tokens[0], FakeAnswer(FakePrompt(20, i % 64), 0, 1000)) << i;
  const SchedulerEvents events = cluster.scheduler.TakeEvents();
  EXPECT_GE(events.parkings, 1);
  EXPECT_LE(events.parkings, 20);
  EXPECT_EQ(events.prompt_tokens, 128 * 20 + 20 * 9);
  EXPECT_EQ(events.completion_tokens, 128 * 1000 + 20 * 3);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerFairnessTest, SamplesGiveUpTheirSlotsOneByOne) {
  QuickCluster cluster(Slots(64));
  const auto samples = Sink(64);
  cluster.Generate(FakePrompt(100), 300, samples, Of("greedy", Samples(64)));
  cluster.RunUntil(2);
  EXPECT_EQ(cluster.scheduler.Load(0).sequences, 56) << "the others are kept for short requests";
  const auto lengthy = Sink(2);
  cluster.Generate(FakePrompt(9), 3000, lengthy, Of("modest", Samples(2)));
  EXPECT_LE(SecondsToFirstToken(cluster, *lengthy), 3 * cluster.step_seconds);
  EXPECT_EQ(cluster.scheduler.TakeEvents().parkings, 2) << "the second one has its turn, too";
  cluster.RunAll();
  for (int i = 0; i < 64; ++i) EXPECT_EQ(samples->tokens[i], FakeAnswer(FakePrompt(100), i, 300)) << i;
  EXPECT_EQ(samples->usage.parkings, 2);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerFairnessTest, WhatWasParkedGoesOnBeforeWhatIsBehindIt) {
  QuickCluster cluster(Slots(4));
  std::vector<std::shared_ptr<FakeClient>> streams;
  for (int i = 0; i < 8; ++i) cluster.Generate(FakePrompt(8, i), 3000, streams.emplace_back(Sink()), Of("greedy"));
  cluster.RunUntil(2);
  const auto brief = Sink();
  cluster.Generate(FakePrompt(9), 3, brief, Of("modest"));
  cluster.RunUntil(2.5);
  EXPECT_EQ(cluster.scheduler.Load(0).sequences, 3) << "its slot is left to its next request";
  cluster.RunUntil(4);
  EXPECT_EQ(cluster.scheduler.Load(0).sequences, 4);
  for (int i = 0; i < 4; ++i) EXPECT_GT(streams[i]->tokens[0].size(), 100U);
  for (int i = 4; i < 8; ++i) EXPECT_TRUE(streams[i]->tokens[0].empty());
  ExpectNothingLeft(cluster);
}

TEST(SchedulerFairnessTest, SlotsAreSharedEquallyAmongThoseWhoWantThem) {
  QuickCluster cluster(Slots(12));
  std::map<std::string, std::vector<std::shared_ptr<FakeClient>>> sinks;
  for (int i = 0; i < 12; ++i) cluster.Generate(FakePrompt(8, i), 2000, sinks["a"].emplace_back(Sink()), Of("a"));
  cluster.RunUntil(1);
  for (int i = 0; i < 12; ++i) cluster.Generate(FakePrompt(8, i), 2000, sinks["b"].emplace_back(Sink()), Of("b"));
  cluster.Generate(FakePrompt(8), 2000, sinks["c"].emplace_back(Sink(2)), Of("c", Samples(2)));
  cluster.RunUntil(4);
  const auto grows = [&](const std::string& name, double seconds) {
    std::map<const FakeClient*, size_t> before;
    const auto count = [](const FakeClient& sink) {
      size_t tokens = 0;
      for (const auto& sample : sink.tokens) tokens += sample.size();
      return tokens;
    };
    size_t grown = 0;
    for (const auto& sink : sinks[name]) before[sink.get()] = count(*sink);
    cluster.RunUntil(cluster.now + seconds);
    for (const auto& sink : sinks[name]) grown += count(*sink) - before[sink.get()];
    return static_cast<double>(grown) / (seconds / cluster.step_seconds);
  };
  // Two for "c", which wants no more, and five for each of the others.
  EXPECT_NEAR(grows("a", 2), 5, 0.3);
  EXPECT_NEAR(grows("b", 2), 5, 0.3);
  EXPECT_NEAR(grows("c", 2), 2, 0.3);
}

TEST(SchedulerFairnessTest, ClientsTakeTurnsIfThereAreMoreOfThemThanSlots) {
  QuickCluster cluster(Slots(1));
  const auto a = Sink(), b = Sink(), c = Sink();
  cluster.Generate(FakePrompt(30, 1), 1500, a, Of("a"));
  cluster.Generate(FakePrompt(30, 2), 1500, b, Of("b"));
  cluster.Generate(FakePrompt(30, 3), 1500, c, Of("c"));
  cluster.RunUntil(4);
  EXPECT_TRUE(b->tokens[0].empty());
  cluster.RunUntil(6);
  EXPECT_FALSE(b->tokens[0].empty());
  cluster.RunUntil(33);
  for (const auto& sink : {a, b, c}) EXPECT_NEAR(static_cast<double>(sink->tokens[0].size()), 550, 250);
  cluster.RunAll();
  EXPECT_EQ(a->tokens[0], FakeAnswer(FakePrompt(30, 1), 0, 1500));
  EXPECT_EQ(b->tokens[0], FakeAnswer(FakePrompt(30, 2), 0, 1500));
  EXPECT_EQ(c->tokens[0], FakeAnswer(FakePrompt(30, 3), 0, 1500));
  EXPECT_LE(cluster.scheduler.TakeEvents().parkings, 3 * 1500 * 0.02 / Scheduler::kTurnSeconds + 3);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerFairnessTest, AtLeastHalfOfTheTimeOfASlotIsUseful) {
  // Reading 4000 tokens takes 10 s, twice a turn.
  GroupCapacity capacity = Slots(1);
  capacity.max_step_tokens = 8;
  QuickCluster cluster(capacity);
  const auto large = Sink(), other = Sink();
  cluster.Generate(FakePrompt(4000), 2000, large, Of("a"));
  cluster.RunUntil(15);
  cluster.Generate(FakePrompt(9), 20000, other, Of("b"));
  cluster.RunAll();
  EXPECT_EQ(large->tokens[0], FakeAnswer(FakePrompt(4000), 0, 2000));
  const SchedulerEvents events = cluster.scheduler.TakeEvents();
  EXPECT_GE(events.parkings, 2);
  EXPECT_LE(events.reread_tokens, 8 * (4000 + 2000 + 20000)) << "a Step of 8 takes as long as one of 1";
  ExpectNothingLeft(cluster);
}

TEST(SchedulerFairnessTest, AFullServerTakesANewClientAfterALittleService) {
  QuickCluster cluster(Slots(4));
  std::vector<std::shared_ptr<FakeClient>> streams;
  for (int i = 0; i < 4; ++i) cluster.Generate(FakePrompt(8, i), 500, streams.emplace_back(Sink()), Of("greedy"));
  cluster.RunUntil(0.1);
  const auto brief = Sink();
  cluster.Generate(FakePrompt(9), 3, brief, Of("modest"));
  const double seconds = SecondsToFirstToken(cluster, *brief);
  EXPECT_LE(seconds, Scheduler::kServiceSeconds + 0.1);
}

TEST(SchedulerFairnessTest, AHigherPriorityIsNotParkedForALowerOne) {
  QuickCluster cluster(Slots(2));
  const auto high = Sink(2), low = Sink();
  cluster.Generate(FakePrompt(8), 500, high, Of("a", [](Request* request) {
                     request->generate->samples = 2;
                     request->priority = 1;
                   }));
  cluster.Generate(FakePrompt(8), 5, low, Of("b"));
  cluster.RunUntil(9);
  EXPECT_TRUE(low->tokens[0].empty());
  cluster.RunAll();
  EXPECT_EQ(high->usage.parkings, 0);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerFairnessTest, ScoresAreParkedExactly) {
  GroupCapacity capacity = Slots(3);
  capacity.max_step_tokens = 4;
  for (const bool score_prompt : {false, true}) {
    QuickCluster cluster(capacity);
    const auto scores = Sink();
    const std::vector<int32_t> prompt = FakePrompt(400);
    const std::vector<std::vector<int32_t>> continuations = {FakePrompt(300, 3), FakePrompt(200, 7), {4, 5}};
    Request request;
    request.prompt = prompt;
    request.client = std::make_shared<Client>(Client{"greedy", {}});
    request.score.emplace();
    request.score->continuations = continuations;
    request.score->score_prompt = score_prompt;
    cluster.scheduler.Submit(++cluster.last_number, request, scores, 0);
    for (int i = 0; i < 30; ++i) {
      cluster.Generate(FakePrompt(3, i), 2, Sink(), Of("modest"));
      cluster.Generate(FakePrompt(3, i), 2, Sink(), Of("modest"));
      cluster.RunUntil(cluster.now + 0.7);
    }
    cluster.RunAll();
    ASSERT_TRUE(scores->status.has_value());
    EXPECT_GT(scores->usage.parkings, 0);
    for (int i = 0; i < 3; ++i) ExpectScores(*scores, i, prompt, continuations[i]);
    if (score_prompt) ExpectScores(*scores, -1, {prompt[0]}, {prompt.begin() + 1, prompt.end()});
    EXPECT_EQ(scores->usage.completion_tokens, 502);
    ExpectNothingLeft(cluster);
  }
}

// ---- Clients that do not read ----

TEST(SchedulerFairnessTest, APausedRequestGivesUpItsSlotToWhateverWaits) {
  for (const char* other : {"slow", "other"}) {
    QuickCluster cluster(Slots(1));
    const auto slow = Sink(), brief = Sink();
    slow->verdict = [&](int, int32_t) {
      return slow->tokens[0].size() % 5 == 0 ? Verdict::kPause : Verdict::kContinue;
    };
    const uint64_t number = cluster.Generate(FakePrompt(20), 12, slow, Of("slow"));
    cluster.RunUntil(20);
    EXPECT_EQ(cluster.scheduler.running(), 1) << "nobody wants its slot";
    cluster.Generate(FakePrompt(8), 3, brief, Of(other));
    EXPECT_LE(SecondsToFirstToken(cluster, *brief), 2 * cluster.step_seconds);
    cluster.RunUntil(22);
    EXPECT_TRUE(brief->status.has_value());
    EXPECT_EQ(cluster.scheduler.running(), 0);
    EXPECT_EQ(cluster.scheduler.waiting(), 1);
    cluster.scheduler.Resume(number);
    cluster.RunUntil(23);
    EXPECT_EQ(slow->tokens[0].size(), 10U);
    cluster.scheduler.Resume(number);
    cluster.RunAll();
    EXPECT_EQ(slow->tokens[0], FakeAnswer(FakePrompt(20), 0, 12));
    EXPECT_EQ(slow->usage.parkings, 1);
    ExpectNothingLeft(cluster);
  }
}

TEST(SchedulerFairnessTest, ARequestThatIsPausedForAMomentKeepsItsSlot) {
  QuickCluster cluster(Slots(1));
  const auto slow = Sink(), brief = Sink();
  slow->verdict = [&](int, int32_t) { return Verdict::kPause; };
  cluster.Generate(FakePrompt(20), 12, slow, Of("slow"));
  cluster.Generate(FakePrompt(8), 3, brief, Of("other"));
  cluster.RunUntil(0.9);
  EXPECT_TRUE(brief->tokens[0].empty());
  cluster.RunUntil(1.2);
  EXPECT_FALSE(brief->tokens[0].empty());
}

// ---- Memory ----

TEST(SchedulerFairnessTest, ALargeRequestIsNotStarvedBySmallOnesOfOthers) {
  GroupCapacity capacity = Slots(8);
  capacity.cache_tokens = 8 * kCachePageTokens;
  QuickCluster cluster(capacity);
  const auto large = Sink();
  std::vector<std::shared_ptr<FakeClient>> small;
  const auto keep_busy = [&] {
    while (cluster.scheduler.waiting() < 3) {
      const auto tokens = static_cast<int64_t>(15 + 7 * small.size() % 19);  // they do not all end at once
      cluster.Generate(FakePrompt(8), tokens, small.emplace_back(Sink()), Of("small"));
    }
  };
  keep_busy();
  cluster.Generate(FakePrompt(7 * kCachePageTokens), 5, large, Of("large"));
  while (large->tokens[0].empty() && cluster.now < 20) {
    keep_busy();
    cluster.RunUntil(cluster.now + cluster.step_seconds);
  }
  EXPECT_LE(cluster.now, Scheduler::kTurnSeconds + 1);
  const size_t ended = std::count_if(small.begin(), small.end(), [](const auto& one) { return one->status; });
  EXPECT_GT(ended, 8 * 5U) << "they run while it waits for its turn";
  ExpectNothingLeft(cluster);
}

TEST(SchedulerFairnessTest, ARequestThatOnlyItsOwnClientKeepsOutBlocksNobody) {
  GroupCapacity capacity = Slots(8);
  capacity.cache_tokens = 8 * kCachePageTokens;
  QuickCluster cluster(capacity);
  cluster.Generate(FakePrompt(8), 120, Sink(), Of("large", [](Request* request) { request->priority = 3; }));
  cluster.Generate(FakePrompt(8), 2000, Sink(), Of("large"));
  cluster.Generate(FakePrompt(7 * kCachePageTokens), 5, Sink(), Of("large"));
  const auto first = Sink(2);
  cluster.Generate(FakePrompt(8), 2000, first, Of("small", Samples(2)));
  cluster.RunUntil(12);
  const auto second = Sink();
  cluster.Generate(FakePrompt(8), 2, second, Of("small"));
  EXPECT_LE(SecondsToFirstToken(cluster, *second), 1);
}

// ---- Steps ----

TEST(SchedulerFairnessTest, ClientsSharePreFillEqually) {
  FakeCluster cluster;
  cluster.Up(0, Roomy());
  for (int i = 0; i < 10; ++i) cluster.Generate(FakePrompt(500, i), 1, Sink(), Of("many"));
  cluster.Plan(0);
  cluster.Answer(0);
  cluster.Answer(0);
  cluster.Generate(FakePrompt(500), 1, Sink(), Of("one"));
  StepPlan plan;
  ASSERT_TRUE(cluster.scheduler.NextStep(0, cluster.now, &plan));
  int64_t one = 0;
  for (const StepPlan::Chunk& chunk : plan.chunks) one += chunk.sequence == 11 ? chunk.tokens : 0;
  EXPECT_EQ(one, 8) << "half of 16";
}

TEST(SchedulerFairnessTest, ClientsTakeTurnsInDecoding) {
  FakeCluster cluster;
  GroupCapacity capacity = Roomy();
  capacity.max_logit_rows = 4;
  cluster.Up(0, capacity);
  std::vector<std::shared_ptr<FakeClient>> many;
  for (int i = 0; i < 16; ++i) cluster.Generate(FakePrompt(2, i), 1000, many.emplace_back(Sink()), Of("many"));
  const auto one = Sink();
  cluster.Generate(FakePrompt(2), 1000, one, Of("one"));
  cluster.RunUntil(60);
  const size_t before = one->tokens[0].size();
  cluster.RunUntil(100);
  EXPECT_GE(one->tokens[0].size() - before, 36U) << "in almost every Step";
}

TEST(SchedulerFairnessTest, DecodingLeavesAQuarterOfTheBudgetToPrompts) {
  FakeCluster cluster;
  GroupCapacity capacity = Roomy();
  cluster.Up(0, capacity);
  for (int i = 0; i < 16; ++i) cluster.Generate(FakePrompt(1, i), 1000, Sink());
  cluster.RunUntil(20);
  const auto prompt = Sink();
  cluster.Generate(FakePrompt(40), 1, prompt);
  EXPECT_LE(SecondsToFirstToken(cluster, *prompt), 12);
}

// ---- Counts ----

TEST(SchedulerFairnessTest, APromptIsCountedOnceWhateverTheNumberOfSamples) {
  for (const int samples : {1, 2, 8}) {
    FakeCluster cluster;
    cluster.Up(0, Roomy());
    const auto sink = Sink(samples);
    cluster.Generate(FakePrompt(50), 10, sink, Samples(samples));
    cluster.Plan(0);
    cluster.Answer(0);
    cluster.Lose(0);
    cluster.Up(0, Roomy());
    cluster.RunAll();
    const SchedulerEvents events = cluster.scheduler.TakeEvents();
    EXPECT_EQ(events.prompt_tokens, sink->usage.prompt_tokens);
    EXPECT_EQ(events.completion_tokens, sink->usage.completion_tokens);
    EXPECT_EQ(events.reread_tokens, 16 + samples - 1);
  }
}

TEST(SchedulerFairnessTest, ScoresAreCountedAsTheirUsageSays) {
  FakeCluster cluster;
  cluster.Up(0, Roomy());
  const auto prompt_alone = Sink(), continuations = Sink();
  cluster.Score(FakePrompt(30), {}, true, prompt_alone);
  cluster.Score(FakePrompt(40), {{1, 2, 3}, {4}}, true, continuations);
  cluster.RunAll();
  const SchedulerEvents events = cluster.scheduler.TakeEvents();
  EXPECT_EQ(events.prompt_tokens, 30 + 40);
  EXPECT_EQ(continuations->usage.completion_tokens, 4);
  EXPECT_EQ(events.completion_tokens, 4);
  EXPECT_EQ(events.reread_tokens, 1) << "the prompt's last token, for the second continuation";
}

}  // namespace
}  // namespace goldfinch
