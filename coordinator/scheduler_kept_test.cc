// Sequences begin with what is kept of their texts, and get the same tokens.
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/scheduler.h"
#include "coordinator/scheduler_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

std::shared_ptr<FakeClient> Client(int samples = 1) { return std::make_shared<FakeClient>(samples); }

// A text of `count` tokens that goes on with `more`.
std::vector<int32_t> Prompt(int64_t count, const std::vector<int32_t>& more = {}) {
  std::vector<int32_t> ids = FakePrompt(count);
  ids.insert(ids.end(), more.begin(), more.end());
  return ids;
}

TEST(SchedulerKeptTest, ASecondQuestionReadsOnlyWhatIsNew) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.Up(0, Roomy());
  const auto first = Client(), second = Client();
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
  EXPECT_EQ(events.replayed_tokens, 0);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, AChatBeginsWithItsLastTurn) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.keeper->save_at = [](int64_t tokens) { return std::vector<int64_t>{tokens, tokens + 4}; };
  cluster.Up(0, Roomy());
  const auto turn = Client();
  cluster.Generate(Prompt(20), 5, turn);
  cluster.RunAll();
  std::vector<int32_t> chat = Prompt(20, turn->tokens[0]);
  chat.push_back(3);
  const auto next = Client();
  cluster.Generate(chat, 2, next);
  cluster.RunAll();
  EXPECT_EQ(next->tokens[0], FakeAnswer(chat, 0, 2));
  EXPECT_EQ(next->usage.cached_tokens, 24) << "the prompt, and the four tokens of the answer that were run";
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, TheLastTokenOfAPromptIsRunAgain) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.keeper->save_at = [](int64_t tokens) { return std::vector<int64_t>{tokens / 2, tokens}; };
  cluster.Up(0, Roomy());
  const auto first = Client(), second = Client();
  cluster.Generate(Prompt(40), 2, first);
  cluster.RunAll();
  cluster.Generate(Prompt(40), 2, second);
  cluster.RunAll();
  EXPECT_EQ(second->tokens, first->tokens);
  EXPECT_EQ(second->usage.cached_tokens, 20) << "what was saved at 40 has nothing left to sample from";
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, SamplesShareWhatIsKept) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.Up(0, Roomy());
  const auto first = Client(), many = Client(3);
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

TEST(SchedulerKeptTest, TokensThatAreScoredAreRun) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.Up(0, Roomy());
  const auto first = Client(), continuation = Client(), all = Client();
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
  const auto low = Client(), high = Client();
  cluster.Generate(Prompt(50), 30, low);
  while (low->tokens[0].size() < 10) {
    cluster.Plan(0);
    cluster.Answer(0);
  }
  cluster.Generate(FakePrompt(5, 90), 1, high, [](Request* request) { request->priority = 1; });
  cluster.RunAll();
  EXPECT_EQ(low->usage.parkings, 1);
  EXPECT_EQ(low->tokens[0], FakeAnswer(Prompt(50), 0, 30));
  EXPECT_EQ(cluster.scheduler.TakeEvents().replayed_tokens, 0);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeptTest, WhatIsKeptOfAGroupIsLostWithIt) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.Up(0, Roomy());
  const auto first = Client(), second = Client();
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
  const auto first = Client(), second = Client();
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
