// Steps are bounded by the time that they take. Histories on a device whose times are given.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "coordinator/scheduler/client.h"
#include "coordinator/scheduler/scheduler_time_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST_F(SchedulerTimeTest, APromptLeavesDecodingItsTime) {
  Start();
  Generate(10, 10'000);
  RunUntil([&] { return Begun(*clients[0]); });
  cluster.step_times.clear();
  const auto reader = Generate(2500, 1);
  RunUntil([&] { return reader->status.has_value(); });
  EXPECT_LT(longest(), 1.3 * kTarget);
  EXPECT_LT(total(), 1.6 * (2500 * row + kTarget)) << "and the prompt is read at most of the rate";
}

TEST_F(SchedulerTimeTest, WhereNothingDecodesPromptsAreReadAtTheBestRate) {
  Start();
  Generate(20'000, 1);
  RunUntil([&] { return clients[0]->status.has_value(); });
  EXPECT_LT(total(), 20'000 * (row + step / 512) * 1.1);
  EXPECT_LT(longest(), 12 * step) << "in Steps that do not keep who comes next waiting";
}

TEST_F(SchedulerTimeTest, AShortPromptWaitsForOneStepOfALongOne) {
  Start();
  Generate(50'000, 1);
  for (int i = 0; i < 3; ++i) {
    cluster.Plan(0);
    cluster.Answer(0);
  }
  cluster.Plan(0);
  const double before = cluster.now;
  const auto newcomer = Generate(20, 1);
  RunUntil([&] { return newcomer->status.has_value(); });
  EXPECT_LT(cluster.now - before, 2 * 12 * step) << "the Step in flight and its own";
}

TEST_F(SchedulerTimeTest, ManyShortSequencesDecodeTogether) {
  Start();
  for (int i = 0; i < 60; ++i) Generate(4, 50);
  RunUntil([&] { return std::all_of(clients.begin(), clients.end(), [](const auto& one) { return Begun(*one); }); });
  cluster.Plan(0);
  EXPECT_EQ(cluster.plans[0].front().chunks.size(), 60U) << "they cost less together, though together more than 0.2 s";
}

TEST_F(SchedulerTimeTest, SequencesThatDoNotFitGoIntoTheNextStep) {
  shape.gold_rows_before = 4;
  attend = 1e-4;
  Start();
  for (int i = 0; i < 12; ++i) Generate(2000, 50'000);  // 0.2 s a token each
  RunUntil([&] { return std::all_of(clients.begin(), clients.end(), [](const auto& one) { return Begun(*one); }); });
  cluster.step_times.clear();
  std::vector<size_t> before;
  for (const auto& client : clients) before.push_back(client->tokens[0].size());
  RunUntil([&] { return clients[0]->tokens[0].size() == before[0] + 8; });
  EXPECT_LT(longest(), 1.2 * 8 * step);
  for (size_t i = 0; i < clients.size(); ++i) {
    EXPECT_NEAR(static_cast<double>(clients[i]->tokens[0].size() - before[i]), 8, 1) << "all get on alike";
  }
}

TEST_F(SchedulerTimeTest, TokensLongerThanAStepTakeHalfOfTheTime) {
  shape.gold_rows_before = 4;
  attend = 49e-6;
  Start();
  for (int i = 0; i < 3; ++i) Generate(60'000, 200);  // 2.9 s a token each
  RunUntil([&] { return Begun(*clients[0]) && Begun(*clients[1]) && Begun(*clients[2]); });
  for (int i = 0; i < 5; ++i) Generate(10, 100'000);
  RunUntil([&] { return Begun(*clients.back()); });
  cluster.step_times.clear();
  RunUntil([&] { return clients[0]->status && clients[1]->status && clients[2]->status; });
  double together = 0;
  for (const double seconds : cluster.step_times) {
    EXPECT_LT(seconds, 1.2 * (49e-6 * 60'000 + 8 * step)) << "one at a time";
    if (seconds > 1) together += seconds;
  }
  EXPECT_LT(together, 0.6 * total());
  EXPECT_GT(together, 0.4 * total());
}

TEST_F(SchedulerTimeTest, LongTokensLeaveShortOnesTheirTimeInAPipelineToo) {
  shape.gold_rows_before = 4;
  attend = 49e-6;
  Start(kTarget, /*stages=*/2);
  for (int i = 0; i < 2; ++i) Generate(60'000, 1'000'000);
  Generate(10, 1'000'000);
  RunUntil([&] { return std::all_of(clients.begin(), clients.end(), [](const auto& one) { return Begun(*one); }); });
  cluster.step_times.clear();
  const size_t before = clients[0]->tokens[0].size();
  RunUntil([&] { return clients[0]->tokens[0].size() >= before + 20; });
  double together = 0;
  for (const double seconds : cluster.step_times) together += seconds > 1 ? seconds : 0;
  EXPECT_LT(together, 0.6 * total());
}

TEST_F(SchedulerTimeTest, LongTokensHaveAllTheTimeIfNobodyElseIsThere) {
  shape.gold_rows_before = 4;
  attend = 49e-6;
  Start();
  const auto alone = Generate(60'000, 4);
  RunUntil([&] { return alone->status.has_value(); });
  EXPECT_EQ(alone->tokens[0].size(), 4U);
}

TEST_F(SchedulerTimeTest, TheEndOfALongPromptTakesTurnsWithLongTokens) {
  shape.gold_rows_before = 16;
  attend = 49e-6;
  Start();
  Generate(60'000, 1'000'000);
  RunUntil([&] { return Begun(*clients[0]); });
  const auto other = Generate(60'000, 2);
  RunUntil([&] { return Begun(*other); });
  EXPECT_LT(clients[0]->tokens[0].size(), 600U);
}

TEST_F(SchedulerTimeTest, ScoringALongPromptTakesTurnsWithLongTokens) {
  shape.gold_rows_before = 4;
  attend = 1e-3;
  Start();
  Generate(1'000, 1'000'000);
  RunUntil([&] { return Begun(*clients[0]); });
  const size_t before = clients[0]->tokens[0].size();
  const auto scorer = std::make_shared<FakeClient>();
  cluster.Score(FakePrompt(900), {}, /*score_prompt=*/true, scorer);
  RunUntil([&] { return scorer->status.has_value(); });
  EXPECT_GT(clients[0]->tokens[0].size() - before, 300U) << "one for each row that is longer than a Step";
}

TEST_F(SchedulerTimeTest, ClientsTakeTurnsWithLongTokens) {
  shape.gold_rows_before = 4;
  attend = 49e-6;
  Start();
  for (const char* name : {"a", "b", "c"}) {
    const auto client = std::make_shared<Client>();
    client->name = name;
    for (const int64_t prompt : {60'000, 20}) {
      Generate(prompt, 1'000'000, [&](Request* request) { request->client = client; });
    }
  }
  RunUntil([&] { return Begun(*clients[0]) && Begun(*clients[2]) && Begun(*clients[4]); });
  std::vector<size_t> before;
  for (const auto& client : clients) before.push_back(client->tokens[0].size());
  const auto more = [&](size_t i) { return clients[i]->tokens[0].size() - before[i]; };
  RunUntil([&] { return more(0) == 20; });
  EXPECT_NEAR(static_cast<double>(more(2)), 20, 2);
  EXPECT_NEAR(static_cast<double>(more(4)), 20, 2);
}

TEST_F(SchedulerTimeTest, AllStagesWorkOnLongTokens) {
  shape.gold_rows_before = 4;
  attend = 49e-6;
  Start(kTarget, /*stages=*/4);
  for (int i = 0; i < 4; ++i) Generate(60'000, 1'000'000);
  RunUntil([&] { return std::all_of(clients.begin(), clients.end(), [](const auto& one) { return Begun(*one); }); });
  RunUntil([&] { return clients[0]->tokens[0].size() >= 10; });
  EXPECT_EQ(cluster.Plan(0), 4);
}

TEST_F(SchedulerTimeTest, OneUserAfterTheOtherTeachesTheSame) {
  Start();
  for (int i = 0; i < 100; ++i) {
    Generate(20, 1 + i % 5);
    cluster.RunAll();
  }
  const double start = cluster.now;
  const auto reader = Generate(2000, 1);
  RunUntil([&] { return reader->status.has_value(); });
  EXPECT_LT(cluster.now - start, 1.2 * (2000 * row + 2000 / 150 * step));
}

TEST_F(SchedulerTimeTest, WhoDoesNotReadSlowsNoPrompt) {
  Start();
  const auto client = Generate(10, 10'000);
  client->verdict = [](int, int32_t) { return RequestSink::Verdict::kPause; };
  RunUntil([&] { return Begun(*client); });
  cluster.RunAll();
  cluster.step_times.clear();
  const auto reader = Generate(5'000, 1);
  RunUntil([&] { return reader->status.has_value(); });
  EXPECT_GT(longest(), 9 * step) << "at the best rate";
  client->verdict = {};
  cluster.scheduler.Resume(cluster.last_number - 1);
  RunUntil([&] { return client->tokens[0].size() > 3; });
}

// The end of a long prompt and heavy decoding: both get on.
TEST_F(SchedulerTimeTest, PromptsGetOnBesideWhateverDecodes) {
  shape.every_row = true;
  attend = 1e-5;
  Start();
  for (int i = 0; i < 10; ++i) Generate(10'000, 1'000'000);
  RunUntil([&] { return Begun(*clients.back()); });
  cluster.step_times.clear();
  const auto reader = Generate(9'000, 3);
  RunUntil([&] { return reader->status.has_value(); });
  EXPECT_LT(longest(), 1.5 * 1.2 * 8 * step);
}

TEST_F(SchedulerTimeTest, ScoringAPromptGoesInSlices) {
  shape.gold_rows_before = 4;
  attend = 2e-6;
  Start();
  const auto client = std::make_shared<FakeClient>();
  cluster.Score(FakePrompt(8'000), {}, /*score_prompt=*/true, client);
  clients.push_back(client);
  RunUntil([&] { return client->status.has_value(); });
  EXPECT_EQ(client->scores.at(-1).size(), 7'999U);
  EXPECT_LT(longest(), 1.2 * 10 * step);
}

TEST_F(SchedulerTimeTest, StagesShareTheTarget) {
  step = 5e-3;
  row = 1e-3;
  Start(/*target=*/0.2, /*stages=*/4);
  Generate(10, 10'000);
  RunUntil([&] { return Begun(*clients[0]); });
  cluster.step_times.clear();
  const auto reader = Generate(2500, 1);
  RunUntil([&] { return reader->status.has_value(); });
  EXPECT_LT(longest(), 1.3 * 0.2 / 4);
}

// ---- Short Steps, where the target allows much longer ones ----

TEST_F(SchedulerTimeTest, OnePromptSlowsWhoDecodesThreeTimes) {
  step = 1e-3;
  row = 5e-5;
  Start();
  Generate(10, 100'000);
  RunUntil([&] { return Begun(*clients[0]); });
  cluster.step_times.clear();
  const auto reader = Generate(20'000, 1);
  RunUntil([&] { return reader->status.has_value(); });
  EXPECT_LT(longest(), 1.1 * 3 * (step + row));
  EXPECT_LT(total(), 1.1 * 1.5 * 20'000 * row) << "the prompt is read at two thirds of the best rate";
}

TEST_F(SchedulerTimeTest, ManyPromptsAreReadAtTheBestRate) {
  step = 1e-3;
  row = 5e-5;
  Start();
  Generate(10, 100'000);
  RunUntil([&] { return Begun(*clients[0]); });
  cluster.step_times.clear();
  for (int i = 0; i < 30; ++i) Generate(2'000, 1);
  RunUntil(
      [&] { return std::all_of(clients.begin() + 1, clients.end(), [](const auto& one) { return one->status; }); });
  EXPECT_LT(total(), 1.15 * 30 * 2'000 * row);
  EXPECT_LT(longest(), 1.3 * 20 * step) << "in Steps that are still far below the target";
}

TEST_F(SchedulerTimeTest, ASecondTokenWaitsForNoLongStep) {
  step = 1e-3;
  row = 5e-5;
  Start(kTarget, /*stages=*/4);
  Generate(100'000, 1);
  for (int i = 0; i < 10; ++i) {
    cluster.Plan(0);
    cluster.Answer(0);
  }
  const auto newcomer = Generate(20, 10);
  RunUntil([&] { return Begun(*newcomer); });
  cluster.step_times.clear();
  RunUntil([&] { return newcomer->tokens[0].size() == 3; });
  EXPECT_LT(longest(), 1.1 * 3 * (step + row)) << "not even one that was planned before the first token came";
}

TEST_F(SchedulerTimeTest, ANewcomerWaitsForFewOfManyWhoDecode) {
  step = 1e-4;
  row = 2e-4;
  Start();
  const auto hog = std::make_shared<FakeClient>(56);
  cluster.Generate(FakePrompt(4), 100'000, hog, [](Request* request) { request->generate->samples = 56; });
  RunUntil([&] {
    return std::none_of(hog->tokens.begin(), hog->tokens.end(), [](const auto& one) { return one.empty(); });
  });
  const auto sampled = [&] {
    return std::accumulate(hog->tokens.begin(), hog->tokens.end(), size_t{0},
                           [](size_t sum, const auto& one) { return sum + one.size(); });
  };
  const size_t before = sampled();
  cluster.step_times.clear();
  RunUntil([&] { return sampled() - before >= 560; });
  EXPECT_LT(total(), 1.1 * 10 * (step + 56 * row)) << "though they decode as fast as all at once";
  cluster.Plan(0);
  const double start = cluster.now;
  const auto newcomer = Generate(20, 1);
  RunUntil([&] { return newcomer->status.has_value(); });
  EXPECT_LT(cluster.now - start, 1.3 * (2 * Scheduler::kBriefSeconds + 20 * row)) << "all of them take 11 ms";
}

TEST_F(SchedulerTimeTest, WithoutATargetTokensAloneBoundAStep) {
  Start(/*target=*/0);
  Generate(2000, 1);
  EXPECT_EQ(cluster.Plan(0), 2);
  EXPECT_EQ(cluster.plans[0].front().ids.size(), 512U);
}

}  // namespace
}  // namespace goldfinch
