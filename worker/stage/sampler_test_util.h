// What the tests of the sampler share.
#ifndef GOLDFINCH_WORKER_STAGE_SAMPLER_TEST_UTIL_H_
#define GOLDFINCH_WORKER_STAGE_SAMPLER_TEST_UTIL_H_

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "worker/stage/sampler.h"

namespace goldfinch {

// Every id below `size` is sampleable, but for `holes`; those of `free` repeat freely.
inline std::shared_ptr<const SamplerVocabulary> Vocabulary(int64_t size, const std::vector<int32_t>& holes = {},
                                                           const std::vector<int32_t>& free = {}) {
  std::vector<bool> sampleable(size, true);
  std::vector<bool> repeats_freely(size, false);
  for (const int32_t id : holes) sampleable[id] = false;
  for (const int32_t id : free) repeats_freely[id] = true;
  return std::make_shared<SamplerVocabulary>(std::move(sampleable), std::move(repeats_freely));
}

// No penalties and no cuts.
inline SamplingOptions Plain() { return {.top_p = 1, .presence_penalty = 0, .frequency_penalty = 0}; }

// Probabilities by id of what may be drawn.
inline std::map<int32_t, double> Probabilities(const Sampler& sampler, const std::vector<float>& logits) {
  SamplerScratch scratch;
  const auto distribution = sampler.Distribution(logits, 0, scratch);
  EXPECT_TRUE(distribution.ok()) << distribution.status();
  std::map<int32_t, double> result;
  for (size_t i = 0; i < distribution->ids.size(); ++i) {
    result[distribution->ids[i]] = distribution->weights[i] / distribution->total;
  }
  return result;
}

inline std::map<int32_t, double> Probabilities(const SamplingOptions& options, const std::vector<float>& logits) {
  return Probabilities(Sampler(options, Vocabulary(static_cast<int64_t>(logits.size()))), logits);
}

inline std::vector<int32_t> Support(const SamplingOptions& options, const std::vector<float>& logits) {
  std::vector<int32_t> ids;
  for (const auto& [id, probability] : Probabilities(options, logits)) ids.push_back(id);
  return ids;
}

inline std::vector<int32_t> Draw(const Sampler& sampler, const std::vector<float>& logits, int64_t count) {
  SamplerScratch scratch;
  std::vector<int32_t> ids;
  for (int64_t position = 0; position < count; ++position) {
    ids.push_back(sampler.Sample(logits, position, scratch)->id);
  }
  return ids;
}

// One of a list.
template <typename T>
T Pick(std::mt19937& random, std::initializer_list<T> values) {
  return values.begin()[random() % values.size()];
}

inline std::vector<float> RandomLogits(std::mt19937& random, int64_t size) {
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

// Probabilities 0.4, 0.3, 0.2, 0.1 of ids 2, 0, 3, 1.
inline const std::vector<float>& FourLogits() {
  static const auto* const logits =
      new std::vector<float>{std::log(0.3F), std::log(0.1F), std::log(0.4F), std::log(0.2F)};
  return *logits;
}

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_SAMPLER_TEST_UTIL_H_
