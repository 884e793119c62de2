// Many requests over one kept text share its pages, and disturb each other in nothing.
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/cache_page.h"
#include "gtest/gtest.h"
#include "tests/cluster/local_cluster.h"
#include "tests/parity/golden_case.h"

namespace goldfinch {
namespace {

using Ids = std::vector<int32_t>;

// The first `size` tokens of the case, again and again.
Ids TextOf(const GoldenCase& golden, size_t size) {
  Ids text;
  while (text.size() < size) text.insert(text.end(), golden.tokens.begin(), golden.tokens.end());
  text.resize(size);
  return text;
}

Ids operator+(Ids text, const Ids& more) {
  text.insert(text.end(), more.begin(), more.end());
  return text;
}

// Keeps the document as "document": requests over a name use what is kept however long it would take to read.
void Keep(LocalCluster& cluster, const Ids& document) {
  const auto read =
      cluster.Generate(document, 0, [](Request* request) { request->keep_as = Request::KeepAs{.name = "document"}; });
  ASSERT_TRUE(read->Wait().ok()) << read->Wait();
}

// (golden case, type of the cache, stages)
class SharedTextsTest : public ::testing::TestWithParam<std::tuple<std::string, std::string, int>> {};

TEST_P(SharedTextsTest, WhatOthersDoWithATextChangesNoToken) {
  const auto& [name, cache_dtype, stages] = GetParam();
  const GoldenCase golden = ReadGoldenCase(name);
  LocalCluster cluster(golden.checkpoint->path(), stages,
                       [&](CoordinatorOptions* options) { options->membership.cache_dtype = cache_dtype; });
  cluster.AwaitReady();
  const Ids document = TextOf(golden, 333);
  std::vector<std::shared_ptr<WatchedRequest>> cold, warm;
  std::vector<uint64_t> numbers(8);
  const auto ask = [&](size_t i, bool cache) {
    const Ids question = {static_cast<int32_t>(3 + i), 9, static_cast<int32_t>(40 + i)};
    const auto edit = [&](Request* request) {
      request->cache = cache;
      if (cache) request->context = "document";
      request->generate->samples = i % 4 == 0 ? 3 : 1;
      request->generate->sampling.temperature = 1;
      request->generate->sampling.seed = 100 * i;
      request->generate->sampling.banned_tokens = {0};
    };
    // Some pause, and go on or are cancelled when others have ended.
    return cluster.Generate(cache ? question : document + question, 40 + static_cast<int64_t>(i), edit, &numbers[i],
                            cache && i % 4 == 2 ? 5 : 0);
  };
  for (size_t i = 0; i < numbers.size(); ++i) {
    cold.push_back(ask(i, /*cache=*/false));
    ASSERT_TRUE(cold.back()->Wait().ok()) << cold.back()->Wait();
  }
  Keep(cluster, document);
  for (size_t i = 0; i < numbers.size(); ++i) warm.push_back(ask(i, /*cache=*/true));
  for (size_t i = 0; i < numbers.size(); ++i) {
    if (i % 4 == 2) warm[i]->AwaitTokens(5);
    ASSERT_TRUE(i % 4 == 2 || warm[i]->Wait().ok()) << warm[i]->Wait();
  }
  cluster.coordinator().Cancel(numbers[2], absl::CancelledError(""));
  EXPECT_FALSE(warm[2]->Wait().ok());
  cluster.coordinator().Resume(numbers[6]);
  ASSERT_TRUE(warm[6]->Wait().ok()) << warm[6]->Wait();
  for (size_t i = 0; i < numbers.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(warm[i]->usage().cached_tokens, 333);
    if (i == 2) continue;
    for (int sample = 0; sample < (i % 4 == 0 ? 3 : 1); ++sample) {
      EXPECT_EQ(warm[i]->tokens(sample), cold[i]->tokens(sample));
    }
  }
  cluster.ExpectNothingHeld();
}

std::string NameOf(const testing::TestParamInfo<SharedTextsTest::ParamType>& info) {
  return absl::StrCat(std::get<0>(info.param), "_", std::get<1>(info.param), "_", std::get<2>(info.param), "_stages");
}

INSTANTIATE_TEST_SUITE_P(Families, SharedTextsTest,
                         testing::Combine(testing::ValuesIn(GoldenNames()), testing::Values("f32"), testing::Values(2)),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(CacheTypes, SharedTextsTest,
                         testing::Combine(testing::Values("goldfinch"), testing::Values("f16", "bf16", "int8"),
                                          testing::Values(1, 3)),
                         NameOf);

// The caches have room for six copies of the text, with what a question about it takes.
TEST(SharedTextPagesTest, ManyQuestionsTakeThePagesOfTheirTextOnce) {
  constexpr int64_t kQuestions = 64, kPages = 20;
  const GoldenCase golden = ReadGoldenCase("goldfinch");
  LocalCluster cluster(golden.checkpoint->path(), /*workers=*/2, [](CoordinatorOptions* options) {
    options->membership.partition.max_sequences = 80;
    options->membership.partition.cache_tokens = (kPages + 2 * kQuestions) * kCachePageTokens;
  });
  cluster.AwaitReady();
  const Ids document = TextOf(golden, kPages * kCachePageTokens + 10);
  Keep(cluster, document);
  cluster.ExpectNothingHeld();
  const double read_tokens = cluster.Metric("prompt_tokens_total");
  std::vector<std::shared_ptr<WatchedRequest>> questions;
  std::vector<uint64_t> numbers(kQuestions);
  for (int64_t i = 0; i < kQuestions; ++i) {
    const auto token = static_cast<int32_t>(1 + i);
    const auto edit = [](Request* request) {
      request->context = "document";
      request->generate->sampling.banned_tokens = {0};  // which ends an answer
    };
    questions.push_back(cluster.Generate({token, 7}, 6, edit, &numbers[i], /*pause_at=*/3));
  }
  for (const auto& question : questions) question->AwaitTokens(3);
  // None has ended, so all run at once.
  cluster.AwaitMetric("cache_tokens_used", (kPages + kQuestions) * kCachePageTokens);
  for (const uint64_t number : numbers) cluster.coordinator().Resume(number);
  for (const auto& question : questions) {
    ASSERT_TRUE(question->Wait().ok()) << question->Wait();
    EXPECT_EQ(question->usage().cached_tokens, static_cast<int64_t>(document.size()));
    EXPECT_EQ(question->usage().parkings, 0);
  }
  EXPECT_EQ(cluster.Metric("prompt_tokens_total") - read_tokens, 2 * kQuestions);
  cluster.ExpectNothingHeld();
}

}  // namespace
}  // namespace goldfinch
