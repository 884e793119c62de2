#include "worker/stage/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"

namespace {
int64_t allocations = 0;
}  // namespace

// Counts what the program allocates, for the test that sampling does not. Not inlined, or GCC takes new and free for a
// mismatch.
[[gnu::noinline]] void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(bytes);
}
[[gnu::noinline]] void* operator new(size_t bytes) {
  if (void* memory = operator new(bytes, std::nothrow)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Every id below `size` is sampleable, but for `holes`; those of `free` repeat freely.
std::shared_ptr<const SamplerVocabulary> Vocabulary(int64_t size, const std::vector<int32_t>& holes = {},
                                                    const std::vector<int32_t>& free = {}) {
  std::vector<bool> sampleable(size, true);
  std::vector<bool> repeats_freely(size, false);
  for (const int32_t id : holes) sampleable[id] = false;
  for (const int32_t id : free) repeats_freely[id] = true;
  return std::make_shared<SamplerVocabulary>(std::move(sampleable), std::move(repeats_freely));
}

// No penalties and no cuts.
SamplingOptions Plain() { return {.top_p = 1, .presence_penalty = 0, .frequency_penalty = 0}; }

// Probabilities by id of what may be drawn.
std::map<int32_t, double> Probabilities(const Sampler& sampler, const std::vector<float>& logits) {
  SamplerScratch scratch;
  const auto distribution = sampler.Distribution(logits, 0, scratch);
  EXPECT_TRUE(distribution.ok()) << distribution.status();
  std::map<int32_t, double> result;
  for (size_t i = 0; i < distribution->ids.size(); ++i) {
    result[distribution->ids[i]] = distribution->weights[i] / distribution->total;
  }
  return result;
}

std::map<int32_t, double> Probabilities(const SamplingOptions& options, const std::vector<float>& logits) {
  return Probabilities(Sampler(options, Vocabulary(static_cast<int64_t>(logits.size()))), logits);
}

std::vector<int32_t> Support(const SamplingOptions& options, const std::vector<float>& logits) {
  std::vector<int32_t> ids;
  for (const auto& [id, probability] : Probabilities(options, logits)) ids.push_back(id);
  return ids;
}

std::vector<int32_t> Draw(const Sampler& sampler, const std::vector<float>& logits, int64_t count) {
  SamplerScratch scratch;
  std::vector<int32_t> ids;
  for (int64_t position = 0; position < count; ++position) {
    ids.push_back(sampler.Sample(logits, position, scratch)->id);
  }
  return ids;
}

// ---- Against the definition, written plainly in double ----

// The definition of the header, with whole sorts and maps.
class Reference {
 public:
  Reference(SamplingOptions options, std::set<int32_t> unsampleable, std::set<int32_t> free)
      : options_(std::move(options)), unsampleable_(std::move(unsampleable)), free_(std::move(free)) {}

  void Observe(int32_t id) {
    for (auto& [seen, occurrence] : occurrences_) occurrence *= options_.penalty_decay;
    occurrences_[id] += free_.count(id) != 0 ? 0 : 1;
  }

  std::map<int32_t, double> Probabilities(const std::vector<float>& logits) const {
    std::map<int32_t, float> scores;  // as in the header, equal is what is equal in fp32
    for (size_t id = 0; id < logits.size(); ++id) scores[static_cast<int32_t>(id)] = logits[id];
    const auto add = [&scores](int32_t id, double bias) { scores[id] = static_cast<float>(scores[id] + bias); };
    for (const LogitBias& entry : options_.logit_bias) add(entry.id, entry.bias);
    for (const auto& [id, occurrence] : occurrences_) {
      add(id, -(options_.presence_penalty + occurrence * options_.frequency_penalty));
    }
    for (const int32_t id : options_.banned_tokens) scores.erase(id);
    for (const int32_t id : unsampleable_) scores.erase(id);

    double total = 0;
    double max = std::numeric_limits<double>::lowest();
    for (const auto& [id, score] : scores) max = std::max<double>(max, score);
    for (const auto& [id, score] : scores) total += std::exp(score - max);
    struct Entry {
      int32_t id;
      double score;
      double p;
    };
    std::vector<Entry> sorted;
    sorted.reserve(scores.size());
    for (const auto& [id, score] : scores) sorted.push_back({id, score, std::exp(score - max) / total});
    std::stable_sort(sorted.begin(), sorted.end(), [](const Entry& a, const Entry& b) { return a.score > b.score; });
    if (options_.temperature == 0) return {{sorted[0].id, 1.0}};

    std::vector<Entry> kept = sorted;
    if (options_.top_p < 1) {
      double sum = 0;
      size_t last = 0;
      for (; last + 1 < sorted.size(); ++last) {
        sum += sorted[last].p;
        if (sum >= options_.top_p) break;
      }
      const double least = sorted[last].score;
      kept.erase(std::remove_if(kept.begin(), kept.end(), [least](const Entry& e) { return e.score < least; }),
                 kept.end());
    }
    if (options_.top_k > 0 && options_.top_k < static_cast<int64_t>(kept.size())) kept.resize(options_.top_k);
    const double least_p = options_.min_p * sorted[0].p;
    kept.erase(std::remove_if(kept.begin(), kept.end(), [least_p](const Entry& e) { return e.p < least_p; }),
               kept.end());

    double kept_total = 0;
    // p^(1/T), over the largest, which would vanish otherwise.
    for (Entry& entry : kept) kept_total += entry.p = std::exp((entry.score - max) / options_.temperature);
    std::map<int32_t, double> result;
    for (const Entry& entry : kept) result[entry.id] = entry.p / kept_total;
    return result;
  }

 private:
  const SamplingOptions options_;
  const std::set<int32_t> unsampleable_;
  const std::set<int32_t> free_;
  std::map<int32_t, double> occurrences_;
};

// One of a list.
template <typename T>
T Pick(std::mt19937& random, std::initializer_list<T> values) {
  return values.begin()[random() % values.size()];
}

std::vector<float> RandomLogits(std::mt19937& random, int64_t size) {
  const int shape = static_cast<int>(random() % 6);
  std::normal_distribution<float> normal(0, Pick(random, {0.1F, 1.0F, 3.0F}));
  std::vector<float> logits(size);
  for (float& logit : logits) {
    logit = normal(random);
    if (shape == 1) logit = std::round(logit);  // many equals, also of 0 and -0
    if (shape == 2) logit = 1000 + logit / 8;
    if (shape == 3) logit *= 20;
    if (shape == 4) logit *= 1e37F;
  }
  if (shape == 5) logits[random() % size] += 12;  // one stands out
  return logits;
}

TEST(SamplerTest, KeepsAndWeighsAsTheDefinition) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 3000; ++trial) {
    const int64_t size = Pick<int64_t>(random, {1, 2, 15, 16, 17, 257, 1500});
    const auto some_id = [&] { return static_cast<int32_t>(random() % size); };
    SamplingOptions options;
    options.temperature = Pick(random, {0.0, 0.001, 0.7, 1.0, 1.0, 1.5, 100.0});
    options.top_p = Pick(random, {0.0, 0.3, 0.85, 0.85, 0.9999, 1.0});
    options.top_k = Pick<int64_t>(random, {0, 0, 1, 5, 100, 1000000});
    options.min_p = Pick(random, {0.0, 0.0, 0.003, 0.05, 0.7});
    options.presence_penalty = Pick(random, {0.0, 0.2, -1.0});
    options.frequency_penalty = Pick(random, {0.0, 0.2, 1.5});
    options.penalty_decay = Pick(random, {0.0, 0.5, 0.996, 1.0});
    std::vector<int32_t> free;
    std::vector<int32_t> holes;
    if (size > 2 && trial % 2 == 0) {
      for (int i = 0; i < 3; ++i) options.logit_bias.push_back({some_id(), Pick(random, {-100.0, -1.0, 2.5, 100.0})});
      for (int64_t i = 0; i < size / 4; ++i) options.banned_tokens.push_back(some_id());
      for (int64_t i = 0; i < size / 4; ++i) holes.push_back(some_id());
      for (int64_t i = 0; i < size / 4; ++i) free.push_back(some_id());
      if (trial % 4 == 0) holes.push_back(static_cast<int32_t>(size - 1));
    }
    const auto vocabulary = Vocabulary(size, holes, free);
    if (!Validate(options, *vocabulary).ok()) continue;
    Sampler sampler(options, vocabulary);
    Reference reference(options, {holes.begin(), holes.end()}, {free.begin(), free.end()});
    for (int i = 0; i < 40; ++i) {
      const int32_t id = some_id();
      sampler.Observe(id);
      reference.Observe(id);
    }
    const std::vector<float> logits = RandomLogits(random, size);
    const std::map<int32_t, double> actual = Probabilities(sampler, logits);
    const std::map<int32_t, double> expected = reference.Probabilities(logits);
    const std::string what =
        absl::StrCat("trial ", trial, ", ", size, " ids, temperature ", options.temperature, ", top_p ", options.top_p,
                     ", top_k ", options.top_k, ", min_p ", options.min_p);
    ASSERT_EQ(actual.size(), expected.size()) << what;
    for (const auto& [id, probability] : expected) {
      ASSERT_EQ(actual.count(id), 1) << what << ", id " << id;
      ASSERT_NEAR(actual.at(id), probability, 5e-6 * probability + 1e-30) << what << ", id " << id;
    }
  }
}

