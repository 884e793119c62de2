// Short requests beside long ones: what is kept for them, and that neither waits for ever.
#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/stage_memory.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/scheduler_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

constexpr int64_t kMillion = 1 << 20;
constexpr double kStepSeconds = 0.02;

std::shared_ptr<FakeClient> Sink(int samples = 1) { return std::make_shared<FakeClient>(samples); }

std::function<void(Request*)> Of(const std::string& name, int samples = 1, int priority = 0) {
  return [client = std::make_shared<Client>(Client{name, {}}), samples, priority](Request* request) {
    request->client = client;
    request->priority = priority;
    request->generate->samples = samples;
  };
}

// 64 slots and caches of so many pages.
struct ShortCluster : FakeCluster {
  explicit ShortCluster(int64_t pages, bool overcommit = true) : FakeCluster(QueueLimits{}, 1, overcommit) {
    step_seconds = kStepSeconds;
    GroupCapacity capacity = Roomy();
    capacity.cache_tokens = pages * kCachePageTokens;
    capacity.max_sequence_tokens = 2 * kMillion;
    capacity.max_step_tokens = 512;
    Up(0, capacity);
  }
  // What a request with a prompt of 20 tokens waits.
  int StepsToFirstToken(const std::function<void(Request*)>& edit) {
    const auto sink = Sink();
    Generate(FakePrompt(20), 20, sink, edit);
    const double start = now;
    while (sink->tokens[0].empty() && now < start + 100) RunUntil(now + step_seconds);
    return static_cast<int>((now - start) / step_seconds + 0.5);
  }
};

// ---- A share of the slots ----

TEST(SchedulerShortTest, OneRequestOfManyLongSequencesDoesNotKeepShortOnesOut) {
  for (const bool overcommit : {false, true}) {
    for (const int priority : {0, 100}) {
      for (const char* other : {"same", "other"}) {
        SCOPED_TRACE(absl::StrCat(other, " client, priority ", priority, overcommit ? ", overcommit" : ""));
        // Room for four sequences of a million.
        ShortCluster cluster(4 * kMillion / kCachePageTokens, overcommit);
        const auto hog = Sink(64);
        cluster.Generate(FakePrompt(20), kMillion - 20, hog, Of("same", 64, priority));
        cluster.RunUntil(20);
        EXPECT_EQ(cluster.scheduler.Load(0).sequences, overcommit ? 56 : 3);
        for (int i = 0; i < 20; ++i) {
          EXPECT_LE(cluster.StepsToFirstToken(Of(other)), 3);
          cluster.RunUntil(cluster.now + 3 * kStepSeconds);
        }
        // They take each other's slots if there are more of them.
        for (int i = 0; i < 20; ++i) EXPECT_LE(cluster.StepsToFirstToken(Of("same")), 22);
        cluster.scheduler.CancelAll(absl::CancelledError(""), cluster.now);
        EXPECT_EQ(hog->usage.parkings, 0) << "nothing is read again";
        ExpectNothingLeft(cluster);
      }
    }
  }
}

TEST(SchedulerShortTest, ManyLongRequestsOfOneSequenceTakeAllSlotsUntilAShortOneHasWaitedForItsTurn) {
  ShortCluster cluster(kMillion);
  std::vector<std::shared_ptr<FakeClient>> sinks;
  for (int i = 0; i < 64; ++i) cluster.Generate(FakePrompt(20, i), 3000, sinks.emplace_back(Sink()), Of("one"));
  cluster.RunUntil(10);
  EXPECT_EQ(cluster.scheduler.Load(0).sequences, 64) << "users of one sequence each, behind one address";
  const int turn = static_cast<int>(Scheduler::kTurnSeconds / kStepSeconds);
  EXPECT_LE(cluster.StepsToFirstToken(Of("one")), turn + 3);
  EXPECT_LE(cluster.StepsToFirstToken(Of("another")), 3);
  EXPECT_LE(cluster.StepsToFirstToken(Of("a third", 1, 100)), 3);
  cluster.RunAll();
  for (int i = 0; i < 64; ++i) EXPECT_EQ(sinks[i]->tokens[0], FakeAnswer(FakePrompt(20, i), 0, 3000)) << i;
  EXPECT_LE(cluster.scheduler.TakeEvents().parkings, 3);
  ExpectNothingLeft(cluster);
}

