#include "worker/stage/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/allocation_counter.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "worker/stage/sampler_test_util.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// ---- Log-probabilities ----

TEST(SamplerTest, LogprobsAreTheModelsOwn) {
  SamplingOptions options;
  options.logprobs = 3;
  options.top_k = 1;
  options.temperature = 0.3;
  options.banned_tokens = {2};
  options.logit_bias = {{1, 50}};
  const Sampler sampler(options, Vocabulary(5, {4}));
  SamplerScratch scratch;
  // Probabilities 0.15, 0.05, 0.2, 0.1 and, of the id that is never sampled but has its part, 0.5.
  std::vector<float> logits = FourLogits();
  logits.push_back(0);
  const Token token = sampler.Sample(logits, 0, scratch).value();
  EXPECT_EQ(token.id, 1);
  EXPECT_NEAR(token.logprob, std::log(0.05), 1e-6);
  ASSERT_EQ(token.top.size(), 3);
  EXPECT_EQ(token.top[0].id, 2);
  EXPECT_NEAR(token.top[0].logprob, std::log(0.2), 1e-6);
  EXPECT_EQ(token.top[1].id, 0);
  EXPECT_NEAR(token.top[1].logprob, std::log(0.15), 1e-6);
  EXPECT_EQ(token.top[2].id, 3);
  EXPECT_NEAR(token.top[2].logprob, std::log(0.1), 1e-6);
}

TEST(SamplerTest, LogprobsChangeNoDraw) {
  std::mt19937 random(3);
  const std::vector<float> logits = RandomLogits(random, 300);
  SamplingOptions options;
  const std::vector<int32_t> without = Draw(Sampler(options, Vocabulary(300)), logits, 100);
  options.logprobs = 20;
  EXPECT_EQ(Draw(Sampler(options, Vocabulary(300)), logits, 100), without);
}

TEST(SamplerTest, LogprobsAsManyAsWantedAndThere) {
  std::mt19937 random(4);
  std::vector<float> logits(5000);
  for (float& logit : logits) logit = static_cast<float>(random() % 100) / 16;
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  double total = 0;
  for (const float logit : logits) total += std::exp(static_cast<double>(logit));
  SamplerScratch scratch;
  for (const int wanted : {0, 1, 20}) {
    const Sampler sampler({.logprobs = wanted}, Vocabulary(5000));
    const Token token = sampler.Sample(logits, 0, scratch).value();
    EXPECT_NEAR(token.logprob, logits[token.id] - std::log(total), 1e-5);
    ASSERT_EQ(token.top.size(), wanted);
    for (int i = 0; i < wanted; ++i) {
      EXPECT_EQ(token.top[i].id, ids[i]);
      EXPECT_NEAR(token.top[i].logprob, logits[ids[i]] - std::log(total), 1e-5);
    }
  }
  const Token token = Sampler({}, Vocabulary(5000)).Sample(logits, 0, scratch).value();
  EXPECT_TRUE(std::isnan(token.logprob));
  EXPECT_TRUE(token.top.empty());
}

// ---- Replays ----

// Logits that depend on the token before, as a model's.
std::vector<float> LogitsAfter(int32_t id) {
  std::mt19937 random(id);
  std::vector<float> logits(200);
  for (float& logit : logits) logit = static_cast<float>(random() % 4096) / 1024 - 2;
  return logits;
}

std::vector<int32_t> Continue(Sampler& sampler, int32_t last, int64_t position, int64_t end) {
  SamplerScratch scratch;
  std::vector<int32_t> ids;
  for (; position < end; ++position) {
    last = sampler.Sample(LogitsAfter(last), position, scratch)->id;
    sampler.Observe(last);
    ids.push_back(last);
  }
  return ids;
}