TEST(SamplerTest, KeepsAndWeighsAsTheDefinitionInALargeVocabulary) {
  std::mt19937 random(2);
  constexpr int64_t kSize = 65536;
  for (int trial = 0; trial < 12; ++trial) {
    SamplingOptions options;
    options.top_p = Pick(random, {0.5, 0.85, 0.99});
    options.top_k = Pick<int64_t>(random, {0, 0, 40000});
    const std::vector<int32_t> holes = {65530, 65531, 65532, 65533, 65534, 65535};
    const std::vector<float> logits = RandomLogits(random, kSize);
    const std::map<int32_t, double> actual = Probabilities(Sampler(options, Vocabulary(kSize, holes)), logits);
    const std::map<int32_t, double> expected =
        Reference(options, {holes.begin(), holes.end()}, {}).Probabilities(logits);
    // Of 65,536 probabilities the last to keep may differ by the rounding of their sum.
    EXPECT_NEAR(static_cast<double>(actual.size()), static_cast<double>(expected.size()), 1) << trial;
    for (const auto& [id, probability] : actual) {
      if (expected.count(id) == 0) continue;
      ASSERT_NEAR(probability, expected.at(id), 1e-5 * probability) << trial << ", id " << id;
    }
  }
}

// The chance that a true sampler's statistic is above the limit is 1e-4.
TEST(SamplerTest, DrawsAsOftenAsTheProbabilitiesSay) {
  std::vector<float> logits(20);
  for (int id = 0; id < 20; ++id) logits[id] = static_cast<float>((id * 7) % 20) * 0.25F;
  for (const double temperature : {0.5, 1.0, 2.0}) {
    SamplingOptions options = Plain();
    options.temperature = temperature;
    options.seed = 5;
    options.top_k = 13;
    const std::map<int32_t, double> probabilities = Probabilities(options, logits);
    constexpr int kDraws = 40000;
    const auto chi_square = [&](const std::vector<int32_t>& drawn) {
      std::map<int32_t, double> counts;
      for (const int32_t id : drawn) counts[id] += 1;
      double statistic = 0;
      for (const auto& [id, probability] : probabilities) {
        const double expected = probability * kDraws;
        statistic += (counts[id] - expected) * (counts[id] - expected) / expected;
        counts.erase(id);
      }
      EXPECT_TRUE(counts.empty()) << "id " << counts.begin()->first << " was cut and drawn";
      return statistic;
    };
    constexpr double kLimit = 39.1;  // 12 degrees of freedom
    const auto vocabulary = Vocabulary(20);
    EXPECT_LT(chi_square(Draw(Sampler(options, vocabulary), logits, kDraws)), kLimit) << "over positions";
    std::vector<int32_t> of_seeds;
    SamplerScratch scratch;
    for (int seed = 0; seed < kDraws; ++seed) {
      options.seed = seed;
      of_seeds.push_back(Sampler(options, vocabulary).Sample(logits, 3, scratch)->id);
    }
    EXPECT_LT(chi_square(of_seeds), kLimit) << "over seeds";
  }
}

