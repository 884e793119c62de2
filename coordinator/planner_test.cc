#include "coordinator/planner.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/model_description.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const WorkerResources kWorker{int64_t{1} << 40, 1e9, 1e9};

// `finch` equal layers, then `gold` that read as much and are not run for prompts.
cluster::v1::Described Model(int finch, int gold) {
  cluster::v1::Described model;
  for (int i = 0; i < finch + gold; ++i) {
    cluster::v1::LayerDescription& layer = *model.add_layers();
    layer.set_weight_bytes(1000);
    layer.set_state_bytes(10);
    layer.set_prefill_flops(i < finch ? 2000 : 0);
    layer.set_decode_bytes(1000);
    cluster::v1::LayerMemory& memory = *model.mutable_memory()->add_layers();
    memory.set_weight_bytes(1000);
    memory.set_shift_bytes(10);
  }
  model.set_gold_layers(gold);
  model.set_width(1);
  model.set_vocab_size(1);
  model.set_compressed_bytes_per_token(gold > 0 ? 4 : 0);
  return model;
}

PartitionOptions Options() {
  PartitionOptions options;
  options.max_sequences = 2;
  options.max_sequence_tokens = 100;
  return options;
}

// All workers keep the model alike.
absl::StatusOr<Partition> PartitionFor(const cluster::v1::Described& model, std::vector<WorkerResources> workers,
                                       const PartitionOptions& options) {
  const ModelMemory memory = ReadModelMemory(model);
  for (WorkerResources& worker : workers) worker.model = &memory;
  return PartitionLayers(model, workers, options);
}

// What a stage takes with the caches of one sequence.
int64_t Needs(const cluster::v1::Described& model, int first, int last, const PartitionOptions& options) {
  return PlanStageMemory(ReadModelMemory(model), {.first_layer = first,
                                                  .last_layer = last,
                                                  .later_stages = last < model.layers_size() ? 1 : 0,
                                                  .max_sequences = options.max_sequences,
                                                  .cache_tokens = options.max_sequence_tokens,
                                                  .max_step_tokens = options.max_step_tokens,
                                                  .max_logit_rows = options.max_logit_rows})
      .total();
}

TEST(PlannerTest, EqualLayersAreCutInEqualParts) {
  const auto partition = PartitionFor(Model(12, 0), std::vector<WorkerResources>(4, kWorker), Options());
  ASSERT_TRUE(partition.ok()) << partition.status();
  EXPECT_THAT(partition->first_layers, ElementsAre(0, 3, 6, 9));
  EXPECT_EQ(partition->cache_tokens, 200) << "no more than all sequences can use";
  EXPECT_DOUBLE_EQ(partition->seconds_per_prompt_token, 3 * 2000 / 1e9);
}

TEST(PlannerTest, GoldLayersCostOnlyDecoding) {
  // A Finch layer takes 8 * 2000 + 1000, a GOLD layer 1000: the 6 GOLD layers are lighter than one Finch layer.
  const auto partition = PartitionFor(Model(6, 6), std::vector<WorkerResources>(3, kWorker), Options());
  ASSERT_TRUE(partition.ok());
  EXPECT_THAT(partition->first_layers, ElementsAre(0, 2, 4));
}

TEST(PlannerTest, AFasterWorkerTakesMoreLayers) {
  WorkerResources fast = kWorker;
  fast.flops *= 3;
  fast.read_bytes_per_second *= 3;
  const auto partition = PartitionFor(Model(8, 0), {fast, kWorker}, Options());
  ASSERT_TRUE(partition.ok());
  EXPECT_THAT(partition->first_layers, ElementsAre(0, 6));
}

