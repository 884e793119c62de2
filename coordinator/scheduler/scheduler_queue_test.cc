// The places in the scheduler's queue, and the limits of clients.
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/scheduler_test_util.h"
#include "coordinator/scheduler/token_allowance.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;
using Verdict = RequestSink::Verdict;

std::shared_ptr<FakeClient> Sink(int samples = 1) { return std::make_shared<FakeClient>(samples); }

// A request of the client of this name, with these limits.
std::function<void(Request*)> Of(const std::string& name, const ClientLimits& limits = {}) {
  return [client = std::make_shared<Client>(Client{name, limits})](Request* request) { request->client = client; };
}

std::function<void(Request*)> Bytes(const std::string& name, int64_t bytes) {
  return [of = Of(name), bytes](Request* request) {
    of(request);
    request->held_bytes = bytes;
  };
}

GroupCapacity Slots(int slots) {
  GroupCapacity capacity = Roomy();
  capacity.max_sequences = slots;
  return capacity;
}

std::string Error(const FakeClient& sink) {
  return sink.status ? std::string(sink.status->message()) : "it has not ended";
}

// ---- Places ----

TEST(SchedulerQueueTest, TheNewestOfTheClientWithTheMostPlacesLosesToAClientWithFewer) {
  FakeCluster cluster(/*max_queue=*/4);
  std::vector<std::shared_ptr<FakeClient>> greedy;
  for (int i = 0; i < 5; ++i) cluster.Generate(FakePrompt(4), 1, greedy.emplace_back(Sink()), Of("greedy"));
  EXPECT_THAT(Error(*greedy[4]), HasSubstr("the queue is full: with this one, 5 requests of "));
  EXPECT_THAT(Error(*greedy[4]), HasSubstr("the limits are 4 requests (max_queue) and "));
  const auto first = Sink(), second = Sink(), third = Sink();
  cluster.Generate(FakePrompt(4), 1, first, Of("modest"));
  EXPECT_THAT(Error(*greedy[3]), HasSubstr("; client greedy has the most of it"));
  EXPECT_EQ(greedy[3]->status->code(), absl::StatusCode::kResourceExhausted);
  cluster.Generate(FakePrompt(4), 1, second, Of("modest"));
  EXPECT_TRUE(greedy[2]->status.has_value());
  cluster.Generate(FakePrompt(4), 1, third, Of("modest"));
  EXPECT_TRUE(third->status.has_value()) << "two each: who comes last loses";
  EXPECT_EQ(cluster.scheduler.waiting(), 4);
  cluster.Up(0, Roomy());
  cluster.RunAll();
  for (const auto& one : {greedy[0], greedy[1], first, second}) EXPECT_TRUE(one->status->ok());
}

TEST(SchedulerQueueTest, TheQueueIsBoundedByBytesToo) {
  FakeCluster cluster(QueueLimits{.requests = 100, .bytes = 1 << 20});
  std::vector<std::shared_ptr<FakeClient>> greedy;
  for (int i = 0; i < 4; ++i) {
    cluster.Generate(FakePrompt(4), 1, greedy.emplace_back(Sink()), Bytes("greedy", 300 << 10));
  }
  EXPECT_FALSE(greedy[2]->status.has_value());
  EXPECT_THAT(Error(*greedy[3]), HasSubstr("with this one, 4 requests of 12"));
  EXPECT_THAT(Error(*greedy[3]), HasSubstr("1048576 bytes (max_queue_bytes)"));
  // A client with fewer bytes takes the place of two.
  const auto modest = Sink(), all = Sink();
  cluster.Generate(FakePrompt(4), 1, modest, Bytes("modest", 500 << 10));
  EXPECT_FALSE(modest->status.has_value());
  EXPECT_FALSE(greedy[0]->status.has_value());
  EXPECT_TRUE(greedy[1]->status.has_value());
  EXPECT_TRUE(greedy[2]->status.has_value());
  cluster.Generate(FakePrompt(4), 1, all, Bytes("third", 2 << 20));
  EXPECT_TRUE(all->status.has_value()) << "more than there is";
  EXPECT_EQ(cluster.scheduler.waiting(), 2);
}

