// What sequences reserve of the caches, and what happens when it was too little.
#include <algorithm>
#include <functional>
#include <memory>
#include <string>
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

std::shared_ptr<FakeClient> Sink(int samples = 1) { return std::make_shared<FakeClient>(samples); }

// A client whose samples stop after so many tokens.
std::shared_ptr<FakeClient> StopsAfter(size_t tokens, int samples = 1) {
  auto sink = Sink(samples);
  sink->verdict = [client = sink.get(), tokens](int sample, int32_t) {
    return client->tokens[sample].size() >= tokens ? Verdict::kStop : Verdict::kContinue;
  };
  return sink;
}

std::function<void(Request*)> Of(const std::string& name, int priority = 0) {
  return [client = std::make_shared<Client>(Client{name, {}}), priority](Request* request) {
    request->client = client;
    request->priority = priority;
  };
}

// Caches of so many pages.
GroupCapacity Pages(int64_t pages) {
  GroupCapacity capacity = Roomy();
  capacity.cache_tokens = pages * kCachePageTokens;
  capacity.max_sequence_tokens = 1 << 20;
  capacity.max_step_tokens = 256;
  return capacity;
}

int64_t ReservedPages(FakeCluster& cluster) {
  return cluster.scheduler.Load(0).cache_tokens_reserved / kCachePageTokens;
}

// ---- What is reserved ----