TEST(PlannerTest, MemoryBoundsAStage) {
  WorkerResources small = kWorker;
  small.memory_bytes = Needs(Model(8, 0), 0, 2, Options());
  const auto partition = PartitionFor(Model(8, 0), {small, kWorker}, Options());
  ASSERT_TRUE(partition.ok());
  EXPECT_THAT(partition->first_layers, ElementsAre(0, 2));
  const auto never = PartitionFor(Model(8, 0), {small, small}, Options());
  EXPECT_EQ(never.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(never.status().message()),
              AllOf(HasSubstr("does not fit 2 workers"), HasSubstr("with 2 sequences (max_sequences)"),
                    HasSubstr("one sequence of 100 tokens (max_model_len)"), HasSubstr("weights 8000 B"),
                    HasSubstr("gpu_memory_utilization")));
}

TEST(PlannerTest, TheCacheTakesWhatMemoryIsLeft) {
  const cluster::v1::Described model = Model(2, 2);
  PartitionOptions options = Options();
  options.max_sequences = 20;
  WorkerResources worker = kWorker;
  const int64_t page = 64 * 4;
  worker.memory_bytes = Needs(model, 0, 4, options) + 5 * page + page / 2;
  const auto partition = PartitionFor(model, {worker}, options);
  ASSERT_TRUE(partition.ok()) << partition.status();
  EXPECT_EQ(partition->cache_tokens, 2 * 64 + 4 * 64)
      << "the two pages that one sequence needs, and five, less a quarter of all for what GOLD layers keep";
  EXPECT_EQ(partition->cache_tokens_wanted, 2000);
  EXPECT_EQ(partition->tightest_stage, 0);
  // In a pipeline the stage with the least room counts; a stage without caches needs none.
  WorkerResources second = kWorker;
  second.memory_bytes = Needs(model, 2, 4, options) + 5 * page;
  const auto two = PartitionFor(model, {kWorker, second}, options);
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_LT(two->cache_tokens, 2000);
  EXPECT_EQ(two->tightest_stage, 1);
  // Never less than one sequence of full length.
  worker.memory_bytes = Needs(model, 0, 4, options);
  EXPECT_TRUE(PartitionFor(model, {worker}, options).ok());
  --worker.memory_bytes;
  const std::string error(PartitionFor(model, {worker}, options).status().message());
  EXPECT_THAT(error, AllOf(HasSubstr("does not fit 1 worker: with 20 sequences"), HasSubstr("weights 4000 B"),
                           HasSubstr("shift states 800 B"), HasSubstr("compressed cache"), HasSubstr("may be used")));
}

// Two kinds of device keep one model in different ways: each stage is planned as its own worker keeps it.
TEST(PlannerTest, EachWorkerCountsItsOwnWay) {
  const cluster::v1::Described model = Model(8, 0);
  const ModelMemory lean = ReadModelMemory(model);
  ModelMemory wide = lean;
  for (LayerMemory& layer : wide.layers) layer.weight_bytes *= 2;
  WorkerResources first = kWorker, second = kWorker;
  first.model = &lean;
  second.model = &wide;
  first.memory_bytes = second.memory_bytes = Needs(model, 2, 8, Options());
  const auto partition = PartitionLayers(model, std::vector<WorkerResources>{first, second}, Options());
  ASSERT_TRUE(partition.ok()) << partition.status();
  EXPECT_THAT(partition->first_layers, ElementsAre(0, 5)) << "three layers of the second's kind weigh as much as six";
}

TEST(PlannerTest, ASplitByHandIsTakenOrRefused) {
  PartitionOptions options = Options();
  options.split_layers = 8;
  const auto refusal = [&](std::vector<int> split) {
    options.split = std::move(split);
    return std::string(PartitionFor(Model(8, 0), {kWorker, kWorker}, options).status().message());
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
  small.memory_bytes = Needs(Model(8, 0), 0, 3, Options());
  EXPECT_THAT(std::string(PartitionFor(Model(8, 0), {small, kWorker}, options).status().message()),
              HasSubstr("stage 0 (layers 0-6) does not fit its worker: "));
}

TEST(PlannerTest, MoreStagesThanLayersAreRefused) {
  EXPECT_EQ(PartitionFor(Model(2, 0), std::vector<WorkerResources>(3, kWorker), Options()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace goldfinch