TEST(SamplerTest, AReplayedSequenceGoesOnAsTheOriginal) {
  const SamplingOptions options = {.temperature = 1.2, .frequency_penalty = 1, .seed = 99};
  const auto vocabulary = Vocabulary(200, {}, {1, 2, 3});
  Sampler original(options, vocabulary);
  const std::vector<int32_t> ids = Continue(original, 17, 10, 110);
  for (const int64_t lost_at : {0, 1, 50, 99}) {
    Sampler restored(options, vocabulary);
    for (int64_t i = 0; i < lost_at; ++i) restored.Observe(ids[i]);
    const int32_t last = lost_at == 0 ? 17 : ids[lost_at - 1];
    EXPECT_EQ(Continue(restored, last, 10 + lost_at, 110), std::vector<int32_t>(ids.begin() + lost_at, ids.end()));
  }
}

TEST(SamplerTest, DrawsArePinned) {
  // Answers of this program on any machine. If they change, running sequences change when their worker is replaced.
  Sampler sampler({.temperature = 1.2, .frequency_penalty = 1, .seed = 99}, Vocabulary(200));
  EXPECT_THAT(Continue(sampler, 17, 10, 22), ElementsAre(31, 167, 87, 128, 173, 24, 145, 56, 58, 140, 166, 124));
}

TEST(SamplerTest, SeedsAndPositionsGiveOtherDraws) {
  const std::vector<float> logits(1000, 0);
  const auto vocabulary = Vocabulary(1000);
  std::set<std::vector<int32_t>> sequences;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SamplingOptions options = Plain();
    options.seed = seed << (seed % 2 == 0 ? 0 : 57);
    sequences.insert(Draw(Sampler(options, vocabulary), logits, 5));
  }
  EXPECT_EQ(sequences.size(), 50);
  const std::vector<int32_t> drawn = Draw(Sampler(Plain(), vocabulary), logits, 100);
  EXPECT_GT(std::set<int32_t>(drawn.begin(), drawn.end()).size(), 80);
}

TEST(SamplerTest, AScratchServesVocabulariesOfAnySize) {
  SamplerScratch scratch;
  const SamplingOptions options = {.logprobs = 3};
  for (const int64_t size : {300, 5, 40, 1000, 7}) {
    std::mt19937 random(size);
    const std::vector<float> logits = RandomLogits(random, size);
    const Sampler sampler(options, Vocabulary(size));
    SamplerScratch fresh;
    EXPECT_EQ(sampler.Sample(logits, 1, scratch)->id, sampler.Sample(logits, 1, fresh)->id) << size;
  }
}

TEST(SamplerTest, AllocatesNothingInSteadyState) {
  std::mt19937 random(5);
  const std::vector<float> logits = RandomLogits(random, 3000);
  for (const double temperature : {0.0, 0.8}) {
    Sampler sampler({.temperature = temperature, .top_k = 100, .logprobs = 20}, Vocabulary(3000));
    SamplerScratch scratch;
    for (int32_t id = 0; id < 100; ++id) sampler.Observe(id);
    EXPECT_TRUE(sampler.Sample(logits, 0, scratch).ok());
    const int64_t before = CountedAllocations().count;
    int64_t failed = 0;
    for (int position = 1; position < 100; ++position) {
      failed += sampler.Sample(logits, position, scratch).ok() ? 0 : 1;
      sampler.Observe(position);
    }
    EXPECT_EQ(CountedAllocations().count, before);
    EXPECT_EQ(failed, 0);
  }
}

// ---- Rows for a back end ----

