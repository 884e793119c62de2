// A model split over stages: the same logits (on the CPU, bit for bit), and over each boundary exactly the rows that
// the pre-fill rule asks for (docs/ARCHITECTURE.md).
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/parity/golden_case.h"
#include "tests/parity/pipeline.h"
#include "tests/parity/test_device.h"
#include "worker/model/model.h"

namespace goldfinch {
namespace {

// One chunk of a sequence in a step.
struct Part {
  int sequence;
  int64_t count;
  int64_t logit_rows;
};

// Three sequences: pre-fill, decode, a second turn, scoring, a prompt's end shorter than the rule's rows.
const std::vector<std::vector<Part>> kSteps = {
    {{0, 40, 0}},
    {{0, 1, 1}, {1, 2, 2}},
    {{1, 1, 1}, {0, 1, 1}, {2, 64, 0}},
    {{0, 1, 1}, {1, 30, 5}, {2, 2, 1}},
    {{2, 1, 1}, {0, 20, 0}, {1, 1, 0}},
    {{0, 2, 1}, {1, 1, 1}},
    {{2, 3, 1}, {0, 4, 1}},
    {{0, 7, 7}, {1, 3, 0}, {2, 1, 0}},
};

class SplitTest : public testing::TestWithParam<std::string> {
 public:
  void SetUp() override { GOLDFINCH_SKIP_WITHOUT_DEVICE(); }

