// What is to be kept is run to its end, and saved there.
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "base/cache_page.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/scheduler_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(SchedulerKeepAsTest, WhatIsToBeKeptIsRunToItsEnd) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.Up(0, Roomy());
  const auto client = NewClient(), next = NewClient();
  cluster.Generate(Prompt(40), 5, client, [](Request* request) { request->keep_as = {"a chat"}; });
  cluster.RunAll();
  EXPECT_TRUE(client->status->ok()) << *client->status;
  EXPECT_EQ(client->tokens[0], FakeAnswer(Prompt(40), 0, 5));
  EXPECT_EQ(client->usage.completion_tokens, 5);
  const std::vector<int32_t> text = Prompt(40, client->tokens[0]);
  EXPECT_EQ(cluster.keeper->kept_text, text);
  const int64_t before = cluster.groups[0]->tokens_run();
  cluster.Generate(text, 2, next);
  cluster.RunAll();
  EXPECT_EQ(next->usage.cached_tokens, 45);
  EXPECT_EQ(next->tokens[0], FakeAnswer(text, 0, 2));
  EXPECT_EQ(cluster.groups[0]->tokens_run() - before, 1);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeepAsTest, WhatEndsEarlyIsSavedAtItsEnd) {
  for (const bool lost : {false, true}) {
    SCOPED_TRACE(lost);
    FakeCluster cluster;
    cluster.Keep();
    cluster.keeper->save_at = [](int64_t tokens) { return std::vector<int64_t>{tokens, tokens + 4, tokens + 30}; };
    cluster.Up(0, Roomy());
    const auto client = NewClient(), next = NewClient();
    client->verdict = [&](int, int32_t) {
      return client->tokens[0].size() == 10 ? RequestSink::Verdict::kStop : RequestSink::Verdict::kContinue;
    };
    cluster.Generate(Prompt(40), 50, client, [](Request* request) { request->keep_as = {"a chat"}; });
    while (client->tokens[0].size() < 10) {
      cluster.Plan(0);
      cluster.Answer(0);
    }
    if (lost) {  // when it has ended, and is not saved yet
      cluster.Lose(0);
      cluster.Up(0, Roomy());
    }
    cluster.RunAll();
    EXPECT_TRUE(client->status->ok()) << *client->status;
    EXPECT_EQ(client->finishes[0], Finish::kStop);
    cluster.Generate(Prompt(40, client->tokens[0]), 2, next);
    cluster.RunAll();
    EXPECT_EQ(next->usage.cached_tokens, 50);
    ExpectNothingLeft(cluster);
  }
}

TEST(SchedulerKeepAsTest, APromptAloneCanBeKept) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.Up(0, Roomy());
  const auto client = NewClient(), again = NewClient(), question = NewClient();
  cluster.Generate(Prompt(40), 0, client, [](Request* request) { request->keep_as = {"a document"}; });
  cluster.RunAll();
  EXPECT_TRUE(client->status->ok()) << *client->status;
  EXPECT_TRUE(client->tokens[0].empty());
  EXPECT_EQ(cluster.keeper->kept_text, Prompt(40));
  const int64_t before = cluster.groups[0]->tokens_run();
  cluster.keeper->kept_text.clear();
  cluster.Generate(Prompt(40), 0, again, [](Request* request) { request->keep_as = {"the same"}; });
  cluster.RunAll();
  EXPECT_EQ(cluster.keeper->kept_text, Prompt(40));
  EXPECT_EQ(cluster.groups[0]->tokens_run(), before);
  cluster.Generate(Prompt(40), 2, question);
  cluster.RunAll();
  EXPECT_EQ(question->tokens[0], FakeAnswer(Prompt(40), 0, 2));
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeepAsTest, WhatCannotBeKeptIsAnErrorAfterTheAnswer) {
  FakeCluster cluster;
  cluster.Keep();
  cluster.keeper->keep_status = absl::ResourceExhaustedError("full");
  cluster.Up(0, Roomy());
  const auto client = NewClient();
  cluster.Generate(Prompt(40), 5, client, [](Request* request) { request->keep_as = {"a chat"}; });
  cluster.RunAll();
  EXPECT_EQ(client->tokens[0], FakeAnswer(Prompt(40), 0, 5));
  EXPECT_EQ(client->status, absl::ResourceExhaustedError("full"));
  ExpectNothingLeft(cluster);
}

TEST(SchedulerKeepAsTest, WhatIsToBeKeptSurvivesALossAtAnyMoment) {
  for (int lost_after = 0; lost_after < 9; ++lost_after) {
    SCOPED_TRACE(lost_after);
    FakeCluster cluster;
    cluster.Keep();
    cluster.Up(0, Roomy());
    const auto client = NewClient();
    cluster.Generate(Prompt(40), 5, client, [](Request* request) { request->keep_as = {"a chat"}; });
    for (int i = 0; i < lost_after; ++i) {
      if (cluster.Plan(0) == 0) break;
      cluster.Answer(0);
    }
    cluster.Plan(0);
    cluster.Lose(0);
    cluster.Up(0, Roomy());
    cluster.RunAll();
    EXPECT_EQ(client->tokens[0], FakeAnswer(Prompt(40), 0, 5));
    EXPECT_TRUE(client->status->ok()) << *client->status;
    EXPECT_EQ(cluster.keeper->kept_text, Prompt(40, client->tokens[0]));
    ExpectNothingLeft(cluster);
  }
}

}  // namespace
}  // namespace goldfinch
