// A layer kind of the test's own: a struct, a line and a function, with side rows that cross layers and stages.
#include <any>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "worker/model/model.h"
#include "worker/model/model_memory.h"
#include "worker/model/random_model.h"
#include "worker/stage/stage.h"

namespace goldfinch {
namespace {

constexpr int64_t kVocab = 40;
constexpr int64_t kWidth = 64;
const std::vector<std::string> kLayers = {"finch", "finch", "finch", "finch"};

struct SideWeights {
  bool writes = false;           // the first layer of the model: side = x; others: residual += side W
  std::vector<float> weight;     // [D, D]
  ConstTensor weight_on_device;  // the same
};

void SideForward(const LayerContext& context, const std::any& weights, ConstTensor x, const LayerState& /*state*/,
                 Tensor residual) {
  const SideWeights& w = *std::any_cast<SideWeights>(&weights);
  if (w.writes) return context.backend.Convert(x, context.side);
  context.backend.MatMul(context.side, Matrix{w.weight_on_device}, {.accumulate = true}, residual);
}

constexpr TimeMixKind kSideKind = {
    .name = "side", .uses_side_rows = true, .forward = SideForward, .activations = [](const std::any&, int64_t width) {
      return width;
    }};

// The layers [first, last) of one random model, with time mixes of the test's kind.
std::shared_ptr<const Model> SideModel(Backend& backend, int first, int last) {
  const auto loaded = LoadModel(backend, OpenTensors(RandomModel({.layers = kLayers})), {}, first, last);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  auto model = std::make_shared<Model>(**loaded);
  model->shape.kinds.assign(kLayers.size(), &kSideKind);
  for (int index = first; index < last; ++index) {
    SideWeights weights;
    weights.writes = index == 0;
    weights.weight.resize(kWidth * kWidth);
    for (int64_t i = 0; i < kWidth * kWidth; ++i) {
      weights.weight[i] = static_cast<float>((i * 37 + index * 11) % 19 - 9) / 64;
    }
    model->layers[index - first].time_mix = std::move(weights);
    auto& kept = *std::any_cast<SideWeights>(&model->layers[index - first].time_mix);
    kept.weight_on_device = {kept.weight.data(), DType::kF32, {kWidth, kWidth}};
  }
  return model;
}

// The stages of one pipeline in turn, each with the outputs of the one before it.
class Pipeline {
 public:
  explicit Pipeline(const std::vector<int>& first_layers) {
    for (size_t i = 0; i < first_layers.size(); ++i) {
      const int last = i + 1 < first_layers.size() ? first_layers[i + 1] : static_cast<int>(kLayers.size());
      auto stage = Stage::Create(*backend_, SideModel(*backend_, first_layers[i], last),
                                 {.max_sequences = 2, .max_step_tokens = 20, .max_logit_rows = 20});
      EXPECT_TRUE(stage.ok()) << stage.status();
      EXPECT_TRUE((*stage)->Open().ok());
      stages_.push_back(*std::move(stage));
    }
  }

  std::vector<float> Logits(const std::vector<int32_t>& ids) {
    const Chunk chunk = {0, ids, static_cast<int64_t>(ids.size())};
    StageOutput output;
    for (const std::unique_ptr<Stage>& stage : stages_) {
      const StageInput input = {.hidden = output.hidden, .compressed = {}};
      EXPECT_EQ(stage->InputRows({&chunk, 1}).hidden, stage == stages_.front() ? 0 : 2 * chunk.logit_rows);
      output = {};
      EXPECT_TRUE(stage->Forward({&chunk, 1}, input, &output).ok());
    }
    const auto* logits = static_cast<const float*>(output.logits.data);
    return {logits, logits + chunk.logit_rows * kVocab};
  }

  Stage& stage(int index) { return *stages_[index]; }

 private:
  const std::unique_ptr<Backend> backend_ = MakeCpuBackend(/*threads=*/1);
  std::vector<std::unique_ptr<Stage>> stages_;
};

TEST(SideRowsTest, CrossLayersAndStages) {
  const std::vector<int32_t> first = RandomTokens(7, kVocab, 3), second = RandomTokens(5, kVocab, 4);
  Pipeline whole({0});
  const std::vector<float> expected_first = whole.Logits(first), expected_second = whole.Logits(second);
  for (const std::vector<int>& split : {std::vector<int>{0, 1}, {0, 2}, {0, 1, 2, 3}}) {
    Pipeline pipeline(split);
    EXPECT_EQ(pipeline.Logits(first), expected_first);
    EXPECT_EQ(pipeline.Logits(second), expected_second);
  }
}

TEST(SideRowsTest, ArePlanned) {
  Pipeline pipeline({0, 2});
  Stage& stage = pipeline.stage(1);
  const std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/1);
  ModelMemory memory = MemoryOf(stage.model(), DType::kBf16, *backend);
  ASSERT_TRUE(memory.uses_side_rows);
  const StageSettings settings = MemorySettings(2, 4, stage.options());
  const StageMemory with = PlanStageMemory(memory, settings);
  memory.uses_side_rows = false;
  const StageMemory without = PlanStageMemory(memory, settings);
  EXPECT_EQ(with.received_rows, 2 * without.received_rows);
  EXPECT_GT(with.activations, without.activations);
}

}  // namespace
}  // namespace goldfinch
