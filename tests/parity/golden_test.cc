// The engine's numbers against tests/golden: every family, however the tokens are cut and batched.
#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/parity/golden_case.h"
#include "tests/parity/pipeline.h"
#include "tests/parity/test_device.h"

namespace goldfinch {
namespace {

class GoldenTest : public testing::TestWithParam<std::string> {
 public:
  void SetUp() override { GOLDFINCH_SKIP_WITHOUT_DEVICE(); }

  Pipeline MakePipeline(const StageOptions& options = ExactOptions()) {
    return Pipeline(*device.backend, golden.checkpoint, golden.config, options);
  }
  int64_t tokens() const { return static_cast<int64_t>(golden.tokens.size()); }

  const TestDevice& device = GetTestDevice();
  const GoldenCase golden = ReadGoldenCase(GetParam());
};

TEST_P(GoldenTest, InChunksOfAnySize) {
  Pipeline pipeline = MakePipeline();
  const std::vector<float> whole = pipeline.AllLogits(golden.tokens, tokens());
  const double error = RelativeError(whole, golden.logits);
  EXPECT_LE(error, device.tolerance);
  RecordProperty("relative_error_f32_cache", absl::StrCat(error));
  std::printf("%-18s f32 cache: relative error %.2g, the limit is %.2g\n", GetParam().c_str(), error, device.tolerance);
  // 160 tokens are three times 53 and one that is decoded.
  for (const int64_t chunk_tokens : device.slow ? std::vector<int64_t>{53} : std::vector<int64_t>{1, 7, 16, 64}) {
    const std::vector<float> logits = pipeline.AllLogits(golden.tokens, chunk_tokens);
    EXPECT_LE(RelativeError(logits, golden.logits), device.tolerance) << "chunks of " << chunk_tokens;
    EXPECT_TRUE(Same(logits, whole)) << "chunks of " << chunk_tokens;
  }
}

TEST_P(GoldenTest, WithAnyNumberOfThreadsOfTheCpu) {
  const std::unique_ptr<Backend> one_thread = MakeCpuBackend(/*threads=*/1);
  const std::unique_ptr<Backend> three_threads = MakeCpuBackend(/*threads=*/3);
  Pipeline one(*one_thread, golden.checkpoint, golden.config), three(*three_threads, golden.checkpoint, golden.config);
  EXPECT_EQ(three.AllLogits(golden.tokens, 64), one.AllLogits(golden.tokens, 64));
}

// Sequences of one batch: other tokens, lengths and chunks each, so that a step mixes pre-fill and decode.
struct Batched {
  std::vector<int32_t> tokens = {};
  int64_t chunk_tokens = 1;
  int64_t start_step = 0;
  int slot = -1;
  int64_t done = 0;
  std::vector<float> logits = {};
};

TEST_P(GoldenTest, InARaggedBatch) {
  const absl::Span<const int32_t> all = golden.tokens;
  const auto copy = [](absl::Span<const int32_t> part) { return std::vector<int32_t>(part.begin(), part.end()); };
  std::vector<Batched> batch = {
      {.tokens = golden.tokens, .chunk_tokens = 1},
      {.tokens = golden.tokens, .chunk_tokens = 7},
      {.tokens = copy(all.subspan(0, 67)), .chunk_tokens = 64, .start_step = 2},
      {.tokens = copy(all.subspan(31)), .chunk_tokens = 16},
      {.tokens = std::vector<int32_t>(all.rbegin(), all.rend()), .chunk_tokens = 5, .start_step = 1},
      {.tokens = copy(all.subspan(0, 1)), .chunk_tokens = 1, .start_step = 3},
      {.tokens = golden.tokens, .chunk_tokens = 160, .start_step = 5},
  };
  Pipeline pipeline = MakePipeline();
  const int64_t vocab = pipeline.vocab();
  for (int64_t step = 0;; ++step) {
    std::vector<Chunk> chunks;
    std::vector<Batched*> owners;
    for (Batched& sequence : batch) {
      const auto left = static_cast<int64_t>(sequence.tokens.size()) - sequence.done;
      if (step < sequence.start_step || left == 0) continue;
      if (sequence.slot < 0) sequence.slot = pipeline.Open();
      const int64_t count = std::min(sequence.chunk_tokens, left);
      chunks.push_back({sequence.slot, absl::MakeConstSpan(sequence.tokens).subspan(sequence.done, count), count});
      owners.push_back(&sequence);
      sequence.done += count;
    }
    if (chunks.empty()) break;
    const std::vector<float> logits = pipeline.Forward(chunks);
    auto next = logits.begin();
    for (size_t i = 0; i < chunks.size(); ++i) {
      const auto end = next + chunks[i].logit_rows * vocab;
      owners[i]->logits.insert(owners[i]->logits.end(), next, end);
      next = end;
    }
    ASSERT_EQ(next, logits.end());
  }

  Pipeline alone = MakePipeline();
  const std::vector<float> golden_alone = alone.AllLogits(golden.tokens, 160);
  EXPECT_LE(RelativeError(golden_alone, golden.logits), device.tolerance);
  for (const Batched& sequence : batch) {
    SCOPED_TRACE(testing::Message() << "chunks of " << sequence.chunk_tokens << ", " << sequence.done << " tokens");
    const bool is_golden = sequence.tokens == golden.tokens;
    EXPECT_TRUE(Same(sequence.logits, is_golden ? golden_alone : alone.AllLogits(sequence.tokens, 160)));
  }
}

TEST_P(GoldenTest, CompressedRows) {
  Pipeline pipeline = MakePipeline();
  const int slot = pipeline.Open();
  std::vector<float> rows;
  constexpr int64_t kChunkTokens = 7;
  for (int64_t begin = 0; begin < tokens(); begin += kChunkTokens) {
    pipeline.Forward({slot, absl::MakeConstSpan(golden.tokens).subspan(begin, kChunkTokens), 0});
    rows.insert(rows.end(), pipeline.compressed().begin(), pipeline.compressed().end());
    if (golden.compressed.empty()) break;
  }
  if (golden.compressed.empty()) {
    EXPECT_TRUE(rows.empty());
  } else {
    EXPECT_LE(RelativeError(rows, golden.compressed), device.tolerance);
  }
}

// Relative errors with narrow caches, a little above what was measured. Families that are not here keep no cache: their
// errors are those of f32.
struct CacheErrors {
  double f16 = 0;
  double bf16 = 0;
  double int8 = 0;  // 0: keys and values have no such form
};
const std::map<std::string, CacheErrors> kCacheErrors = {
    {"finch_c2_gptalpha", {8e-5, 6e-4}},
    {"finch_gold", {5e-5, 4e-4, 9e-4}},
    {"goldfinch", {6e-5, 5e-4, 1.2e-3}},
    {"gptalpha", {2.5e-4, 2e-3}},
    {"llama", {7e-4, 6e-3}},
};

TEST_P(GoldenTest, NarrowCaches) {
  const auto found = kCacheErrors.find(GetParam());
  const CacheErrors limits = found == kCacheErrors.end() ? CacheErrors() : found->second;
  for (const DType dtype : {DType::kF16, DType::kBf16}) {
    StageOptions options = ExactOptions();
    options.cache_dtype = dtype;
    Pipeline pipeline = MakePipeline(options);
    const std::vector<float> logits = pipeline.AllLogits(golden.tokens, 64);
    const double error = RelativeError(logits, golden.logits);
    RecordProperty(absl::StrCat("relative_error_", Name(dtype), "_cache"), absl::StrCat(error));
    std::printf("%-18s %s cache: relative error %.2g\n", GetParam().c_str(), Name(dtype), error);
    EXPECT_LE(error, std::max(device.tolerance, dtype == DType::kF16 ? limits.f16 : limits.bf16)) << Name(dtype);
    // Attention reads the current chunk's rows back from the cache too.
    if (dtype == DType::kBf16) {
      EXPECT_TRUE(Same(pipeline.AllLogits(golden.tokens, 7), logits)) << Name(dtype) << ": chunking changes results";
    }
  }
}

// Numbers are rounded to 1/127 of the largest of their row, which costs 0.4 % of its length; bf16 rounds each to 8
// digits, which costs 0.17 %.
TEST_P(GoldenTest, CompressedRowsOf8Bits) {
  const auto found = kCacheErrors.find(GetParam());
  const double limit = found == kCacheErrors.end() ? 0 : found->second.int8;
  StageOptions options = ExactOptions();
  options.cache_dtype = DType::kInt8;
  if (found != kCacheErrors.end() && limit == 0) {
    const auto model = LoadModel(*device.backend, golden.checkpoint, golden.config);
    ASSERT_TRUE(model.ok()) << model.status();
    const auto stage = Stage::Create(*device.backend, *model, options);
    EXPECT_EQ(stage.status().code(), absl::StatusCode::kInvalidArgument) << stage.status();
    return;
  }
  Pipeline pipeline = MakePipeline(options);
  const std::vector<float> logits = pipeline.AllLogits(golden.tokens, 64);
  const double error = RelativeError(logits, golden.logits);
  RecordProperty("relative_error_int8_cache", absl::StrCat(error));
  std::printf("%-18s int8 cache: relative error %.2g\n", GetParam().c_str(), error);
  EXPECT_LE(error, std::max(device.tolerance, limit));
  EXPECT_TRUE(Same(pipeline.AllLogits(golden.tokens, device.slow ? 53 : 7), logits)) << "chunking changes results";
  if (golden.compressed.empty()) return;
  pipeline.Forward({pipeline.Open(), golden.tokens, 0});
  const double row_error = RelativeError(pipeline.compressed(), golden.compressed);
  std::printf("%-18s int8 cache: relative error of its rows %.2g\n", GetParam().c_str(), row_error);
  EXPECT_LE(row_error, std::max(device.tolerance, 0.005));
}

INSTANTIATE_TEST_SUITE_P(Golden, GoldenTest, testing::ValuesIn(GoldenNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace goldfinch
