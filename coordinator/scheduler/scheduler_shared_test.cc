// Requests that begin with one kept text share its pages, which are counted once.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/cache_page.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/scheduler_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

constexpr int64_t kPages = 20;  // that are full of the document
// Its last page is each one's own.
const std::vector<int32_t> kDocument = FakePrompt(kPages * kCachePageTokens + 10);

std::vector<int32_t> Question(int32_t i) {
  std::vector<int32_t> ids = kDocument;
  ids.insert(ids.end(), {i + 1, 7, 8});
  return ids;
}

// A group of so many pages that keeps the document.
struct Keeping {
  explicit Keeping(int64_t pages) {
    cluster.Keep();
    cluster.keeper->save_at = [](int64_t tokens) {
      return tokens == static_cast<int64_t>(kDocument.size()) ? std::vector<int64_t>{tokens} : std::vector<int64_t>();
    };
    GroupCapacity capacity = Roomy();
    capacity.cache_tokens = pages * kCachePageTokens;
    capacity.max_step_tokens = 256;
    cluster.Up(0, capacity);
    cluster.Generate(kDocument, 1, NewClient());
    cluster.RunAll();
    EXPECT_EQ(ReservedPages(), 0);
  }
  int64_t ReservedPages() const { return cluster.scheduler.Load(0).cache_tokens_reserved / kCachePageTokens; }
  void Ask(int count, int64_t max_tokens) {
    for (int i = 0; i < count; ++i) cluster.Generate(Question(i), max_tokens, sinks.emplace_back(NewClient()));
  }
  void ExpectAnswers(int64_t max_tokens) {
    for (size_t i = 0; i < sinks.size(); ++i) {
      EXPECT_EQ(sinks[i]->tokens[0], FakeAnswer(Question(static_cast<int32_t>(i)), 0, max_tokens)) << i;
      EXPECT_EQ(sinks[i]->usage.cached_tokens, static_cast<int64_t>(kDocument.size()));
    }
  }

  FakeCluster cluster;
  std::vector<std::shared_ptr<FakeClient>> sinks;
};

TEST(SchedulerSharedTest, ManyQuestionsTakeThePagesOfTheirTextOnce) {
  Keeping keeping(kPages + 40);
  keeping.Ask(32, 20);
  EXPECT_EQ(keeping.cluster.scheduler.Load(0).sequences, 32);
  EXPECT_EQ(keeping.ReservedPages(), kPages + 32);
  keeping.cluster.Plan(0);
  EXPECT_EQ(keeping.cluster.groups[0]->pages_used(), kPages + 32);
  EXPECT_EQ(keeping.cluster.scheduler.Load(0).cache_tokens_used, (kPages + 32) * kCachePageTokens);
  keeping.cluster.RunAll();
  keeping.ExpectAnswers(20);
  EXPECT_EQ(keeping.cluster.scheduler.TakeEvents().parkings, 0);
  ExpectNothingLeft(keeping.cluster);
}

// The text is counted for as long as anybody has it, whoever was the first.
TEST(SchedulerSharedTest, ThePagesOfATextStayUntilTheLastOneEnds) {
  Keeping keeping(200);
  FakeCluster& cluster = keeping.cluster;
  std::vector<uint64_t> numbers;
  for (int i = 0; i < 3; ++i) numbers.push_back(cluster.Generate(Question(i), 20, NewClient()));
  cluster.Plan(0);
  for (const int gone : {0, 2, 1}) {
    EXPECT_EQ(keeping.ReservedPages(), cluster.groups[0]->pages_used());
    cluster.scheduler.Cancel(numbers[gone], absl::CancelledError(""), cluster.now);
    const auto left = static_cast<int64_t>(cluster.scheduler.Load(0).sequences);
    EXPECT_EQ(keeping.ReservedPages(), left > 0 ? kPages + left : 0);
    cluster.Answer(0);
    cluster.Plan(0);
    EXPECT_EQ(cluster.groups[0]->pages_used(), keeping.ReservedPages());
  }
  ExpectNothingLeft(cluster);
}

