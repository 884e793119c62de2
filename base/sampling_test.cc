#include "base/sampling.h"

#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// A vocabulary of `size` ids, of which those in `holes` may not be drawn.
SamplerVocabulary Vocabulary(int size, const std::set<int>& holes = {}) {
  std::vector<bool> sampleable(size);
  for (int id = 0; id < size; ++id) sampleable[id] = !holes.contains(id);
  return SamplerVocabulary(sampleable, std::vector<bool>(size));
}

std::string ErrorOf(const SamplingOptions& options) {
  const absl::Status status = Validate(options, Vocabulary(10, {9}));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

TEST(SamplingTest, RepeatsFreelyIsASubstringOfBlanksAndDigits) {
  for (const char* const text : {" ", "\t", "0", "9", "12", "789", " \t", "\t0", " \t0123456789"}) {
    EXPECT_TRUE(RepeatsFreely(text)) << text;
  }
  for (const char* const text : {"", "  ", "10", "11", "90", " 0", "a", "\n", "1.", " \t01234567890"}) {
    EXPECT_FALSE(RepeatsFreely(text)) << text;
  }
}

TEST(SamplingTest, ValidateNamesFieldValueAndLimit) {
  EXPECT_EQ(ErrorOf({.temperature = -0.5}), "temperature is -0.5, the limits are 0 and 100");
  EXPECT_EQ(ErrorOf({.temperature = 101}), "temperature is 101, the limits are 0 and 100");
  EXPECT_EQ(ErrorOf({.temperature = kNan}), "temperature is nan, the limits are 0 and 100");
  EXPECT_EQ(ErrorOf({.top_p = 1.5}), "top_p is 1.5, the limits are 0 and 1");
  EXPECT_EQ(ErrorOf({.top_p = kNan}), "top_p is nan, the limits are 0 and 1");
  EXPECT_EQ(ErrorOf({.top_k = -1}), "top_k is -1, the lower limit is 0 (keep all)");
  EXPECT_EQ(ErrorOf({.min_p = -1}), "min_p is -1, the limits are 0 and 1");
  EXPECT_EQ(ErrorOf({.presence_penalty = INFINITY}), "presence_penalty is inf, the limits are -100 and 100");
  EXPECT_EQ(ErrorOf({.frequency_penalty = kNan}), "frequency_penalty is nan, the limits are -100 and 100");
  EXPECT_EQ(ErrorOf({.penalty_decay = 1.01}), "penalty_decay is 1.01, the limits are 0 and 1");
  EXPECT_EQ(ErrorOf({.logit_bias = {{1, 2}, {10, 1}}}), "logit_bias[1] is of id 10, the vocabulary has ids 0 to 9");
  EXPECT_EQ(ErrorOf({.logit_bias = {{1, kNan}}}), "logit_bias[0].bias is nan, the limits are -100 and 100");
  EXPECT_EQ(ErrorOf({.banned_tokens = {-1}}), "banned_tokens[0] is of id -1, the vocabulary has ids 0 to 9");
  EXPECT_EQ(ErrorOf({.logprobs = 21}), "logprobs is 21, the limits are 0 and 20");
  EXPECT_EQ(ErrorOf({.logprobs = -1}), "logprobs is -1, the limits are 0 and 20");
}

TEST(SamplingTest, ValidateWantsOneTokenLeft) {
  EXPECT_EQ(ErrorOf({.banned_tokens = {0, 1, 2, 3, 4, 5, 6, 7, 8}}),
            "banned_tokens has all 9 tokens, one must be left");
  const SamplerVocabulary vocabulary = Vocabulary(10, {9});
  EXPECT_TRUE(Validate({.banned_tokens = {0, 1, 2, 3, 4, 5, 6, 7, 9}}, vocabulary).ok());
  EXPECT_TRUE(Validate({.banned_tokens = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}, vocabulary).ok());
  EXPECT_TRUE(Validate({}, vocabulary).ok());
}

TEST(SamplingDeathTest, WantsOneSampleableId) { EXPECT_DEATH(Vocabulary(2, {0, 1}), "no id is sampleable"); }

}  // namespace
}  // namespace goldfinch
