#include "coordinator/planner/planner.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/planner/model_description.h"
#include "coordinator/planner/planner_test_util.h"
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
  EXPECT_EQ(partition->cache_tokens, 2 * 64 + 5 * 64)
      << "the two pages that one sequence needs, and five; kept rows borrow what is not used of them";
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

// ---- The released size: 24 layers of width 2048, 8 of them GOLD, on machines of 22.7 GB

// What each stage reserves, kept rows included, in tenths of a GB.
std::vector<int64_t> Reserved(const cluster::v1::Described& model, const Partition& partition,
                              const PartitionOptions& options) {
  const ModelMemory memory = ReadModelMemory(model);
  std::vector<int64_t> reserved;
  for (size_t s = 0; s < partition.first_layers.size(); ++s) {
    const bool is_last = s + 1 == partition.first_layers.size();
    StageSettings settings{.first_layer = partition.first_layers[s],
                           .last_layer = is_last ? 24 : partition.first_layers[s + 1],
                           .later_stages = static_cast<int>(partition.first_layers.size() - s) - 1,
                           .max_sequences = options.max_sequences,
                           .cache_tokens = partition.cache_tokens,
                           .max_step_tokens = options.max_step_tokens,
                           .max_logit_rows = options.max_logit_rows};
    settings.kept_bytes = KeptBytes(memory, settings, kMachine.memory_bytes);
    reserved.push_back(PlanStageMemory(memory, settings).total() / 100'000'000);
  }
  return reserved;
}

// Where nothing is known of what tiers take, one stage attends for all GOLD layers. But kept rows need memory, and two
// stages have twice as much of it.
TEST(PlannerTest, GoldLayersAreSpreadWhereTheirKeptRowsHaveMemory) {
  const PartitionOptions options = ReleasedOptions();
  cluster::v1::Described no_tiers = Released();
  no_tiers.mutable_memory()->clear_key_table_bytes();  // then nothing is known of what tiers take
  const auto before = PartitionFor(no_tiers, std::vector<WorkerResources>(3, kMachine), options);
  ASSERT_TRUE(before.ok()) << before.status();
  EXPECT_THAT(before->first_layers, ElementsAre(0, 8, 16));
  EXPECT_THAT(Reserved(Released(), *before, options), ElementsAre(16, 14, 227));

  const auto after = PartitionFor(Released(), std::vector<WorkerResources>(3, kMachine), options);
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_THAT(after->first_layers, ElementsAre(0, 16, 20));
  EXPECT_THAT(Reserved(Released(), *after, options), ElementsAre(27, 227, 227));
}

TEST(PlannerTest, WithMemoryForTheHighestTierOneStageAttendsForAll) {
  WorkerResources large = kMachine;
  large.memory_bytes = 400'000'000'000;
  const auto partition = PartitionFor(Released(), std::vector<WorkerResources>(3, large), ReleasedOptions());
  ASSERT_TRUE(partition.ok()) << partition.status();
  EXPECT_THAT(partition->first_layers, ElementsAre(0, 8, 16));
}

// ---- How many sequences

TEST(PlannerTest, SequencesAreAsManyAsDecodingGainsFromAndMemoryAllows) {
  PartitionOptions options = ReleasedOptions();
  options.max_sequences = 0;
  options.max_logit_rows = 10;
  const auto sequences = [&](int64_t memory_bytes, double flops) {
    WorkerResources worker = kMachine;
    worker.memory_bytes = memory_bytes;
    worker.flops = flops;
    const auto partition = PartitionFor(Released(), {worker}, options);
    EXPECT_TRUE(partition.ok()) << partition.status();
    if (!partition.ok()) return 0;
    EXPECT_EQ(partition->max_logit_rows, 10 + partition->max_sequences);
    return partition->max_sequences;
  };
  EXPECT_EQ(sequences(22'700'000'000, 1.7e11), 64);
  EXPECT_EQ(sequences(80'000'000'000, 1e14), 256);
  EXPECT_EQ(sequences(80'000'000'000, 1e12), 64);
  // A sequence's states take 8.8 MB here.
  EXPECT_EQ(sequences(5'000'000'000, 1e14), 16);
  EXPECT_EQ(sequences(4'600'000'000, 1e14), 8);
  options.max_step_tokens = 100;
  EXPECT_EQ(sequences(80'000'000'000, 1e14), 100) << "a step has a token of each";
  // The slowest of several workers decides.
  WorkerResources fast = kMachine;
  fast.flops = 1e14;
  EXPECT_EQ(AutoSequences({fast, fast}), kSequencesManyMax);
  EXPECT_EQ(AutoSequences({fast, kMachine}), kSequencesFewMax);
}

// States are set aside for all sequences, whether they run or not.
TEST(PlannerTest, StatesTakeASmallPartOfTheMemory) {
  PartitionOptions options = ReleasedOptions();
  options.max_sequences = 0;
  options.max_step_tokens = 4096;
  const auto share_of = [&](const cluster::v1::Described& model, int64_t memory_bytes, int sequences) {
    const StageMemory memory =
        PlanStageMemory(ReadModelMemory(model),
                        {.last_layer = model.layers_size(), .max_sequences = sequences, .max_step_tokens = 4096});
    const int64_t states = memory.shift_states + memory.wkv_states + memory.tail_rows;
    return static_cast<double>(states) / static_cast<double>(memory_bytes - memory.weights - memory.tables);
  };
  struct Case {
    cluster::v1::Described model;
    int64_t memory_bytes;
    double flops;
    int sequences;
    double share;
  };
  const std::vector<Case> cases = {
      {Released(), 21'600'000'000, 1.7e11, 64, 0.03},        {Released(), 72'000'000'000, 1e14, 256, 0.03},
      {Released(), 127'000'000'000, 1e14, 256, 0.02},        {Released(32, 4096), 21'600'000'000, 1.7e11, 32, 0.10},
      {Released(32, 4096), 72'000'000'000, 1e14, 256, 0.11}, {Released(32, 4096), 127'000'000'000, 1e14, 256, 0.05},
      {Released(32, 4096), 18'000'000'000, 1.7e11, 16, 0.11}};
  for (const Case& test_case : cases) {
    WorkerResources worker = kMachine;
    worker.memory_bytes = test_case.memory_bytes;
    worker.flops = test_case.flops;
    const auto partition = PartitionFor(test_case.model, {worker}, options);
    ASSERT_TRUE(partition.ok()) << partition.status();
    const double share = share_of(test_case.model, test_case.memory_bytes, partition->max_sequences);
    RecordProperty("sequences", partition->max_sequences);
    EXPECT_EQ(partition->max_sequences, test_case.sequences) << test_case.memory_bytes << ": " << share;
    EXPECT_NEAR(share, test_case.share, 0.01);
    EXPECT_LE(share, kStatesFraction);
  }
}

TEST(PlannerTest, WithTooLittleMemoryForOneSequenceTheErrorIsThatOfOne) {
  PartitionOptions options = ReleasedOptions();
  options.max_sequences = 0;
  WorkerResources small = kMachine;
  small.memory_bytes = 1'000'000'000;
  const absl::Status status = PartitionFor(Released(), {small}, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("with 1 sequences (max_sequences)"));
}

TEST(PlannerTest, MoreStagesThanLayersAreRefused) {
  EXPECT_EQ(PartitionFor(Model(2, 0), std::vector<WorkerResources>(3, kWorker), Options()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace goldfinch