  const TestDevice& device = GetTestDevice();
  const GoldenCase golden = ReadGoldenCase(GetParam());
};

// What the boundary before layer `cut` carries for a chunk of `count` tokens whose last `logit_rows` want logits, when
// the GOLD layers have `pending` tokens to make up for, the chunk's included.
Flow ExpectedFlow(const ModelShape& shape, int cut, const Part& part, int64_t pending) {
  const int64_t finch = shape.finch_layers(), gold = shape.gold_layers();
  if (cut < finch || gold == 0) return {part.count, 0};
  if (part.logit_rows == 0) return {0, part.count};
  // Each GOLD layer looks two rows back, once a mixer.
  const int64_t into_first = 2 * gold + part.logit_rows;
  if (pending <= into_first) return {pending, part.count};
  return {into_first - 2 * (cut - finch), part.count};
}

TEST_P(SplitTest, SameLogitsAndTheRowsOfTheRule) {
  Pipeline whole(*device.backend, golden.checkpoint, golden.config);
  const int layers = whole.shape().layers();
  std::vector<std::vector<int>> splits;
  for (int cut = 1; cut < layers; ++cut) splits.push_back({cut});
  for (int cut = 1; cut + 1 < layers; ++cut) splits.push_back({cut, cut + 1});
  std::vector<int> every_layer;
  for (int cut = 1; cut < layers; ++cut) every_layer.push_back(cut);
  if (layers > 3) splits.push_back(every_layer);

  // What the unsplit model gives at each step.
  const auto run = [this](Pipeline& pipeline, auto&& check) {
    std::vector<int> slots(3);
    std::vector<int64_t> positions(3, 0), gold_positions(3, 0);
    for (int& slot : slots) slot = pipeline.Open();
    for (const std::vector<Part>& step : kSteps) {
      std::vector<Chunk> chunks;
      std::vector<int64_t> pending;
      for (const Part& part : step) {
        int64_t& position = positions[part.sequence];
        // Other tokens in each sequence.
        chunks.push_back(
            {slots[part.sequence],
             absl::MakeConstSpan(golden.tokens).subspan(position + int64_t{11} * part.sequence, part.count),
             part.logit_rows});
        position += part.count;
        pending.push_back(position - gold_positions[part.sequence]);
        if (part.logit_rows > 0) gold_positions[part.sequence] = position;
      }
      check(step, pending, pipeline.Forward(chunks));
    }
  };
  std::vector<std::vector<float>> expected;
  run(whole, [&](const auto&, const auto&, const std::vector<float>& logits) { expected.push_back(logits); });

  for (const std::vector<int>& cuts : splits) {
    SCOPED_TRACE(testing::Message() << "stages begin at layers 0, " << testing::PrintToString(cuts));
    Pipeline pipeline(*device.backend, golden.checkpoint, golden.config, ExactOptions(), cuts);
    size_t index = 0;
    run(pipeline,
        [&](const std::vector<Part>& step, const std::vector<int64_t>& pending, const std::vector<float>& logits) {
          EXPECT_TRUE(Same(logits, expected[index])) << "step " << index;
          ++index;
          ASSERT_EQ(pipeline.flows().size(), cuts.size());
          for (size_t i = 0; i < cuts.size(); ++i) {
            Flow flow;
            for (size_t part = 0; part < step.size(); ++part) {
              const Flow one = ExpectedFlow(pipeline.shape(), cuts[i], step[part], pending[part]);
              flow.hidden_rows += one.hidden_rows;
              flow.compressed_rows += one.compressed_rows;
            }
            EXPECT_EQ(pipeline.flows()[i], flow) << "boundary before layer " << cuts[i] << ", step " << index;
          }
        });
  }
}

// Compressed rows are rounded once, before they go to any stage, and a fork takes them along.
TEST_P(SplitTest, RowsOf8BitsAreTheSameOnEveryStage) {
  StageOptions options = ExactOptions();
  options.cache_dtype = DType::kInt8;
  const ModelShape shape = *ReadModelShape(*golden.checkpoint, golden.config);
  if (!CheckCacheDType(*golden.checkpoint, shape, options.cache_dtype).ok())
    GTEST_SKIP() << "this family keeps keys and values";
  Pipeline whole(*device.backend, golden.checkpoint, golden.config, options);
  const std::vector<float> expected = whole.AllLogits(golden.tokens, 160);
  std::vector<int> every_layer;
  for (int cut = 1; cut < shape.layers(); ++cut) every_layer.push_back(cut);
  for (const std::vector<int>& cuts : {every_layer, {shape.layers() - 1}}) {
    Pipeline pipeline(*device.backend, golden.checkpoint, golden.config, options, cuts);
    const absl::Span<const int32_t> tokens = golden.tokens;
    const int original = pipeline.Open();
    pipeline.Forward({original, tokens.subspan(0, 70), 0});
    const int copy = pipeline.Fork(original);
    for (const int slot : {original, copy}) {
      const std::vector<float> logits = pipeline.Forward({slot, tokens.subspan(70), 30});
      EXPECT_TRUE(Same(logits, absl::MakeConstSpan(expected).subspan(expected.size() - 30 * whole.vocab())));
    }
  }
}

// A fork must take along what every stage keeps: caches, states, shift rows, the newest Finch-side rows.
TEST_P(SplitTest, ForksOfSplitModels) {
  Pipeline whole(*device.backend, golden.checkpoint, golden.config);
  const std::vector<float> expected = whole.AllLogits(golden.tokens, 160);
  std::vector<int> cuts;
  for (int cut = 1; cut < whole.shape().layers(); ++cut) cuts.push_back(cut);
  Pipeline pipeline(*device.backend, golden.checkpoint, golden.config, ExactOptions(), cuts);
  const absl::Span<const int32_t> tokens = golden.tokens;
  const int original = pipeline.Open();
  pipeline.Forward({original, tokens.subspan(0, 70), 0});
  const int copy = pipeline.Fork(original);
  pipeline.Close(original);
  const std::vector<float> logits = pipeline.Forward({copy, tokens.subspan(70), 30});
  EXPECT_TRUE(Same(logits, absl::MakeConstSpan(expected).subspan(expected.size() - 30 * whole.vocab())));
}

INSTANTIATE_TEST_SUITE_P(Golden, SplitTest, testing::ValuesIn(GoldenNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace goldfinch
