#include "worker/stage/scorer.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/stage/philox.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::vector<float> RandomLogits(int64_t count, uint64_t seed) {
  std::vector<float> logits(count);
  for (int64_t i = 0; i < count; ++i) {
    logits[i] = static_cast<float>(20 * PhiloxUniform(seed, static_cast<uint64_t>(i), PhiloxPurpose::kSampling) - 10);
  }
  return logits;
}

// What a drawn token is told, to fp32's rounding; the likeliest are the same ones, in the same order.
TEST(Scorer, AsTheSampler) {
  for (const int64_t size : {1, 5, 40, 1000, 5003}) {
    std::vector<bool> sampleable(size, true);
    for (int64_t i = 1; i < size; i += 7) sampleable[i] = false;
    const auto vocabulary = std::make_shared<const SamplerVocabulary>(sampleable, std::vector<bool>(size));
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      std::vector<float> logits = RandomLogits(size, seed);
      for (int64_t i = 3; i < size; i += 5) logits[i] = logits[3];  // equals
      SamplingOptions options;
      options.seed = seed;
      options.top_p = 1;
      options.logprobs = 4;
      SamplerScratch scratch;
      const Token token = *Sampler(options, vocabulary).Sample(logits, 10, scratch);
      Scorer scorer;
      EXPECT_NEAR(*scorer.Score(logits, 10, token.id, 4, *vocabulary), token.logprob, 2e-6);
      ASSERT_EQ(scorer.top().size(), token.top.size());
      for (size_t i = 0; i < token.top.size(); ++i) {
        EXPECT_EQ(scorer.top()[i].id, token.top[i].id) << i;
        EXPECT_NEAR(scorer.top()[i].logprob, token.top[i].logprob, 2e-6);
      }
    }
  }
}

TEST(Scorer, SumsToOne) {
  const int64_t size = 300;
  const SamplerVocabulary vocabulary(std::vector<bool>(size, true), std::vector<bool>(size));
  std::vector<float> logits = RandomLogits(size, 3);
  for (float& logit : logits) logit += 1e4F;  // beyond what exp can take
  Scorer scorer;
  double sum = 0;
  for (int32_t id = 0; id < size; ++id) {
    sum += std::exp(static_cast<double>(*scorer.Score(logits, 0, id, 0, vocabulary)));
    EXPECT_TRUE(scorer.top().empty());
  }
  EXPECT_NEAR(sum, 1, 1e-5);
}

TEST(Scorer, LogitsMustBeFinite) {
  const SamplerVocabulary vocabulary(std::vector<bool>(9, true), std::vector<bool>(9));
  for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> logits(9, 1);
    logits[6] = bad;
    Scorer scorer;
    const absl::Status status = scorer.Score(logits, 77, 2, 3, vocabulary).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("logit 6"), HasSubstr("position 77")));
  }
}

}  // namespace
}  // namespace goldfinch
