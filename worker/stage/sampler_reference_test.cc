// The sampler against its definition, written plainly in double.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "worker/stage/sampler.h"
#include "worker/stage/sampler_test_util.h"

namespace goldfinch {
namespace {

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
    // Which of 65,536 probabilities is the last to keep may depend on the rounding of their sum.
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

}  // namespace
}  // namespace goldfinch
