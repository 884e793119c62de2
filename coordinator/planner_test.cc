#include "coordinator/planner.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr WorkerResources kWorker{int64_t{1} << 40, 1e9, 1e9};

// `finch` equal layers, then `gold` that read as much and are not run for prompts.
cluster::v1::Described Model(int finch, int gold) {
  cluster::v1::Described model;
  for (int i = 0; i < finch + gold; ++i) {
    cluster::v1::LayerDescription& layer = *model.add_layers();
    layer.set_weight_bytes(1000);
    layer.set_state_bytes(10);
    layer.set_prefill_flops(i < finch ? 2000 : 0);
    layer.set_decode_bytes(1000);
  }
  model.set_gold_layers(gold);
  model.set_width(1);
  model.set_vocab_size(1);
  model.set_compressed_bytes_per_token(gold > 0 ? 4 : 0);
  return model;
}

PlanOptions Options() {
  PlanOptions options;
  options.max_sequences = 2;
  options.max_sequence_tokens = 100;
  return options;
}

TEST(PlannerTest, EqualLayersAreCutInEqualParts) {
  const auto plan = PlanStages(Model(12, 0), std::vector<WorkerResources>(4, kWorker), Options());
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(plan->first_layers, ElementsAre(0, 3, 6, 9));
  EXPECT_EQ(plan->cache_tokens, 200) << "no more than all sequences can use";
  EXPECT_DOUBLE_EQ(plan->seconds_per_prompt_token, 3 * 2000 / 1e9);
}

TEST(PlannerTest, GoldLayersCostOnlyDecoding) {
  // A Finch layer takes 8 * 2000 + 1000, a GOLD layer 1000: the 6 GOLD layers are lighter than one Finch layer.
  const auto plan = PlanStages(Model(6, 6), std::vector<WorkerResources>(3, kWorker), Options());
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(plan->first_layers, ElementsAre(0, 2, 4));
}

TEST(PlannerTest, AFasterWorkerTakesMoreLayers) {
  WorkerResources fast = kWorker;
  fast.flops *= 3;
  fast.read_bytes_per_second *= 3;
  const auto plan = PlanStages(Model(8, 0), {fast, kWorker}, Options());
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(plan->first_layers, ElementsAre(0, 6));
}

TEST(PlannerTest, MemoryBoundsAStage) {
  WorkerResources small = kWorker;
  small.memory_bytes = 2600;  // two layers with their states
  const auto plan = PlanStages(Model(8, 0), {small, kWorker}, Options());
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(plan->first_layers, ElementsAre(0, 2));
  const auto never = PlanStages(Model(8, 0), {small, small}, Options());
  EXPECT_EQ(never.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(never.status().message()), HasSubstr("does not fit 2 workers"));
}

TEST(PlannerTest, TheCacheTakesWhatMemoryIsLeft) {
  WorkerResources worker = kWorker;
  worker.memory_bytes = 10000;
  PlanOptions options = Options();
  options.max_sequences = 20;
  const auto plan = PlanStages(Model(2, 2), {worker}, options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  // 9000 usable, less 4 * (1000 + 20 * 10) of layers, 80 of logits and 80 of activations; 4 a token. A quarter is for
  // what GOLD layers keep.
  const int64_t tokens = (9000 - 4800 - 80 - 80) / 4;
  EXPECT_EQ(plan->cache_tokens, tokens - tokens / 4);
  // But not of what one sequence, or the user, wants.
  options.max_sequence_tokens = tokens - 10;
  EXPECT_EQ(PlanStages(Model(2, 2), {worker}, options)->cache_tokens, tokens - 10);
  options.cache_tokens = tokens;
  EXPECT_EQ(PlanStages(Model(2, 2), {worker}, options)->cache_tokens, tokens);
}

TEST(PlannerTest, ASplitByHandIsTakenOrRefused) {
  PlanOptions options = Options();
  options.split_layers = 8;
  const auto refusal = [&](std::vector<int> split) {
    options.split = std::move(split);
    return std::string(PlanStages(Model(8, 0), {kWorker, kWorker}, options).status().message());
  };
  EXPECT_EQ(refusal({0, 7}), "");
  EXPECT_THAT(refusal({0}), HasSubstr("the split 0 has 1 stages, there are 2 workers"));
  EXPECT_THAT(refusal({1, 4}), HasSubstr("does not begin with layer 0"));
  EXPECT_THAT(refusal({0, 0}), HasSubstr("does not ascend"));
  EXPECT_THAT(refusal({0, 8}), HasSubstr("has an empty last stage"));
  options.split_layers = 9;
  EXPECT_THAT(refusal({0, 7}), HasSubstr("is for 9 layers, the model has 8"));
  options.split_layers = 8;
  WorkerResources small = kWorker;
  small.memory_bytes = 3000;
  EXPECT_THAT(std::string(PlanStages(Model(8, 0), {small, kWorker}, options).status().message()),
              HasSubstr("stage 0 (layers 0-6) needs"));
}

TEST(PlannerTest, MoreStagesThanLayersAreRefused) {
  EXPECT_EQ(PlanStages(Model(2, 0), std::vector<WorkerResources>(3, kWorker), Options()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace goldfinch
