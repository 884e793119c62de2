// What requests begin with when the server has kept a part of their text changes nothing, whatever the model, the type
// of the cache, the split and the position: the logits are those of a request that reads everything, bit for bit.
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/cluster/local_cluster.h"
#include "tests/parity/golden_case.h"

namespace goldfinch {
namespace {

const std::vector<int64_t> kBreakpoints = {1, 63, 64, 65, 128, 400};

void WithoutCache(Request* request) { request->cache = false; }

// The tokens of the case, and some more.
std::vector<int32_t> TextOf(const GoldenCase& golden) {
  std::vector<int32_t> text;
  for (int i = 0; i < 3; ++i) text.insert(text.end(), golden.tokens.begin(), golden.tokens.end());
  return text;
}

// (golden case, type of the cache, stages)
class KeptTextsTest : public ::testing::TestWithParam<std::tuple<std::string, std::string, int>> {};

TEST_P(KeptTextsTest, LogitsAreThoseOfReadingEverything) {
  const auto& [name, cache_dtype, stages] = GetParam();
  const GoldenCase golden = ReadGoldenCase(name);
  LocalCluster cluster(golden.checkpoint->path(), stages, [&](CoordinatorOptions* options) {
    options->membership.cache_dtype = cache_dtype;
    options->snapshots = {.first_tokens = 0, .cost_tokens = 1};
  });
  cluster.AwaitReady();
  const std::vector<int32_t> text = TextOf(golden);
  const auto first = cluster.Generate(text, 1, [](Request* request) { request->breakpoints = kBreakpoints; });
  ASSERT_TRUE(first->Wait().ok()) << first->Wait();
  for (const int64_t position : {1, 2, 62, 63, 64, 65, 66, 127, 128, 129, 399, 400, 401}) {
    SCOPED_TRACE(absl::StrCat("texts part at ", position));
    // Another token than the first text has there.
    std::vector<int32_t> prompt(text.begin(), text.begin() + position);
    for (const int32_t more : {text[position] == 5 ? 6 : 5, 9, 2}) prompt.push_back(more);
    const auto cold = cluster.Score(prompt, {{7, 8, 9}}, /*score_prompt=*/false, WithoutCache);
    const auto warm = cluster.Score(prompt, {{7, 8, 9}}, /*score_prompt=*/false);
    ASSERT_TRUE(cold->Wait().ok()) << cold->Wait();
    ASSERT_TRUE(warm->Wait().ok()) << warm->Wait();
    EXPECT_EQ(cold->usage().cached_tokens, 0);
    // Short texts are read faster than they are found; later ones find what earlier ones have left, too.
    EXPECT_GE(warm->usage().cached_tokens, position < 400 ? 0 : 400);
    EXPECT_LE(warm->usage().cached_tokens, position);
    EXPECT_EQ(warm->logits(0), cold->logits(0));
  }
  cluster.ExpectNothingHeld();
}

TEST_P(KeptTextsTest, APromptThatIsKeptDrawsTheSameTokens) {
  const auto& [name, cache_dtype, stages] = GetParam();
  const GoldenCase golden = ReadGoldenCase(name);
  LocalCluster cluster(golden.checkpoint->path(), stages, [&](CoordinatorOptions* options) {
    options->membership.cache_dtype = cache_dtype;
    options->snapshots = {.first_tokens = 0, .cost_tokens = 1};
  });
  cluster.AwaitReady();
  const auto generate = [&](const std::vector<int32_t>& prompt, bool cache) {
    const auto request = cluster.Generate(prompt, 12, [&](Request* request) {
      request->cache = cache;
      request->generate->samples = 3;
      request->generate->sampling.temperature = 1;
      request->generate->sampling.seed = 77;
      request->generate->sampling.presence_penalty = 0.5;
      request->generate->sampling.banned_tokens = {0};
    });
    EXPECT_TRUE(request->Wait().ok()) << request->Wait();
    return request;
  };
  const std::vector<int32_t> prompt = TextOf(golden);
  const auto cold = generate(prompt, /*cache=*/false), first = generate(prompt, true), warm = generate(prompt, true);
  EXPECT_EQ(first->usage().cached_tokens, 0);
  EXPECT_EQ(warm->usage().cached_tokens, static_cast<int64_t>(prompt.size()));
  for (int sample = 0; sample < 3; ++sample) {
    EXPECT_EQ(first->tokens(sample), cold->tokens(sample));
    EXPECT_EQ(warm->tokens(sample), cold->tokens(sample));
  }
  cluster.ExpectNothingHeld();
}

std::string NameOf(const testing::TestParamInfo<KeptTextsTest::ParamType>& info) {
  return absl::StrCat(std::get<0>(info.param), "_", std::get<1>(info.param), "_", std::get<2>(info.param), "_stages");
}

INSTANTIATE_TEST_SUITE_P(Families, KeptTextsTest,
                         testing::Combine(testing::ValuesIn(GoldenNames()), testing::Values("f32"),
                                          testing::Values(1, 3)),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(CacheTypes, KeptTextsTest,
                         testing::Combine(testing::Values("goldfinch"), testing::Values("f16", "bf16", "int8"),
                                          testing::Values(2)),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(Splits, KeptTextsTest,
                         testing::Combine(testing::Values("goldfinch"), testing::Values("f32"), testing::Values(2, 6)),
                         NameOf);

}  // namespace
}  // namespace goldfinch
