// Sequences begin with what is kept of their texts, and get the same tokens.
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "base/cache_page.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/scheduler_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(SchedulerKeptTest, ASecondQuestionReadsOnlyWhatIsNew) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.Up(0, Roomy());
  const auto first = NewClient(), second = NewClient();
  cluster.Generate(Prompt(50), 3, first);
  cluster.RunAll();
  EXPECT_EQ(first->usage.cached_tokens, 0);
  const int64_t before = cluster.groups[0]->tokens_run();
  cluster.Generate(Prompt(50, {7, 8, 9}), 3, second);
  cluster.RunAll();
  EXPECT_EQ(second->tokens[0], FakeAnswer(Prompt(50, {7, 8, 9}), 0, 3));
  EXPECT_EQ(cluster.groups[0]->tokens_run() - before, 3 + 2) << "the question, and two of its answer's tokens";
  EXPECT_EQ(second->usage.cached_tokens, 50);
  EXPECT_EQ(second->usage.prompt_tokens, 53);
  const SchedulerEvents events = cluster.scheduler.TakeEvents();
  EXPECT_EQ(events.prompt_tokens, 50 + 53);
  EXPECT_EQ(events.cached_tokens, 50);
  EXPECT_EQ(events.reread_tokens, 0);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, AChatBeginsWithItsLastTurn) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.keeper->save_at = [](int64_t tokens) { return std::vector<int64_t>{tokens, tokens + 4}; };
  cluster.Up(0, Roomy());
  const auto turn = NewClient();
  cluster.Generate(Prompt(20), 5, turn);
  cluster.RunAll();
  std::vector<int32_t> chat = Prompt(20, turn->tokens[0]);
  chat.push_back(3);
  const auto next = NewClient();
  cluster.Generate(chat, 2, next);
  cluster.RunAll();
  EXPECT_EQ(next->tokens[0], FakeAnswer(chat, 0, 2));
  EXPECT_EQ(next->usage.cached_tokens, 24) << "the prompt, and the four tokens of the answer that were run";
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, EachSampleOfAnAnswerIsSaved) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.keeper->save_at = [](int64_t tokens) { return std::vector<int64_t>{tokens, tokens + 4}; };
  cluster.Up(0, Roomy());
  const auto turn = NewClient(3);
  cluster.Generate(Prompt(20), 8, turn, [](Request* request) { request->generate->samples = 3; });
  cluster.RunAll();
  for (int i = 0; i < 3; ++i) {
    std::vector<int32_t> chat = Prompt(20, turn->tokens[i]);
    chat.push_back(3);
    const auto next = NewClient();
    cluster.Generate(chat, 2, next);
    cluster.RunAll();
    EXPECT_EQ(next->tokens[0], FakeAnswer(chat, 0, 2));
    EXPECT_EQ(next->usage.cached_tokens, 24);
  }
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, APromptThatIsKeptAsAWholeOnlyDraws) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.Up(0, Roomy());
  const auto first = NewClient(), second = NewClient(), many = NewClient(3);
  cluster.Generate(Prompt(40), 4, first);
  cluster.RunAll();
  int64_t before = cluster.groups[0]->tokens_run();
  cluster.Generate(Prompt(40), 4, second);
  cluster.RunAll();
  EXPECT_EQ(second->tokens, first->tokens);
  EXPECT_EQ(second->usage.cached_tokens, 40);
  EXPECT_EQ(cluster.groups[0]->tokens_run() - before, 3) << "the first token is drawn, and the last one is not run";
  before = cluster.groups[0]->tokens_run();
  cluster.Generate(Prompt(40), 2, many, [](Request* request) { request->generate->samples = 3; });
  cluster.RunAll();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(many->tokens[i], FakeAnswer(Prompt(40), i, 2));
  EXPECT_EQ(cluster.groups[0]->tokens_run() - before, 3) << "one for each";
  EXPECT_EQ(cluster.scheduler.TakeEvents().reread_tokens, 0);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, OneTokenCanBeDrawnAlone) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.Up(0, Roomy());
  const auto first = NewClient(), second = NewClient();
  cluster.Generate(Prompt(40), 1, first);
  cluster.RunAll();
  const int64_t before = cluster.groups[0]->tokens_run();
  cluster.Generate(Prompt(40), 1, second);
  EXPECT_EQ(cluster.Plan(0), 1) << "a Step without a chunk";
  cluster.RunAll();
  EXPECT_EQ(second->tokens, first->tokens);
  EXPECT_EQ(cluster.groups[0]->tokens_run(), before);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, DrawsComeBesideChunks) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.Up(0, Roomy());
  const auto first = NewClient(), reader = NewClient();
  std::vector<std::shared_ptr<FakeClient>> drawers;
  cluster.Generate(Prompt(40), 4, first);
  cluster.RunAll();
  cluster.Generate(FakePrompt(300, 9), 8, reader);
  for (int i = 0; i < 4; ++i) {
    cluster.Plan(0);
    cluster.Generate(Prompt(40), 4, drawers.emplace_back(NewClient()));
    cluster.Answer(0);
  }
  cluster.RunAll();
  for (const auto& drawer : drawers) EXPECT_EQ(drawer->tokens, first->tokens);
  EXPECT_EQ(reader->tokens[0], FakeAnswer(FakePrompt(300, 9), 0, 8));
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, WithoutLogitsTheLastTokensAreRunAgain) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.keeper->save_at = [](int64_t tokens) {
    return tokens > 20 ? std::vector<int64_t>{20, tokens} : std::vector<int64_t>{tokens};
  };
  cluster.Up(0, Roomy());
  const auto longer = NewClient(), prefix = NewClient();
  cluster.Generate(Prompt(20, {7, 8}), 2, longer);
  cluster.RunAll();
  cluster.Generate(Prompt(20), 2, prefix);
  cluster.RunAll();
  EXPECT_EQ(prefix->tokens[0], FakeAnswer(Prompt(20), 0, 2));
  EXPECT_EQ(prefix->usage.cached_tokens, 0);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, WhoWaitsForWhatIsBroughtIsPassed) {
  FakeCluster cluster;
  cluster.Keep();
  uint64_t waiting = 0;
  cluster.keeper->brings = [&](int, uint64_t number) { return number == waiting; };
  cluster.Up(0, Roomy());
  const auto slow = NewClient(), quick = NewClient(), gone = NewClient();
  waiting = cluster.last_number + 1;
  cluster.Generate(Prompt(40), 2, slow);
  cluster.Generate(Prompt(30), 2, quick);
  cluster.RunAll();
  EXPECT_TRUE(slow->tokens[0].empty());
  EXPECT_EQ(quick->tokens[0], FakeAnswer(Prompt(30), 0, 2));
  cluster.scheduler.Prepared(waiting, cluster.now);
  cluster.RunAll();
  EXPECT_EQ(slow->tokens[0], FakeAnswer(Prompt(40), 0, 2));

  waiting = cluster.last_number + 1;
  const uint64_t number = cluster.Generate(Prompt(50), 2, gone);
  cluster.scheduler.Cancel(number, absl::CancelledError(""), cluster.now);
  cluster.scheduler.Prepared(number, cluster.now);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, WhoWaitsForALostGroupIsAskedForAnew) {
  FakeCluster cluster;
  cluster.Keep();
  int asked = 0;
  cluster.keeper->brings = [&](int, uint64_t) { return ++asked == 1; };
  cluster.Up(0, Roomy());
  const auto client = NewClient();
  cluster.Generate(Prompt(40), 2, client);
  cluster.RunAll();
  cluster.Lose(0);
  cluster.Up(0, Roomy());
  cluster.RunAll();
  EXPECT_EQ(client->tokens[0], FakeAnswer(Prompt(40), 0, 2));
  EXPECT_EQ(asked, 2);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, ARequestGoesWhereMostOfItsTextIsKept) {
  FakeCluster cluster(100, 2);
  cluster.Keep();
  cluster.Up(0, Roomy());
  cluster.Up(1, Roomy());
  std::vector<std::shared_ptr<FakeClient>> first, second;
  for (int i = 0; i < 2; ++i) cluster.Generate(FakePrompt(40, i), 2, first.emplace_back(NewClient()));
  cluster.RunAll();
  const int64_t runs[] = {cluster.groups[0]->tokens_run(), cluster.groups[1]->tokens_run()};
  EXPECT_EQ(runs[0], 41);
  EXPECT_EQ(runs[1], 41);
  for (int i = 1; i >= 0; --i) cluster.Generate(FakePrompt(40, i), 2, second.emplace_back(NewClient()));
  cluster.RunAll();
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(second[i]->usage.cached_tokens, 40);
    EXPECT_EQ(cluster.groups[i]->tokens_run() - runs[i], 1);
  }
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, ALongTextIsWorthAWaitAndAShortOneIsReadElsewhere) {
  for (const int64_t kept : {40, 2000}) {
    SCOPED_TRACE(kept);
    FakeCluster cluster(100, 2);
    cluster.Keep();
    cluster.Up(0, Roomy());
    cluster.Up(1, Roomy());
    const auto first = NewClient(), other = NewClient(), second = NewClient();
    cluster.Generate(Prompt(kept), 1, first);
    cluster.RunAll();
    cluster.Generate(FakePrompt(1000, 90), 1, other);
    cluster.Generate(Prompt(kept, {7}), 1, second);
    cluster.RunAll();
    EXPECT_EQ(cluster.groups[0]->tokens_run(), kept == 40 ? 40 + 1000 : 2000 + 1000 + 1);
    EXPECT_EQ(cluster.groups[1]->tokens_run(), kept == 40 ? 41 : 0);
    EXPECT_EQ(second->usage.cached_tokens, kept == 40 ? 0 : 2000);
    EXPECT_EQ(second->tokens[0], FakeAnswer(Prompt(kept, {7}), 0, 1));
    ExpectNothingLeft(cluster);
  }
}