TEST(SchedulerMemoryTest, WhatIsLikelyIsReservedNotTheLongestPossibleCourse) {
  for (const bool overcommit : {false, true}) {
    FakeCluster cluster(QueueLimits{}, 1, overcommit);
    cluster.Up(0, Pages(1000));
    std::vector<std::shared_ptr<FakeClient>> sinks;
    // Each may take 938 pages, and takes three.
    for (int i = 0; i < 16; ++i) cluster.Generate(FakePrompt(100, i), 59'901, sinks.emplace_back(StopsAfter(50)));
    EXPECT_EQ(cluster.scheduler.running(), overcommit ? 16 : 1);
    EXPECT_EQ(ReservedPages(cluster), overcommit ? 16 * 6 : 938) << "a prompt of 100 and an answer of 256";
    cluster.RunAll();
    for (int i = 0; i < 16; ++i) EXPECT_EQ(sinks[i]->tokens[0], FakeAnswer(FakePrompt(100, i), 0, 50)) << i;
    EXPECT_EQ(cluster.scheduler.TakeEvents().parkings, 0);
    ExpectNothingLeft(cluster);
  }
}

TEST(SchedulerMemoryTest, WhatIsLikelyIsLearnedFromAnswers) {
  FakeCluster cluster;
  cluster.Up(0, Pages(1 << 14));
  const auto reserved_for_one = [&] {
    const uint64_t number = cluster.Generate(FakePrompt(1), 100'000, Sink());
    const int64_t pages = ReservedPages(cluster);
    cluster.scheduler.Cancel(number, absl::CancelledError(""), cluster.now);
    return pages;
  };
  EXPECT_EQ(reserved_for_one(), 5);
  for (int i = 0; i < 200; ++i) cluster.Generate(FakePrompt(1), 100'000, StopsAfter(3));
  cluster.RunAll();
  EXPECT_EQ(reserved_for_one(), 2);
  for (int i = 0; i < 300; ++i) cluster.Generate(FakePrompt(1), 100'000, StopsAfter(1000));
  cluster.RunAll();
  EXPECT_GE(reserved_for_one(), 15);
}

TEST(SchedulerMemoryTest, ASequenceGrowsPageByPageAsItDecodes) {
  FakeCluster cluster;
  cluster.Up(0, Pages(1000));
  const auto sink = Sink();
  cluster.Generate(FakePrompt(10), 4000, sink);
  for (int64_t tokens = 0; !sink->status; tokens = static_cast<int64_t>(sink->tokens[0].size())) {
    const GroupLoad load = cluster.scheduler.Load(0);
    EXPECT_LE(load.cache_tokens_used, load.cache_tokens_reserved);
    EXPECT_LE(load.cache_tokens_reserved, std::max<int64_t>(5 * kCachePageTokens, 10 + tokens + kCachePageTokens));
    ASSERT_GT(cluster.Plan(0), 0);
    cluster.Answer(0);
  }
  EXPECT_EQ(sink->tokens[0], FakeAnswer(FakePrompt(10), 0, 4000));
  ExpectNothingLeft(cluster);
}

TEST(SchedulerMemoryTest, TheLoadTellsWhatIsUsedAndWhatIsReserved) {
  FakeCluster cluster;
  cluster.Up(0, Pages(1000));
  const auto sink = Sink(3);
  cluster.Generate(FakePrompt(200), 2000, sink, [](Request* request) { request->generate->samples = 3; });
  cluster.Generate(FakePrompt(700, 3), 2000, Sink());
  for (int step = 0; step < 100; ++step) {
    cluster.Plan(0);
    EXPECT_EQ(cluster.scheduler.Load(0).cache_tokens_used, cluster.groups[0]->pages_used() * kCachePageTokens);
    cluster.Answer(0);
  }
  EXPECT_GT(sink->tokens[2].size(), 80U);
  // Three pages that are shared, two of each of them; and what the second request reads and has read.
  EXPECT_EQ(cluster.scheduler.Load(0).cache_tokens_used, (3 + 3 * 2 + 13) * kCachePageTokens);
}

TEST(SchedulerMemoryTest, WhatCanNeverCompleteIsRefusedAtOnce) {
  for (const bool overcommit : {false, true}) {
    FakeCluster cluster(QueueLimits{}, 1, overcommit);
    cluster.Up(0, Pages(64));
    const auto too_long = Sink(), fits = StopsAfter(5), samples = Sink(8);
    cluster.Generate(FakePrompt(100), 3998, too_long);
    ASSERT_TRUE(too_long->status.has_value());
    EXPECT_THAT(std::string(too_long->status->message()), HasSubstr("4160 with the rest of their pages"));
    cluster.Generate(FakePrompt(100), 3997, fits);
    EXPECT_FALSE(fits->status.has_value());
    // They do not fit together, but one after another.
    cluster.Generate(FakePrompt(100), 2000, samples, [](Request* request) { request->generate->samples = 8; });
    cluster.RunAll();
    EXPECT_TRUE(fits->status->ok());
    for (int i = 0; i < 8; ++i) EXPECT_EQ(samples->tokens[i], FakeAnswer(FakePrompt(100), i, 2000)) << i;
    ExpectNothingLeft(cluster);
  }
}

// ---- When it was too little ----

TEST(SchedulerMemoryTest, FullCachesParkASequenceWithoutALostToken) {
  FakeCluster cluster;
  cluster.Up(0, Pages(64));
  std::vector<std::shared_ptr<FakeClient>> sinks;
  for (int i = 0; i < 4; ++i) cluster.Generate(FakePrompt(10, i), 2000, sinks.emplace_back(Sink()));
  EXPECT_EQ(cluster.scheduler.running(), 4);
  cluster.RunAll();
  const SchedulerEvents events = cluster.scheduler.TakeEvents();
  EXPECT_GE(events.parkings, 2) << "128 pages in all";
  EXPECT_EQ(events.completion_tokens, 4 * 2000) << "each token once";
  EXPECT_LE(cluster.now, 2 * 2000 + 300) << "two at a time";
  for (int i = 0; i < 4; ++i) EXPECT_EQ(sinks[i]->tokens[0], FakeAnswer(FakePrompt(10, i), 0, 2000)) << i;
  ExpectNothingLeft(cluster);
}

// Runs four requests until the first is parked, and returns its index.
int FirstParked(std::vector<int64_t> prompts, std::vector<std::function<void(Request*)>> edits) {
  FakeCluster cluster;
  cluster.Up(0, Pages(64));
  std::vector<std::shared_ptr<FakeClient>> sinks;
  for (size_t i = 0; i < prompts.size(); ++i) {
    cluster.Generate(FakePrompt(prompts[i]), 3000, sinks.emplace_back(Sink()), edits[i]);
  }
  EXPECT_EQ(cluster.scheduler.waiting(), 0);
  while (cluster.scheduler.waiting() == 0 && cluster.now < 5000) {
    cluster.Plan(0);
    cluster.Answer(0);
  }
  cluster.scheduler.CancelAll(absl::CancelledError(""), cluster.now);
  const auto parked = [](const auto& sink) { return sink->usage.parkings > 0; };
  EXPECT_EQ(std::count_if(sinks.begin(), sinks.end(), parked), 1);
  return static_cast<int>(std::find_if(sinks.begin(), sinks.end(), parked) - sinks.begin());
}

TEST(SchedulerMemoryTest, WhoIsParkedHasTheLowestPriorityThenTheLargestShareThenTheFewestTokens) {
  const auto a = Of("a"), b = Of("b");
  EXPECT_EQ(FirstParked({10, 500, 200}, {Of("a", 1), Of("b", 0), Of("a", 1)}), 1) << "the lowest priority";
  EXPECT_EQ(FirstParked({400, 10, 200}, {a, b, a}), 2) << "of the client with the largest share";
  EXPECT_EQ(FirstParked({400, 10, 200}, {a, a, a}), 1) << "the fewest tokens to read again";
}

TEST(SchedulerMemoryTest, WhoeverIsParkedReservesMoreEachTimeSoThatAllComeToTheirEnd) {
  // Each needs all there is in the end.
  FakeCluster cluster;
  cluster.Up(0, Pages(64));
  std::vector<std::shared_ptr<FakeClient>> sinks;
  for (int i = 0; i < 8; ++i) cluster.Generate(FakePrompt(10, i), 4087, sinks.emplace_back(Sink()));
  EXPECT_EQ(cluster.scheduler.running(), 8);
  cluster.RunAll();
  const SchedulerEvents events = cluster.scheduler.TakeEvents();
  int most = 0;
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(sinks[i]->tokens[0], FakeAnswer(FakePrompt(10, i), 0, 4087)) << i;
    most = std::max(most, sinks[i]->usage.parkings);
  }
  EXPECT_LE(most, 5) << "what is reserved doubles each time";
  EXPECT_LE(events.reread_tokens, 8 * 4096);
  RecordProperty("parkings", std::to_string(events.parkings));
  RecordProperty("reread_tokens", std::to_string(events.reread_tokens));
  ExpectNothingLeft(cluster);
}

TEST(SchedulerMemoryTest, WhatWasParkedIsNotParkedAgainBeforeItHasUsedUpWhatItReservedThen) {
  FakeCluster cluster;
  cluster.Up(0, Pages(128));
  const auto small = Sink(), ends = Sink(), grows = Sink(), late = Sink();
  const auto run_until = [&](const std::function<bool()>& condition) {
    while (!condition() && cluster.now < 5000) {
      cluster.Plan(0);
      cluster.Answer(0);
    }
    EXPECT_TRUE(condition());
  };
  cluster.Generate(FakePrompt(10), 2200, small);
  cluster.Generate(FakePrompt(3000), 400, ends);
  cluster.Generate(FakePrompt(3000), 5000, grows);
  // It has the fewest tokens to read again.
  run_until([&] { return cluster.scheduler.waiting() == 1; });
  const size_t parked_at = small->tokens[0].size();
  run_until([&] { return cluster.scheduler.waiting() == 0; });
  EXPECT_TRUE(ends->status.has_value());
  cluster.Generate(FakePrompt(1800), 3000, late);
  EXPECT_EQ(cluster.scheduler.waiting(), 0);
  // The caches are full again. It still has the fewest tokens, but another one gives way.
  run_until([&] { return cluster.scheduler.waiting() == 1; });
  EXPECT_GT(small->tokens[0].size(), parked_at);
  EXPECT_LT(small->tokens[0].size(), parked_at + 520) << "twice an answer of average length";
  cluster.scheduler.CancelAll(absl::CancelledError(""), cluster.now);
  EXPECT_EQ(small->usage.parkings, 1);
  EXPECT_EQ(late->usage.parkings, 1);
}

TEST(SchedulerMemoryTest, SamplesThatShareAPromptAreParkedOneByOne) {
  FakeCluster cluster;
  cluster.Up(0, Pages(64));
  const auto sink = Sink(6);
  cluster.Generate(FakePrompt(1000), 1000, sink, [](Request* request) { request->generate->samples = 6; });
  EXPECT_EQ(cluster.scheduler.Load(0).sequences, 6);
  cluster.RunAll();
  for (int i = 0; i < 6; ++i) EXPECT_EQ(sink->tokens[i], FakeAnswer(FakePrompt(1000), i, 1000)) << i;
  EXPECT_GE(sink->usage.parkings, 1);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerMemoryTest, NobodyIsParkedForAClientThatDoesNotRead) {
  FakeCluster cluster;
  cluster.step_seconds = 0.001;
  cluster.Up(0, Pages(64));
  const auto slow = Sink(), other = Sink();
  // Its next token needs a sixth page.
  slow->verdict = [&](int, int32_t) { return slow->tokens[0].size() == 311 ? Verdict::kPause : Verdict::kContinue; };
  const uint64_t number = cluster.Generate(FakePrompt(10), 3000, slow);
  cluster.Generate(FakePrompt(10, 5), 3700, other);
  while (!other->status) {
    cluster.Plan(0);
    cluster.Answer(0);
  }
  EXPECT_EQ(other->usage.parkings, 0);
  EXPECT_EQ(slow->tokens[0].size(), 311U);
  cluster.scheduler.Resume(number);
  cluster.RunAll();
  EXPECT_EQ(slow->tokens[0], FakeAnswer(FakePrompt(10), 0, 3000));
  ExpectNothingLeft(cluster);
}

}  // namespace
}  // namespace goldfinch