TEST(SchedulerShortTest, AHigherPriorityGetsASlotOfALowerOneOfAnyClient) {
  for (const char* other : {"same", "other"}) {
    SCOPED_TRACE(other);
    ShortCluster cluster(kMillion);
    std::vector<std::shared_ptr<FakeClient>> sinks;
    for (int i = 0; i < 64; ++i) cluster.Generate(FakePrompt(20, i), 3000, sinks.emplace_back(Sink()), Of("same"));
    cluster.RunUntil(2);
    const auto high = Sink(), low = Sink();
    cluster.Generate(FakePrompt(100), 2000, high, Of(other, 1, 100));
    cluster.Generate(FakePrompt(100), 2000, low, Of("same"));
    cluster.RunUntil(cluster.now + 3 * kStepSeconds);
    EXPECT_FALSE(high->tokens[0].empty());
    EXPECT_TRUE(low->tokens[0].empty());
    cluster.RunAll();
    for (int i = 0; i < 64; ++i) EXPECT_EQ(sinks[i]->tokens[0], FakeAnswer(FakePrompt(20, i), 0, 3000)) << i;
    EXPECT_EQ(cluster.scheduler.TakeEvents().parkings, 1);
  }
}

// ---- Small requests and a large one that waits ----

// The slots that 40 sequences have left are of no use to a request of 32 whose prompt does not fit beside them.
class LargeRequestTest : public testing::Test {
 protected:
  LargeRequestTest() {
    // Each reserves 37 pages.
    for (int i = 0; i < 40; ++i) cluster_.Generate(FakePrompt(2000, i), 1000, running_.emplace_back(Sink()), Of("one"));
    cluster_.RunUntil(5);
    cluster_.Generate(FakePrompt(30'000), 300, large_, Of("one", 32));
    EXPECT_EQ(cluster_.scheduler.Load(0).sequences, 40);
  }

  ShortCluster cluster_{1900};
  std::vector<std::shared_ptr<FakeClient>> running_;
  std::shared_ptr<FakeClient> large_ = Sink(32);
};

TEST_F(LargeRequestTest, DoesNotBlockSmallOnesWhileItWaits) {
  while (cluster_.now < 5 + 2 * Scheduler::kTurnSeconds) {
    EXPECT_LE(cluster_.StepsToFirstToken(Of("one")), 3) << cluster_.now;
    EXPECT_LE(cluster_.StepsToFirstToken(Of("another")), 3) << cluster_.now;
    cluster_.RunUntil(cluster_.now + 0.5);
  }
  EXPECT_TRUE(large_->tokens[0].empty()) << "it waits all the time";
}

TEST_F(LargeRequestTest, IsAdmittedThoughSmallOnesKeepArriving) {
  std::vector<std::shared_ptr<FakeClient>> small;
  const auto all_begun = [&] {
    return std::none_of(large_->tokens.begin(), large_->tokens.end(), [](const auto& one) { return one.empty(); });
  };
  double running_ended = 0;
  while (!all_begun() && cluster_.now < 100) {
    while (cluster_.scheduler.waiting() < 4) {
      const std::string name = small.size() % 2 == 0 ? "one" : "another";
      cluster_.Generate(FakePrompt(20), 100 + static_cast<int64_t>(small.size() % 7), small.emplace_back(Sink()),
                        Of(name));
    }
    cluster_.RunUntil(cluster_.now + kStepSeconds);
    const bool ended = std::all_of(running_.begin(), running_.end(), [](const auto& one) { return one->status; });
    if (!ended) running_ended = cluster_.now;
  }
  EXPECT_GT(running_ended, 5 + Scheduler::kTurnSeconds);
  // It needs what is running to end, and then reads 30,000 tokens beside the small ones.
  EXPECT_LE(cluster_.now, running_ended + Scheduler::kTurnSeconds + 4);
  const auto ended = std::count_if(small.begin(), small.end(), [](const auto& one) { return one->status; });
  EXPECT_GT(ended, 20) << "they run while it waits";
  cluster_.RunAll();
  for (int i = 0; i < 32; ++i) EXPECT_EQ(large_->tokens[i], FakeAnswer(FakePrompt(30'000), i, 300)) << i;
  ExpectNothingLeft(cluster_);
}

TEST(SchedulerShortTest, TheSequencesOfALargeRequestAreAdmittedOneByOneAmongSmallOnesWithoutEnd) {
  for (const char* other : {"same", "other"}) {
    SCOPED_TRACE(other);
    ShortCluster cluster(10'000);
    std::vector<std::shared_ptr<FakeClient>> small;
    const auto keep_busy = [&] {
      while (cluster.scheduler.waiting() < 4) {
        cluster.Generate(FakePrompt(20), 100 + static_cast<int64_t>(small.size() % 7), small.emplace_back(Sink()),
                         Of(other));
      }
    };
    for (int i = 0; i < 200; ++i) {
      keep_busy();
      cluster.RunUntil(cluster.now + kStepSeconds);
    }
    EXPECT_EQ(cluster.scheduler.Load(0).sequences, 64);
    const auto large = Sink(32);
    cluster.Generate(FakePrompt(100), 3000, large, Of("same", 32));
    const double start = cluster.now;
    const auto all_begun = [&] {
      return std::none_of(large->tokens.begin(), large->tokens.end(), [](const auto& one) { return one.empty(); });
    };
    while (!all_begun() && cluster.now < start + 100) {
      keep_busy();
      cluster.RunUntil(cluster.now + kStepSeconds);
    }
    EXPECT_LE(cluster.now - start, 107 * kStepSeconds + 1) << "when those that ran have ended";
    cluster.scheduler.CancelAll(absl::CancelledError(""), cluster.now);
    ExpectNothingLeft(cluster);
  }
}

TEST(SchedulerShortTest, ARequestThatNeedsEverythingIsNotStarvedByShortOnes) {
  for (const char* other : {"same", "other"}) {
    SCOPED_TRACE(other);
    ShortCluster cluster(1000, /*overcommit=*/false);
    std::vector<std::shared_ptr<FakeClient>> small;
    const auto keep_busy = [&] {
      while (cluster.scheduler.waiting() < 4) {
        cluster.Generate(FakePrompt(20), 100 + static_cast<int64_t>(small.size() % 7), small.emplace_back(Sink()),
                         Of(other));
      }
    };
    keep_busy();
    const auto large = Sink();
    cluster.Generate(FakePrompt(63'900), 100, large, Of("same"));
    while (large->tokens[0].empty() && cluster.now < 100) {
      keep_busy();
      cluster.RunUntil(cluster.now + kStepSeconds);
    }
    EXPECT_LE(cluster.now, Scheduler::kTurnSeconds + 107 * kStepSeconds + 63'900 / 512 * kStepSeconds + 2);
    cluster.RunAll();
    EXPECT_TRUE(large->status->ok());
    ExpectNothingLeft(cluster);
  }
}

// Whoever runs alone may have all pages; a short request of the same client gets some back.
TEST(SchedulerShortTest, OneSequenceThatHoldsAllPagesGivesWay) {
  ShortCluster cluster(200, /*overcommit=*/false);
  const auto hog = Sink();
  cluster.Generate(FakePrompt(200 * kCachePageTokens - 2'000), 2'000, hog, Of("same"));
  cluster.RunUntil(3);
  EXPECT_LE(cluster.StepsToFirstToken(Of("same")), (Scheduler::kTurnSeconds + 1) / kStepSeconds);
  ExpectNothingLeft(cluster);
  EXPECT_EQ(hog->tokens[0].size(), 2'000U);
}

}  // namespace
}  // namespace goldfinch