TEST(SamplerTest, DrawsFromAllBlocksOfALongList) {
  constexpr int64_t kSize = 1000;
  const std::vector<int32_t> drawn = Draw(Sampler(Plain(), Vocabulary(kSize)), std::vector<float>(kSize, 2), 20000);
  EXPECT_EQ(std::set<int32_t>(drawn.begin(), drawn.end()).size(), kSize);
}

// ---- Cuts ----

// Probabilities 0.4, 0.3, 0.2, 0.1 of ids 2, 0, 3, 1.
const std::vector<float>& FourLogits() {
  static const auto* const logits =
      new std::vector<float>{std::log(0.3F), std::log(0.1F), std::log(0.4F), std::log(0.2F)};
  return *logits;
}

SamplingOptions WithTopP(double top_p) {
  SamplingOptions options = Plain();
  options.top_p = top_p;
  return options;
}

SamplingOptions WithTopK(int64_t top_k) {
  SamplingOptions options = Plain();
  options.top_k = top_k;
  return options;
}

SamplingOptions WithMinP(double min_p) {
  SamplingOptions options = Plain();
  options.min_p = min_p;
  return options;
}

TEST(SamplerTest, TopPKeepsTheTokenThatReachesIt) {
  EXPECT_THAT(Support(WithTopP(0), FourLogits()), ElementsAre(2));
  EXPECT_THAT(Support(WithTopP(0.39), FourLogits()), ElementsAre(2));
  EXPECT_THAT(Support(WithTopP(0.41), FourLogits()), ElementsAre(0, 2));
  EXPECT_THAT(Support(WithTopP(0.69), FourLogits()), ElementsAre(0, 2));
  EXPECT_THAT(Support(WithTopP(0.71), FourLogits()), ElementsAre(0, 2, 3));
  EXPECT_THAT(Support(WithTopP(0.91), FourLogits()), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Support(WithTopP(1), FourLogits()), ElementsAre(0, 1, 2, 3));
}