TEST(SchedulerKeptTest, SamplesShareWhatIsKept) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.Up(0, Roomy());
  const auto first = NewClient(), many = NewClient(3);
  cluster.Generate(Prompt(50), 1, first);
  cluster.RunAll();
  const int64_t before = cluster.groups[0]->tokens_run();
  cluster.Generate(Prompt(50, {7, 8}), 2, many, [](Request* request) { request->generate->samples = 3; });
  cluster.RunAll();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(many->tokens[i], FakeAnswer(Prompt(50, {7, 8}), i, 2));
  EXPECT_EQ(cluster.groups[0]->tokens_run() - before, 1 + 3 + 3) << "one for all, and two for each";
  EXPECT_EQ(many->usage.cached_tokens, 50);
  ExpectNothingLeft(cluster);
}

// How the Steps open sequences.
struct Openings {
  explicit Openings(FakeCluster& cluster) {
    cluster.planned = [this](int, const StepPlan& plan) {
      for (const StepPlan::NewSequence& sequence : plan.open) {
        (sequence.copy_of != 0 ? copied : sequence.restore.empty() ? empty : restored) += 1;
        draws += sequence.draw ? 1 : 0;
      }
    };
  }
  int empty = 0, restored = 0, copied = 0, draws = 0;
};

TEST(SchedulerKeptTest, SamplesOfAPromptThatIsKeptAsAWholeAreCopiesOfTheFirst) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.Up(0, Roomy());
  cluster.Generate(Prompt(70), 1, NewClient());
  cluster.RunAll();
  const int64_t before = cluster.groups[0]->tokens_run();
  Openings openings(cluster);
  const auto many = NewClient(5);
  cluster.Generate(Prompt(70), 4, many, [](Request* request) { request->generate->samples = 5; });
  cluster.Plan(0);
  EXPECT_EQ(openings.restored, 1);
  EXPECT_EQ(openings.copied, 4);
  EXPECT_EQ(openings.draws, 5);
  EXPECT_EQ(cluster.groups[0]->pages_used(), 1 + 5) << "the full page is shared";
  EXPECT_EQ(cluster.scheduler.Load(0).cache_tokens_used, 6 * kCachePageTokens);
  cluster.RunAll();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(many->tokens[i], FakeAnswer(Prompt(70), i, 4));
  EXPECT_EQ(cluster.groups[0]->tokens_run() - before, 5 * 3) << "the first ones are drawn, and the last ones not run";
  EXPECT_EQ(many->usage.cached_tokens, 70);
  EXPECT_EQ(cluster.scheduler.TakeEvents().reread_tokens, 0);
  EXPECT_EQ(openings.restored, 1);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, WhatReadsOnlyItsLastTokenIsCopiedBeforeIt) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.Up(0, Roomy());
  cluster.Generate(Prompt(50), 1, NewClient());
  cluster.RunAll();
  Openings openings(cluster);
  const auto many = NewClient(3), scored = NewClient();
  cluster.Generate(Prompt(50, {7}), 2, many, [](Request* request) { request->generate->samples = 3; });
  cluster.RunAll();
  EXPECT_EQ(openings.restored, 1);
  EXPECT_EQ(openings.copied, 2);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(many->tokens[i], FakeAnswer(Prompt(50, {7}), i, 2));
  openings.restored = openings.copied = 0;
  const int64_t before = cluster.groups[0]->tokens_run();
  cluster.Score(Prompt(50, {8}), {{4, 5}, {6}, {8, 9}}, /*score_prompt=*/false, scored);
  cluster.RunAll();
  EXPECT_EQ(openings.restored, 1);
  EXPECT_EQ(openings.copied, 2);
  EXPECT_EQ(cluster.groups[0]->tokens_run() - before, 2 + 1 + 2);
  ExpectScores(*scored, 0, Prompt(50, {8}), {4, 5});
  ExpectScores(*scored, 1, Prompt(50, {8}), {6});
  ExpectScores(*scored, 2, Prompt(50, {8}), {8, 9});
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, SamplesThatComeTooLateBeginByThemselves) {
  FakeCluster cluster;
  cluster.Keep();
  GroupCapacity capacity = Roomy();
  capacity.max_sequences = 2;
  cluster.Up(0, capacity);
  cluster.Generate(Prompt(70), 1, NewClient());
  cluster.RunAll();
  Openings openings(cluster);
  const auto many = NewClient(3);
  cluster.Generate(Prompt(70), 4, many, [](Request* request) { request->generate->samples = 3; });
  cluster.RunAll();
  EXPECT_EQ(openings.restored, 2);
  EXPECT_EQ(openings.copied, 1);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(many->tokens[i], FakeAnswer(Prompt(70), i, 4));
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, TokensThatAreScoredAreRun) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.Up(0, Roomy());
  const auto first = NewClient(), continuation = NewClient(), all = NewClient();
  cluster.Generate(Prompt(50), 1, first);
  cluster.RunAll();
  int64_t before = cluster.groups[0]->tokens_run();
  cluster.Score(Prompt(50, {7}), {{4, 5}}, /*score_prompt=*/false, continuation);
  cluster.RunAll();
  EXPECT_EQ(cluster.groups[0]->tokens_run() - before, 2);
  ExpectScores(*continuation, 0, Prompt(50, {7}), {4, 5});
  before = cluster.groups[0]->tokens_run();
  cluster.Score(Prompt(50, {7}), {{4, 5}}, /*score_prompt=*/true, all);
  cluster.RunAll();
  EXPECT_EQ(cluster.groups[0]->tokens_run() - before, 52);
  const std::vector<int32_t> prompt = Prompt(50, {7});
  ExpectScores(*all, -1, {prompt[0]}, std::vector<int32_t>(prompt.begin() + 1, prompt.end()));
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, WhatIsParkedGoesOnFromWhereItWas) {
  FakeCluster cluster;
  cluster.Keep();
  GroupCapacity capacity = Roomy();
  capacity.max_sequences = 1;
  cluster.Up(0, capacity);
  const auto low = NewClient(), high = NewClient();
  cluster.Generate(Prompt(50), 30, low);
  while (low->tokens[0].size() < 10) {
    cluster.Plan(0);
    cluster.Answer(0);
  }
  cluster.Generate(FakePrompt(5, 90), 1, high, [](Request* request) { request->priority = 1; });
  cluster.RunAll();
  EXPECT_EQ(low->usage.parkings, 1);
  EXPECT_EQ(low->tokens[0], FakeAnswer(Prompt(50), 0, 30));
  EXPECT_EQ(cluster.scheduler.TakeEvents().reread_tokens, 0);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, WhatIsKeptOfAGroupIsLostWithIt) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.Up(0, Roomy());
  const auto first = NewClient(), second = NewClient();
  cluster.Generate(Prompt(50), 3, first);
  cluster.RunAll();
  cluster.Generate(Prompt(50, {7}), 3, second);  // it holds what is kept, and is not opened
  cluster.Lose(0);
  cluster.Up(0, Roomy());
  cluster.RunAll();
  EXPECT_EQ(second->tokens[0], FakeAnswer(Prompt(50, {7}), 0, 3));
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, WhatWillNotBeOpenedHoldsNothing) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.Up(0, Roomy());
  const auto first = NewClient(), second = NewClient();
  cluster.Generate(Prompt(50), 3, first);
  cluster.RunAll();
  const uint64_t number = cluster.Generate(Prompt(50, {7}), 3, second);
  EXPECT_EQ(cluster.keeper->held(), 1);
  cluster.scheduler.Cancel(number, absl::CancelledError(""), cluster.now);
  EXPECT_EQ(cluster.keeper->held(), 0);
  ExpectNothingLeft(cluster);
}

}  // namespace
}  // namespace goldfinch
