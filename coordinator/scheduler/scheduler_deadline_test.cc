// Deadlines are judged by the time that Steps take. Histories on a device whose times are given.
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "coordinator/scheduler/client.h"
#include "coordinator/scheduler/scheduler_time_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

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

TEST_F(DeadlineTest, AnswersFarAboveTheAverageGoOn) {
  Start();
  for (int i = 0; i < 64; ++i) Generate(4, 100'000);
  RunUntil([&] { return clients.back()->tokens[0].size() >= 4'000; });
  EXPECT_TRUE(Refused(2'000, 300 * (step + 64 * row))) << "none of them ends in the time of 300 tokens";
  EXPECT_FALSE(Refused(2'000, 2'000 * (step + 64 * row)));
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