TEST(SchedulerQueueTest, PromptsContinuationsAndListsCountAsBytes) {
  FakeCluster cluster(QueueLimits{.requests = 100, .bytes = 100'000});
  const auto small = Sink(), prompt = Sink(), bans = Sink(), continuations = Sink();
  cluster.Generate(FakePrompt(4), 1, small);
  EXPECT_FALSE(small->status.has_value());
  cluster.Generate(FakePrompt(25'000), 1, prompt);
  EXPECT_TRUE(prompt->status.has_value());
  cluster.Generate(FakePrompt(4), 1, bans,
                   [](Request* request) { request->generate->sampling.banned_tokens.resize(25'000); });
  EXPECT_TRUE(bans->status.has_value());
  cluster.Score(FakePrompt(4), {FakePrompt(15'000), FakePrompt(15'000)}, false, continuations);
  EXPECT_TRUE(continuations->status.has_value());
}

TEST(SchedulerQueueTest, WhatRunsTakesNoPlace) {
  FakeCluster cluster(QueueLimits{.requests = 0, .bytes = 0});
  cluster.Up(0, Slots(2));
  const auto first = Sink(), second = Sink(), third = Sink();
  cluster.Generate(FakePrompt(4), 1, first);
  cluster.Generate(FakePrompt(4), 1, second);
  cluster.Generate(FakePrompt(4), 1, third);
  EXPECT_TRUE(third->status.has_value());
  cluster.RunAll();
  EXPECT_TRUE(first->status->ok());
  EXPECT_TRUE(second->status->ok());
}

TEST(SchedulerQueueTest, AParkedRequestLosesItsPlaceOnlyIfItsClientDoesNotRead) {
  FakeCluster cluster(/*max_queue=*/2);
  cluster.Up(0, Slots(1));
  std::vector<std::shared_ptr<FakeClient>> slow;
  std::vector<uint64_t> numbers;
  for (int i = 0; i < 3; ++i) {
    slow.push_back(Sink());
    slow.back()->verdict = [](int, int32_t) { return Verdict::kPause; };
    numbers.push_back(cluster.Generate(FakePrompt(4), 5, slow.back(), Of("slow")));
    cluster.RunUntil(cluster.now + 4);
  }
  EXPECT_EQ(cluster.scheduler.waiting(), 2);
  EXPECT_EQ(cluster.scheduler.running(), 1);
  const auto first = Sink(), second = Sink();
  cluster.Generate(FakePrompt(4), 1000, first, Of("modest"));
  cluster.Generate(FakePrompt(4), 1, second, Of("modest"));
  EXPECT_THAT(Error(*slow[2]), HasSubstr("client slow has the most of it"));
  EXPECT_FALSE(slow[1]->status.has_value());
  EXPECT_FALSE(first->status.has_value());
  EXPECT_FALSE(second->status.has_value());
}

TEST(SchedulerQueueTest, AfterALossNobodyIsTurnedOutForPlacesThatWereTakenByForce) {
  FakeCluster cluster(/*max_queue=*/1);
  cluster.Up(0, Slots(8));
  std::vector<std::shared_ptr<FakeClient>> running;
  for (int i = 0; i < 8; ++i) cluster.Generate(FakePrompt(4), 5, running.emplace_back(Sink()), Of("a"));
  const auto waiting = Sink(), late = Sink();
  cluster.Generate(FakePrompt(4), 5, waiting, Of("a"));
  cluster.Lose(0);
  EXPECT_EQ(cluster.scheduler.waiting(), 9);
  cluster.Generate(FakePrompt(4), 5, late, Of("b"));
  EXPECT_EQ(cluster.scheduler.waiting(), 9) << "one for one";
  EXPECT_TRUE(waiting->status.has_value());
  cluster.Up(0, Slots(8));
  cluster.RunAll();
  for (const auto& one : running) EXPECT_TRUE(one->status->ok());
  EXPECT_TRUE(late->status->ok());
}

// ---- Limits of clients ----

TEST(SchedulerQueueTest, AClientRunsNoMoreRequestsThanItMay) {
  FakeCluster cluster;
  cluster.Up(0, Roomy());
  std::vector<std::shared_ptr<FakeClient>> limited;
  for (int i = 0; i < 5; ++i) {
    cluster.Generate(FakePrompt(4, i), 20, limited.emplace_back(Sink()), Of("limited", {.max_running = 2}));
  }
  const auto other = Sink();
  cluster.Generate(FakePrompt(4), 20, other, Of("other"));
  EXPECT_EQ(cluster.scheduler.running(), 3) << "two and the other's";
  cluster.RunAll();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(limited[i]->tokens[0], FakeAnswer(FakePrompt(4, i), 0, 20));
  ExpectNothingLeft(cluster);
}

TEST(SchedulerQueueTest, AClientQueuesNoMoreRequestsThanItMay) {
  FakeCluster cluster;
  const auto last = Sink(), other = Sink();
  for (int i = 0; i < 3; ++i) cluster.Generate(FakePrompt(4), 1, Sink(), Of("limited", {.max_queued = 3}));
  cluster.Generate(FakePrompt(4), 1, last, Of("limited", {.max_queued = 3}));
  EXPECT_EQ(last->status->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Error(*last), "client limited has 3 requests waiting already, its limit is 3");
  cluster.Generate(FakePrompt(4), 1, other, Of("other", {.max_queued = 3}));
  EXPECT_FALSE(other->status.has_value());
}

TEST(SchedulerQueueTest, RequestsWaitForTheTokensOfTheirClientsMinute) {
  FakeCluster cluster;
  cluster.step_seconds = 0.01;
  cluster.Up(0, Roomy());
  const ClientLimits limits = {.tokens_per_minute = 600};
  const auto first = Sink(), second = Sink(), third = Sink(), other = Sink();
  cluster.Generate(FakePrompt(100), 400, first, Of("limited", limits));
  cluster.Generate(FakePrompt(100), 400, second, Of("limited", limits));
  cluster.Generate(FakePrompt(10), 1, other, Of("other"));
  EXPECT_EQ(cluster.scheduler.running(), 2) << "100 of 600 are left, the second needs 500: 40 s";
  cluster.RunUntil(39);
  EXPECT_TRUE(first->status->ok());
  EXPECT_TRUE(other->status->ok());
  EXPECT_TRUE(second->tokens[0].empty());
  cluster.RunUntil(41);
  EXPECT_FALSE(second->tokens[0].empty());
  cluster.Generate(FakePrompt(100), 400, Sink(), Of("limited", limits));
  cluster.Generate(FakePrompt(100), 400, third, Of("limited", limits));
  EXPECT_EQ(third->status->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Error(*third), HasSubstr("client limited has used up its 600 tokens a minute, and this request may need "
                                       "500 more: try again in 39 s"));
}

TEST(SchedulerQueueTest, TokensThatWereNotUsedAreGivenBack) {
  FakeCluster cluster;
  cluster.step_seconds = 0.01;
  cluster.Up(0, Roomy());
  const ClientLimits limits = {.tokens_per_minute = 600};
  const auto stopped = Sink(), next = Sink();
  stopped->verdict = [](int, int32_t) { return Verdict::kStop; };
  cluster.Generate(FakePrompt(99), 10'000, stopped, Of("limited", limits));
  cluster.Generate(FakePrompt(99), 400, next, Of("limited", limits));
  EXPECT_EQ(cluster.scheduler.waiting(), 0) << "it would have to wait for 1000 s";
  EXPECT_TRUE(next->status.has_value());
  cluster.RunUntil(1);
  EXPECT_TRUE(stopped->status->ok());
  const auto again = Sink();
  cluster.Generate(FakePrompt(99), 400, again, Of("limited", limits));
  EXPECT_EQ(cluster.scheduler.running(), 1);
  ExpectNothingLeft(cluster);
}

TEST(TokenAllowanceTest, FillsByTheMinuteAndPaysItsDebtsFirst) {
  TokenAllowance allowance;
  EXPECT_EQ(allowance.SecondsUntil(1'000'000, 5), 0) << "no limit";
  allowance.SetLimit(120, 10);
  EXPECT_EQ(allowance.SecondsUntil(120, 10), 0);
  EXPECT_EQ(allowance.SecondsUntil(1000, 10), 0) << "more than it can hold";
  allowance.Take(1000, 10);
  EXPECT_EQ(allowance.SecondsUntil(1, 10), 440.5);
  EXPECT_EQ(allowance.SecondsUntil(1, 450), 0.5);
  allowance.GiveBack(500);
  EXPECT_EQ(allowance.SecondsUntil(120, 450), 0);
  EXPECT_TRUE(allowance.full(450)) << "never more than a minute's";
  allowance.Take(60, 450);
  allowance.SetLimit(240, 450);
  EXPECT_EQ(allowance.SecondsUntil(240, 450), 15);
}

TEST(SchedulerQueueTest, ClientsOfTheSameNameAreOne) {
  FakeCluster cluster;
  cluster.Up(0, Roomy());
  // Two objects, as after the keys were read again.
  cluster.Generate(FakePrompt(4), 20, Sink(), Of("a", {.max_running = 1}));
  cluster.Generate(FakePrompt(4), 20, Sink(), Of("a", {.max_running = 1}));
  EXPECT_EQ(cluster.scheduler.running(), 1);
}

}  // namespace
}  // namespace goldfinch