TEST(SamplerTest, RowsDrawOnABackEndWhatSampleDraws) {
  constexpr int64_t kVocab = 700;
  const auto vocabulary = Vocabulary(kVocab, {3, 4, 77, 698, 699}, {5});
  const std::vector<SamplingOptions> options = {
      {},
      {.temperature = 0},
      {.temperature = 0.7, .top_p = 1, .top_k = 40, .seed = 9},
      {.min_p = 0.05, .logit_bias = {{7, 3}, {8, -100}, {7, 1}}, .banned_tokens = {1, 77, 699}, .seed = 3},
      {.temperature = 3, .top_p = 1, .presence_penalty = 0, .frequency_penalty = 0}};
  std::mt19937 random(11);
  std::vector<Sampler> samplers;
  std::vector<std::vector<float>> logits;
  for (int i = 0; i < 40; ++i) {
    samplers.emplace_back(options[i % options.size()], vocabulary);
    for (int32_t id = 0; id < i; ++id) samplers.back().Observe(id * 13);
    logits.push_back(RandomLogits(random, kVocab));
  }
  logits[17][20] = kInfinity;

  std::vector<std::vector<LogitChange>> changes(samplers.size());
  std::vector<SampleRow> rows;
  std::vector<float> all;
  std::vector<int32_t> expected;
  SamplerScratch scratch;
  for (size_t i = 0; i < samplers.size(); ++i) {
    const auto position = static_cast<int64_t>(100 + i);
    rows.push_back(samplers[i].Row(position, changes[i]));
    all.insert(all.end(), logits[i].begin(), logits[i].end());
    const absl::StatusOr<Token> token = samplers[i].Sample(logits[i], position, scratch);
    expected.push_back(token.ok() ? token->id : -1);
  }
  EXPECT_EQ(expected[17], -1);
  const std::unique_ptr<Backend> backend = MakeCpuBackend(2);
  std::vector<int32_t> tokens(rows.size());
  backend->Sample({all.data(), DType::kF32, {static_cast<int64_t>(rows.size()), kVocab}}, vocabulary->limit(),
                  vocabulary->holes(), rows, absl::MakeSpan(tokens));
  EXPECT_EQ(tokens, expected);
}

// ---- Errors ----

TEST(SamplerTest, LogitsThatAreNotFiniteAreAnError) {
  for (const float bad : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN(), -std::nanf("")}) {
    for (const int where : {0, 15, 16, 37, 39}) {  // 39 is never sampled
      for (const double temperature : {0.0, 1.0}) {
        std::vector<float> logits(40, 1);
        logits[where] = bad;
        SamplerScratch scratch;
        const Sampler sampler({.temperature = temperature, .logprobs = 1}, Vocabulary(40, {39}));
        const auto token = sampler.Sample(logits, 123, scratch);
        EXPECT_EQ(token.status().code(), absl::StatusCode::kInternal);
        EXPECT_THAT(std::string(token.status().message()),
                    HasSubstr(absl::StrCat("logit ", where, " of position 123")));
        logits[where] = 1;
        EXPECT_TRUE(sampler.Sample(logits, 124, scratch).ok()) << "the scratch is good for the next call";
      }
    }
  }
}

TEST(SamplerTest, FiniteExtremesAreFine) {
  constexpr float kMax = std::numeric_limits<float>::max();
  for (const double temperature : {0.0, 1e-300, 1.0, 100.0}) {
    const Sampler sampler({.temperature = temperature, .logit_bias = {{0, -100}, {1, 100}}, .logprobs = 2},
                          Vocabulary(3));
    SamplerScratch scratch;
    const Token token = sampler.Sample(std::vector<float>{-kMax, kMax, 1e-45F}, 0, scratch).value();
    EXPECT_EQ(token.id, 1);
    EXPECT_EQ(token.logprob, 0);
  }
}

TEST(SamplerDeathTest, ChecksWhatTheProgrammerGives) {
  EXPECT_DEATH(std::make_unique<Sampler>(SamplingOptions{.top_p = 2}, Vocabulary(3)), "top_p is 2");
  EXPECT_DEATH(Sampler({}, Vocabulary(3)).Observe(3), "CHECK failed");
  SamplerScratch scratch;
  EXPECT_DEATH(Sampler({}, Vocabulary(3)).Sample(std::vector<float>(4), 0, scratch).IgnoreError(), "4 vs 3");
}

}  // namespace
}  // namespace goldfinch
