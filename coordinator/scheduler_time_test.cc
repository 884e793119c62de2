// Steps are bounded by the time that they take, and deadlines are judged by it. Histories on a device whose times are
// given.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/scheduler_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

constexpr double kTarget = 0.2;

// A device of fixed speeds, with Steps of 512 tokens.
class SchedulerTimeTest : public testing::Test {
 protected:
  double step = 0.07, row = 4e-3, attend = 0;
  AttentionShape shape = {};

  void Start(double target = kTarget, int stages = 1) {
    cluster.seconds_of = [this](const StepWork& work) { return step + row * work.rows + attend * work.attended; };
    cluster.scheduler.SetModel(200, 1, 1, shape);
    GroupCapacity capacity = Roomy(stages);
    capacity.cache_tokens = int64_t{1} << 40;
    capacity.max_sequence_tokens = int64_t{1} << 40;
    capacity.max_step_tokens = 512;
    capacity.step_target_seconds = target;
    capacity.row_seconds = 3 * row;  // the planner is wrong
    cluster.Up(0, capacity);
    // What a server learns in its first seconds.
    Generate(300, 20);
    cluster.RunAll();
    clients.clear();
    cluster.step_times.clear();
  }
  std::shared_ptr<FakeClient> Generate(int64_t prompt, int64_t tokens, std::function<void(Request*)> edit = {}) {
    clients.push_back(std::make_shared<FakeClient>());
    cluster.Generate(FakePrompt(prompt, static_cast<int32_t>(clients.size())), tokens, clients.back(), edit);
    return clients.back();
  }
  // Runs Steps until the condition holds.
  template <typename Condition>
  void RunUntil(const Condition& condition) {
    for (int steps = 0; !condition(); ++steps) {
      ASSERT_LT(steps, 100'000);
      ASSERT_GT(cluster.Plan(0), 0);
      cluster.Answer(0);
    }
  }
  double longest() const { return *std::max_element(cluster.step_times.begin(), cluster.step_times.end()); }
  double total() const { return std::accumulate(cluster.step_times.begin(), cluster.step_times.end(), 0.0); }
  static bool Begun(const FakeClient& client) { return !client.tokens[0].empty(); }

  FakeCluster cluster;
  std::vector<std::shared_ptr<FakeClient>> clients;
};

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

TEST_F(SchedulerTimeTest, WhereStepsAreCheapTheyAreShort) {
  step = 1e-3;
  row = 5e-5;
  Start();
  Generate(10, 10'000);
  RunUntil([&] { return Begun(*clients[0]); });
  cluster.step_times.clear();
  const auto reader = Generate(20'000, 1);
  RunUntil([&] { return reader->status.has_value(); });
  EXPECT_LT(longest(), 1.3 * 20 * step) << "far below the target";
  EXPECT_LT(total(), 1.15 * 20'000 * row) << "and this costs little";
}

TEST_F(SchedulerTimeTest, WithoutATargetTokensAloneBoundAStep) {
  Start(/*target=*/0);
  Generate(2000, 1);
  EXPECT_EQ(cluster.Plan(0), 2);
  EXPECT_EQ(cluster.plans[0].front().ids.size(), 512U);
}

// ---- Deadlines ----

class DeadlineTest : public SchedulerTimeTest {
 protected:
  // The seconds until the request's first token.
  double FirstToken(int64_t prompt) {
    const double start = cluster.now;
    const auto client = Generate(prompt, 1);
    RunUntil([&] { return client->status.has_value(); });
    return cluster.now - start;
  }
  // Whether a request with this deadline is refused at once. If it is not, it is canceled.
  bool Refused(int64_t prompt, double deadline) {
    const auto client = Generate(prompt, 1, [&](Request* request) { request->deadline_seconds = deadline; });
    if (client->status) {
      EXPECT_EQ(client->status->code(), absl::StatusCode::kDeadlineExceeded) << *client->status;
      EXPECT_NE(std::string(client->status->message()).find("the deadline is in"), std::string::npos);
      return true;
    }
    cluster.scheduler.Cancel(cluster.last_number, absl::CancelledError(""), cluster.now);
    return false;
  }
  // The deadline is refused if it is this much below what the request takes, and is not if it is enough.
  void ExpectWithin(int64_t prompt, double tolerance) {
    // One estimate after the other: they change nothing.
    double least = 1e-3, most = 1e6;
    while (most / least > 1.01) {
      const double middle = std::sqrt(least * most);
      (Refused(prompt, middle) ? least : most) = middle;
    }
    const double estimate = 1.25 * most;
    const double truth = FirstToken(prompt);
    EXPECT_NEAR(estimate, truth, tolerance * truth) << prompt << " tokens";
  }
};

TEST_F(DeadlineTest, AnIdleServerIsEstimatedWithinAQuarter) {
  shape.gold_rows_before = 16;
  attend = 1e-6;
  Start();
  for (const int64_t prompt : {1, 30, 500, 3'000, 300'000}) ExpectWithin(prompt, 0.25);
}

TEST_F(DeadlineTest, TheEndOfALongPromptIsNoRate) {
  // The audit's case: the end of the prompt takes long, and is no measure for its other tokens.
  shape.gold_rows_before = 16;
  attend = 3e-7;
  step = 1e-3;
  row = 1e-5;
  Start();
  FirstToken(300'000);
  const double again = FirstToken(300'000);
  EXPECT_FALSE(Refused(300'000, 1.01 * again));
  EXPECT_TRUE(Refused(300'000, 0.5 * again));
}

TEST_F(DeadlineTest, OtherPromptsAndDecodingCount) {
  Start();
  for (int i = 0; i < 5; ++i) Generate(10, 100'000);
  Generate(30'000, 1);
  RunUntil([&] { return Begun(*clients[4]); });
  for (int i = 0; i < 5; ++i) {
    cluster.Plan(0);
    cluster.Answer(0);
  }
  ExpectWithin(1'000, 0.25);
}

TEST_F(DeadlineTest, ScoringIsEstimatedWithAllItsRows) {
  shape.gold_rows_before = 16;
  attend = 1e-6;
  Start();
  const auto run = [&](std::optional<double> deadline) {
    Request request;
    request.prompt = FakePrompt(8000);
    request.score.emplace();
    request.score->score_prompt = true;
    request.deadline_seconds = deadline;
    clients.push_back(std::make_shared<FakeClient>());
    cluster.scheduler.Submit(++cluster.last_number, std::move(request), clients.back(), cluster.now);
    return clients.back();
  };
  const double start = cluster.now;
  const auto client = run(std::nullopt);
  RunUntil([&] { return client->status.has_value(); });
  const double truth = cluster.now - start;
  EXPECT_TRUE(run(0.6 * truth)->status.has_value());
  EXPECT_FALSE(run(1.1 * truth)->status.has_value());
}

TEST_F(DeadlineTest, WithAllSlotsTakenTheQueueCounts) {
  Start();
  for (int i = 0; i < 64; ++i) Generate(4, 1'000);
  RunUntil([&] { return Begun(*clients.back()); });
  EXPECT_TRUE(Refused(4, 1)) << "at once, not when the second is over";
  EXPECT_FALSE(Refused(4, 1'000 * (step + 64 * row)));
}

TEST_F(DeadlineTest, ASlotThatAnotherClientHasTooManyOfIsNear) {
  Start();
  const auto hog = std::make_shared<Client>();
  hog->name = "hog";
  for (int i = 0; i < 64; ++i) Generate(4, 1'000, [&](Request* request) { request->client = hog; });
  RunUntil([&] { return Begun(*clients.back()); });
  EXPECT_FALSE(Refused(4, 2)) << "one of the other's sequences is parked";
}

TEST_F(DeadlineTest, WhatIsKeptForShortRequestsIsNear) {
  Start();
  const auto hog = std::make_shared<FakeClient>(60);
  cluster.Generate(FakePrompt(4), 10'000, hog, [](Request* request) { request->generate->samples = 60; });
  RunUntil([&] { return Begun(*hog); });
  for (int i = 0; i < 10; ++i) Generate(2'000, 10'000);
  EXPECT_FALSE(Refused(4, 5));
}

TEST_F(DeadlineTest, WhoMayNotRunIsNotAhead) {
  Start();
  const auto limited = std::make_shared<Client>();
  limited->name = "limited";
  limited->limits.max_running = 1;
  for (int i = 0; i < 3; ++i) Generate(4, 10'000, [&](Request* request) { request->client = limited; });
  RunUntil([&] { return Begun(*clients[0]); });
  EXPECT_FALSE(Refused(2'000, 2.5 * 2'000 * row));
}

TEST_F(DeadlineTest, ABadDayIsForgotten) {
  Start();
  row *= 10;
  step *= 10;
  for (int i = 0; i < 5; ++i) FirstToken(2'000);
  row /= 10;
  step /= 10;
  EXPECT_TRUE(Refused(2'000, 2.5 * 2'000 * row)) << "it was slow just now";
  // Nothing else comes, but clients try again.
  int tries = 0;
  for (; Refused(2'000, 2.5 * 2'000 * row); ++tries) {
    ASSERT_LT(tries, 100);
    cluster.now += 5;
  }
  for (int i = 0; i < 5; ++i) FirstToken(2'000);
  EXPECT_FALSE(Refused(2'000, 2.5 * 2'000 * row));
}

TEST_F(DeadlineTest, NothingIsRefusedBeforeAnythingHasBeenMeasured) {
  FakeCluster fresh;
  GroupCapacity capacity = Roomy();
  capacity.row_seconds = 100;
  fresh.Up(0, capacity);
  const auto client = std::make_shared<FakeClient>();
  fresh.Generate(FakePrompt(10), 1, client, [](Request* request) { request->deadline_seconds = 1; });
  EXPECT_FALSE(client->status.has_value());
}

}  // namespace
}  // namespace goldfinch