TEST(SamplerTest, TopPKeepsEqualsOfTheLast) {
  EXPECT_THAT(Support(WithTopP(0), {3, 1, 3, 3, 2}), ElementsAre(0, 2, 3));
  EXPECT_THAT(Support(WithTopP(0.9), {0, 2, 2, 1, 1, 1, 0}), ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(Support(WithTopP(0), {0.0F, -0.0F, -1}), ElementsAre(0, 1));
}

TEST(SamplerTest, TopPOneKeepsWhatHasNoProbabilityInFp32) {
  EXPECT_THAT(Support(WithTopP(1), {0, -1000, -3e38F}), ElementsAre(0, 1, 2));
}

TEST(SamplerTest, TopKTakesTheLowestIdsOfEquals) {
  EXPECT_THAT(Support(WithTopK(1), FourLogits()), ElementsAre(2));
  EXPECT_THAT(Support(WithTopK(3), FourLogits()), ElementsAre(0, 2, 3));
  EXPECT_THAT(Support(WithTopK(4), FourLogits()), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Support(WithTopK(3), {5, 5, 7, 5, 5}), ElementsAre(0, 1, 2));
  EXPECT_THAT(Support(WithTopK(std::numeric_limits<int64_t>::max()), {5, 4}), ElementsAre(0, 1));
}

TEST(SamplerTest, MinPIsAShareOfTheLargest) {
  EXPECT_THAT(Support(WithMinP(0.26), FourLogits()), ElementsAre(0, 2, 3));
  EXPECT_THAT(Support(WithMinP(0.24), FourLogits()), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Support(WithMinP(1), {1, 2, 2}), ElementsAre(1, 2));
}

TEST(SamplerTest, TheShortestOfTheCutsRemains) {
  SamplingOptions options = WithTopP(0.71);
  options.top_k = 2;
  EXPECT_THAT(Support(options, FourLogits()), ElementsAre(0, 2));
  options.min_p = 0.8;
  EXPECT_THAT(Support(options, FourLogits()), ElementsAre(2));
}

TEST(SamplerTest, TemperatureChangesProbabilitiesButNotWhatIsKept) {
  for (const double temperature : {1e-300, 1e-3, 0.5, 2.0, 100.0}) {
    SamplingOptions options = WithTopP(0.71);
    options.temperature = temperature;
    EXPECT_THAT(Support(options, FourLogits()), ElementsAre(0, 2, 3)) << temperature;
  }
  SamplingOptions options = Plain();
  options.temperature = 0.5;
  std::map<int32_t, double> probabilities = Probabilities(options, FourLogits());
  EXPECT_NEAR(probabilities[0], 0.09 / 0.3, 1e-6);
  EXPECT_NEAR(probabilities[1], 0.01 / 0.3, 1e-6);
  options.temperature = 1e-3;
  probabilities = Probabilities(options, FourLogits());
  EXPECT_EQ(probabilities[2], 1);
  options.temperature = 100;
  probabilities = Probabilities(options, FourLogits());
  EXPECT_NEAR(probabilities[1], 0.25, 0.003);
}

TEST(SamplerTest, SmallTemperatureDrawsAmongEquals) {
  SamplingOptions options = Plain();
  options.temperature = 1e-3;
  const std::map<int32_t, double> probabilities = Probabilities(options, {4, 5, 5, 4.9F});
  EXPECT_EQ(probabilities.at(1), 0.5);
  EXPECT_EQ(probabilities.at(2), 0.5);
}

TEST(SamplerTest, OneTokenIsAlwaysDrawn) {
  for (const double temperature : {0.0, 1.0}) {
    Sampler sampler({.temperature = temperature, .logprobs = 5}, Vocabulary(1));
    SamplerScratch scratch;
    for (int position = 0; position < 10; ++position) {
      const Token token = sampler.Sample(std::vector<float>{-7}, position, scratch).value();
      EXPECT_EQ(token.id, 0);
      EXPECT_EQ(token.logprob, 0);
      EXPECT_EQ(token.top.size(), 1);
      sampler.Observe(token.id);
    }
  }
}

// ---- Penalties, biases, bans ----

TEST(SamplerTest, OccurrencesDecayAfterEachToken) {
  SamplingOptions options = Plain();
  options.presence_penalty = 0.5;
  options.frequency_penalty = 0.25;
  options.penalty_decay = 0.9;
  const std::vector<float> logits(4, 1);
  Sampler sampler(options, Vocabulary(4, {}, {3}));
  // By how much the logit of an id is below that of id 0, which never occurs.
  const auto penalty = [&](int32_t id) {
    const std::map<int32_t, double> probabilities = Probabilities(sampler, logits);
    return std::log(probabilities.at(0) / probabilities.at(id));
  };
  EXPECT_NEAR(penalty(1), 0, 1e-6) << "nothing has occurred";
  sampler.Observe(1);
  EXPECT_NEAR(penalty(1), 0.5 + 0.25, 1e-6);
  EXPECT_NEAR(penalty(2), 0, 1e-6);
  sampler.Observe(2);
  EXPECT_NEAR(penalty(1), 0.5 + 0.25 * 0.9, 1e-6);
  EXPECT_NEAR(penalty(2), 0.5 + 0.25, 1e-6);
  sampler.Observe(1);
  EXPECT_NEAR(penalty(1), 0.5 + 0.25 * (0.9 * 0.9 + 1), 1e-6);
  EXPECT_NEAR(penalty(2), 0.5 + 0.25 * 0.9, 1e-6);
  sampler.Observe(3);
  sampler.Observe(3);
  EXPECT_NEAR(penalty(3), 0.5, 1e-6) << "repeats freely: presence counts, occurrences do not";
  EXPECT_NEAR(penalty(1), 0.5 + 0.25 * (0.9 * 0.9 + 1) * 0.81, 1e-6) << "and it lets the others decay";
  for (int i = 0; i < 10000; ++i) sampler.Observe(3);
  EXPECT_NEAR(penalty(1), 0.5, 1e-6) << "presence stays for good";
}

TEST(SamplerTest, GreedyTakesTheLowestIdOfEqualsAndObeysPenalties) {
  SamplingOptions options;
  options.temperature = 0;
  Sampler sampler(options, Vocabulary(5));
  const std::vector<float> logits = {1, 3, 2.9F, 3, 3};
  SamplerScratch scratch;
  std::vector<int32_t> drawn;
  for (int position = 0; position < 5; ++position) {
    drawn.push_back(sampler.Sample(logits, position, scratch)->id);
    sampler.Observe(drawn.back());
  }
  // 1, 3 and 4 fall to 2.6 each, then 2; what decayed longest is best after that.
  EXPECT_THAT(drawn, ElementsAre(1, 3, 4, 2, 1));
}

TEST(SamplerTest, BiasesAddUp) {
  SamplingOptions options = Plain();
  options.logit_bias = {{1, 2.0}, {2, -1.0}, {1, 0.5}};
  const std::map<int32_t, double> probabilities = Probabilities(options, {0, 0, 0});
  EXPECT_NEAR(std::log(probabilities.at(1) / probabilities.at(0)), 2.5, 1e-6);
  EXPECT_NEAR(std::log(probabilities.at(2) / probabilities.at(0)), -1, 1e-6);
}

TEST(SamplerTest, BannedTokensAndIdsWithoutMeaningAreNeverDrawn) {
  SamplingOptions options = Plain();
  options.banned_tokens = {0, 2, 2, 6};
  options.logit_bias = {{2, 100}, {4, 100}, {7, 100}};
  const std::vector<float> logits = {50, 1, 50, 1, 50, 0, 50, 50};
  for (const double temperature : {0.0, 1.0, 100.0}) {
    options.temperature = temperature;
    const Sampler sampler(options, Vocabulary(8, {4, 7}));
    for (const auto& [id, probability] : Probabilities(sampler, logits)) {
      EXPECT_TRUE(id == 1 || id == 3 || id == 5) << id;
    }
    for (const int32_t id : Draw(sampler, logits, 200)) EXPECT_TRUE(id == 1 || id == 3 || id == 5) << id;
  }
}

TEST(SamplerTest, IdsFarAboveTheLimitMayBeNamed) {
  std::vector<int32_t> holes(997);
  std::iota(holes.begin(), holes.end(), 3);
  SamplingOptions options;
  options.logit_bias = {{900, 5}};
  options.banned_tokens = {999, 1};
  Sampler sampler(options, Vocabulary(1000, holes));
  sampler.Observe(950);
  for (const int32_t id : Draw(sampler, std::vector<float>(1000, 1), 100)) EXPECT_TRUE(id == 0 || id == 2) << id;
}

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
    const int64_t before = allocations;
    int64_t failed = 0;
    for (int position = 1; position < 100; ++position) {
      failed += sampler.Sample(logits, position, scratch).ok() ? 0 : 1;
      sampler.Observe(position);
    }
    EXPECT_EQ(allocations, before);
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