TEST(SchedulerSharedTest, SamplesShareWithOtherRequests) {
  Keeping keeping(kPages + 40);
  FakeCluster& cluster = keeping.cluster;
  const auto many = NewClient(4), whole = NewClient(4);
  const auto four = [](Request* request) { request->generate->samples = 4; };
  cluster.Generate(Question(1), 20, many, four);
  cluster.Generate(kDocument, 20, whole, four);
  keeping.Ask(4, 20);
  EXPECT_EQ(cluster.scheduler.Load(0).sequences, 12);
  EXPECT_EQ(keeping.ReservedPages(), kPages + 12);
  cluster.RunAll();
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(many->tokens[i], FakeAnswer(Question(1), i, 20));
    EXPECT_EQ(whole->tokens[i], FakeAnswer(kDocument, i, 20));
  }
  keeping.ExpectAnswers(20);
  ExpectNothingLeft(cluster);
}

// To park one who shares a text frees only what is its own; with the last one goes the text.
TEST(SchedulerSharedTest, WhoNeedsTheRoomOfTheTextGetsItWhenAllWhoHaveItAreParked) {
  Keeping keeping(kPages + 12);
  FakeCluster& cluster = keeping.cluster;
  cluster.step_seconds = 0.05;
  keeping.Ask(4, 50);
  EXPECT_EQ(cluster.scheduler.Load(0).sequences, 4);
  for (int i = 0; i < 10; ++i) {
    cluster.Plan(0);
    cluster.Answer(0);
  }
  const auto urgent = NewClient();
  cluster.Generate(FakePrompt(1100, 90), 30, urgent, [](Request* request) { request->priority = 1; });
  EXPECT_EQ(cluster.scheduler.Load(0).sequences, 1);
  EXPECT_EQ(keeping.ReservedPages(), 18);
  cluster.RunAll();
  EXPECT_EQ(urgent->tokens[0], FakeAnswer(FakePrompt(1100, 90), 0, 30));
  keeping.ExpectAnswers(50);
  ExpectNothingLeft(cluster);
}

// Clients count what they use themselves, whoever uses it as well.
TEST(SchedulerSharedTest, ATextOfSeveralClientsCountsForEach) {
  Keeping keeping(200);
  FakeCluster& cluster = keeping.cluster;
  const auto as = [](const std::string& name) {
    return [client = std::make_shared<Client>(Client{name, {}})](Request* request) { request->client = client; };
  };
  std::vector<std::shared_ptr<FakeClient>> sinks;
  for (int32_t i = 0; i < 4; ++i) {
    cluster.Generate(Question(i), 20, sinks.emplace_back(NewClient()), as(i % 2 == 0 ? "a" : "b"));
  }
  EXPECT_EQ(keeping.ReservedPages(), kPages + 4);
  cluster.RunAll();
  for (size_t i = 0; i < sinks.size(); ++i) {
    EXPECT_EQ(sinks[i]->tokens[0], FakeAnswer(Question(static_cast<int32_t>(i)), 0, 20));
  }
  ExpectNothingLeft(cluster);
}

// What is short reserves its worst case by itself, beside those that share.
TEST(SchedulerSharedTest, ShortRequestsCountByThemselves) {
  FakeCluster cluster;
  cluster.Keep();
  GroupCapacity capacity = Roomy();
  capacity.max_step_tokens = 256;
  cluster.Up(0, capacity);
  cluster.Generate(FakePrompt(700), 1, NewClient());
  cluster.RunAll();
  const auto brief = NewClient(), lengthy = NewClient();
  cluster.Generate(FakePrompt(700), 30, brief);
  EXPECT_EQ(cluster.scheduler.Load(0).cache_tokens_reserved, 12 * kCachePageTokens);
  cluster.Generate(FakePrompt(700), 2000, lengthy, [](Request* request) { request->generate->sampling.seed = 5; });
  cluster.Plan(0);
  EXPECT_LE(cluster.groups[0]->pages_used(), 12) << "they share all the same";
  cluster.RunAll();
  EXPECT_EQ(brief->tokens[0], FakeAnswer(FakePrompt(700), 0, 30));
  EXPECT_EQ(lengthy->tokens[0], FakeAnswer(FakePrompt(700), 5, 2000));
  ExpectNothingLeft(cluster);
}

}  // namespace
}  // namespace goldfinch
