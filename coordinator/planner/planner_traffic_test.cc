// What the planner makes of the traffic that is expected, of links and of mixed workers, as histories.
#include <algorithm>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/stage_memory.h"
#include "coordinator/planner/model_description.h"
#include "coordinator/planner/planner.h"
#include "coordinator/planner/planner_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

// A large GPU, at the rates that products and reading reach there.
const WorkerResources kGpu{126'000'000'000, 7e14, 4e12};
const WorkerResources kLargeMachine{int64_t{1} << 42, 1.7e11, 2.6e10};

// GPUs keep keys, values and tables in 16 bits.
cluster::v1::Described OnGpus() {
  cluster::v1::Described model = Released();
  model.mutable_memory()->set_key_table_bytes(int64_t{65'536} * 2048 * 2);
  return model;
}

// The shape of the demo model: 4 Finch-C2 layers and 2 GOLD layers of width 128, bytes as tokens.
cluster::v1::Described Demo() {
  constexpr int64_t kWidth = 128, kVocab = 257, kRank = 32;
  cluster::v1::Described model;
  cluster::v1::ModelMemory& memory = *model.mutable_memory();
  for (int i = 0; i < 6; ++i) {
    const bool gold = i >= 4;
    const int64_t weight_bytes = gold ? 340'000 : 400'000, wkv_bytes = gold ? 0 : kWidth * 64 * 4;
    cluster::v1::LayerDescription& layer = *model.add_layers();
    layer.set_weight_bytes(weight_bytes);
    layer.set_state_bytes(wkv_bytes + 2 * kWidth * 4);
    layer.set_prefill_flops(gold ? 0 : 4.5e5);
    layer.set_decode_bytes(static_cast<double>(weight_bytes + wkv_bytes + 2 * kWidth * 4));
    cluster::v1::LayerMemory& to = *memory.add_layers();
    to.set_weight_bytes(weight_bytes);
    to.set_table_bytes(gold ? kVocab * 2 * kRank * 4 : 0);
    to.set_shift_bytes(2 * kWidth * 4);
    to.set_wkv_bytes(wkv_bytes);
    to.set_activation_bytes(10'000);
  }
  model.set_gold_layers(2);
  model.set_width(kWidth);
  model.set_vocab_size(kVocab);
  model.set_compressed_width(kWidth / 16);
  model.set_compressed_bytes_per_token(18);
  memory.set_compressed_row_bytes(16);
  memory.set_key_table_bytes(kVocab * kWidth * 4);
  return model;
}

PartitionOptions Options(double link_bytes_per_second) {
  PartitionOptions options = ReleasedOptions();
  options.links.bytes_per_second = link_bytes_per_second;
  return options;
}

// Much is read, little is written.
ExpectedTraffic Reading() { return {.prompt_tokens = 65'536, .output_tokens = 1, .context_tokens = 65'536}; }

Partition Plan(const cluster::v1::Described& model, const std::vector<WorkerResources>& workers,
               const PartitionOptions& options) {
  const auto partition = PartitionFor(model, workers, options);
  EXPECT_TRUE(partition.ok()) << partition.status();
  return partition.ok() ? *partition : Partition{};
}

// ---- The border

// Either a stage begins at the border, or one line says why none does and what a border split would cost.
TEST(PlannerTrafficTest, AStageBeginsAtTheBorderOrALineSaysWhyNot) {
  const auto check = [](const cluster::v1::Described& model, const WorkerResources& worker, double link, int border) {
    int at_border = 0;
    for (int stages = 2; stages <= model.layers_size() && stages <= 8; ++stages) {
      const Partition partition = Plan(model, std::vector<WorkerResources>(stages, worker), Options(link));
      const std::vector<int>& first_layers = partition.first_layers;
      const bool is_at_border = std::find(first_layers.begin(), first_layers.end(), border) != first_layers.end();
      EXPECT_THAT(partition.why,
                  StartsWith(is_at_border ? absl::StrCat("a stage begins at the border, layer ", border)
                                          : absl::StrCat("no stage begins at the border, layer ", border)))
          << stages;
      if (!is_at_border) {
        EXPECT_THAT(partition.why, HasSubstr(" times as long")) << stages;
      }
      at_border += is_at_border ? 1 : 0;
    }
    return at_border;
  };
  EXPECT_GE(check(Released(), kMachine, AssumedLinkSpeed("tcp"), 16), 5);
  EXPECT_GE(check(OnGpus(), kGpu, AssumedLinkSpeed("nccl"), 16), 5);
  EXPECT_GE(check(Demo(), kMachine, AssumedLinkSpeed("local"), 4), 4);
}

// The table of docs/decisions/0028-model-of-costs.md.
TEST(PlannerTrafficTest, SplitsOfTheReleasedShape) {
  const auto splits = [](const cluster::v1::Described& model, const WorkerResources& worker, const char* transport) {
    std::vector<std::string> texts;
    for (int stages = 2; stages <= 8; ++stages) {
      const Partition partition =
          Plan(model, std::vector<WorkerResources>(stages, worker), Options(AssumedLinkSpeed(transport)));
      texts.push_back(absl::StrJoin(partition.first_layers, ","));
    }
    return texts;
  };
  EXPECT_THAT(splits(Released(), kMachine, "tcp"),
              ElementsAre("0,19", "0,16,20", "0,16,19,22", "0,13,18,20,22", "0,8,16,18,20,22", "0,8,16,17,19,21,23",
                          "0,5,11,16,17,19,21,23"));
  EXPECT_THAT(splits(OnGpus(), kGpu, "nccl"),
              ElementsAre("0,19", "0,18,21", "0,16,19,22", "0,16,18,20,22", "0,16,18,19,21,23", "0,8,16,17,19,21,23",
                          "0,5,11,16,17,19,21,23"));
}

// At 65,536 positions the eight GOLD layers take longer for an answer than the sixteen others for a prompt. With two
// stages, the first therefore takes some of them: its boundary costs no more than one at the border.
TEST(PlannerTrafficTest, WithTwoStagesAttentionIsSharedBetweenThem) {
  const Partition partition = Plan(OnGpus(), {kGpu, kGpu}, Options(AssumedLinkSpeed("nccl")));
  EXPECT_THAT(partition.first_layers, ElementsAre(0, 19));
  EXPECT_THAT(partition.why, HasSubstr("the best such split, 0-15,16-23, takes 1."));
  EXPECT_THAT(partition.why, HasSubstr("later stages begin after the border, so no more crosses than there"));
}

TEST(PlannerTrafficTest, TheDemoOfThreeStagesBeginsOneAtTheBorder) {
  EXPECT_THAT(Plan(Demo(), {kMachine, kMachine, kMachine}, Options(AssumedLinkSpeed("local"))).first_layers,
              ElementsAre(0, 4, 5));
}

TEST(PlannerTrafficTest, ABorderSplitWinsWithinTheMargin) {
  PartitionOptions options = Options(AssumedLinkSpeed("tcp"));
  const std::vector<WorkerResources> workers(3, kMachine);
  const Partition partition = Plan(Released(), workers, options);
  EXPECT_THAT(partition.first_layers, ElementsAre(0, 16, 20));
  EXPECT_THAT(partition.why, HasSubstr("% longer than 0-17,18-20,21-23, which is within the margin"));
}

TEST(PlannerTrafficTest, BorderAndBalancedCanBeAskedFor) {
  PartitionOptions options = Options(AssumedLinkSpeed("nccl"));
  options.aim = SplitAim::kBorder;
  EXPECT_THAT(Plan(OnGpus(), {kGpu, kGpu}, options).first_layers, ElementsAre(0, 16));
  EXPECT_THAT(Plan(OnGpus(), {kGpu}, options).first_layers, ElementsAre(0)) << "what is left of a group may be one";
  options.aim = SplitAim::kBalanced;
  EXPECT_THAT(Plan(Released(), std::vector<WorkerResources>(3, kMachine), options).first_layers, ElementsAre(0, 18, 21))
      << "without a margin for the border";
  cluster::v1::Described no_gold = Released();
  no_gold.set_gold_layers(0);
  EXPECT_TRUE(PartitionFor(no_gold, {kMachine, kMachine}, options).ok());
  options.aim = SplitAim::kBorder;
  const absl::Status refused = PartitionFor(no_gold, {kMachine, kMachine}, options).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("the split is \"border\", but the model has no GOLD layers"));
}

TEST(PlannerTrafficTest, NoBorderSplitIsTakenThatDoesNotFit) {
  PartitionOptions options = Options(AssumedLinkSpeed("tcp"));
  options.cache_tokens = 1 << 20;
  // Eight GOLD layers are a little too large for the second worker.
  const ModelMemory memory = ReadModelMemory(Released());
  WorkerResources small = kMachine;
  small.memory_bytes = PlanStageMemory(memory, {.first_layer = 16,
                                                .last_layer = 24,
                                                .later_stages = 0,
                                                .max_sequences = options.max_sequences,
                                                .cache_tokens = options.cache_tokens,
                                                .max_step_tokens = options.max_step_tokens,
                                                .max_logit_rows = options.max_logit_rows})
                           .total() -
                       1;
  const Partition partition = Plan(Released(), {kMachine, small}, options);
  EXPECT_THAT(partition.first_layers, ElementsAre(0, Ge(17)));
  EXPECT_EQ(partition.why, "no stage begins at the border, layer 16: no such split fits the workers' memory");
  options.aim = SplitAim::kBorder;
  EXPECT_EQ(PartitionFor(Released(), {kMachine, small}, options).status().code(), absl::StatusCode::kResourceExhausted);
}

// ---- Traffic

TEST(PlannerTrafficTest, WherePromptsAreAllTheLayersThatReadThemAreDealtOut) {
  PartitionOptions options = Options(AssumedLinkSpeed("nccl"));
  options.traffic = Reading();
  EXPECT_THAT(Plan(OnGpus(), std::vector<WorkerResources>(2, kGpu), options).first_layers, ElementsAre(0, 8));
  EXPECT_THAT(Plan(OnGpus(), std::vector<WorkerResources>(4, kGpu), options).first_layers, ElementsAre(0, 4, 8, 12));
}

TEST(PlannerTrafficTest, TheLongerTheContextTheMoreStagesAttend) {
  PartitionOptions options = Options(AssumedLinkSpeed("nccl"));
  const auto gold_stages = [&](int64_t context_tokens) {
    options.traffic.context_tokens = context_tokens;
    options.traffic.prompt_tokens = 8192;
    const Partition partition = Plan(OnGpus(), std::vector<WorkerResources>(6, kGpu), options);
    return std::count_if(partition.first_layers.begin(), partition.first_layers.end(),
                         [](int first) { return first >= 16; });
  };
  EXPECT_LT(gold_stages(8704), gold_stages(32'768));
  EXPECT_LE(gold_stages(32'768), gold_stages(262'144));
  EXPECT_GE(gold_stages(262'144), 5);
}

TEST(PlannerTrafficTest, TrafficBeyondTheLimitsOfTheGroupIsNotExpected) {
  PartitionOptions options = Options(AssumedLinkSpeed("nccl"));
  options.max_sequence_tokens = 1300;
  options.max_sequences = 4;
  const std::vector<WorkerResources> workers(2, kGpu);
  const auto traffic = [&] {
    const Partition partition = Plan(OnGpus(), workers, options);
    const ModelMemory memory = ReadModelMemory(OnGpus());
    std::vector<WorkerResources> whole = workers;
    for (WorkerResources& worker : whole) worker.model = &memory;
    return CompareSplits(OnGpus(), whole, options, partition)[0].traffic;
  };
  EXPECT_EQ(traffic(),
            (ExpectedTraffic{.prompt_tokens = 1280, .output_tokens = 20, .context_tokens = 1300, .sequences = 4}));
  options.cache_tokens = 2600;
  EXPECT_EQ(traffic().sequences, 2);
  options.max_sequence_tokens = 1;
  EXPECT_EQ(traffic(), (ExpectedTraffic{.prompt_tokens = 1, .output_tokens = 1, .context_tokens = 1, .sequences = 4}));
}

TEST(PlannerTrafficTest, ALongPromptIsExpectedInFull) {
  PartitionOptions options = Options(AssumedLinkSpeed("nccl"));
  options.traffic.prompt_tokens = 200'000;
  const ModelMemory memory = ReadModelMemory(OnGpus());
  std::vector<WorkerResources> workers(2, kGpu);
  for (WorkerResources& worker : workers) worker.model = &memory;
  const ExpectedTraffic traffic =
      CompareSplits(OnGpus(), workers, options, Plan(OnGpus(), workers, options))[0].traffic;
  EXPECT_EQ(traffic.prompt_tokens, 200'000);
  EXPECT_EQ(traffic.context_tokens, 200'000 + traffic.output_tokens) << "more than its default";
}

// ---- The split that there is

TEST(PlannerTrafficTest, TheSplitThatThereIsStaysIfAnotherIsLittleBetter) {
  PartitionOptions options = Options(AssumedLinkSpeed("tcp"));
  const std::vector<WorkerResources> workers(3, kMachine);
  ASSERT_THAT(Plan(Released(), workers, options).first_layers, ElementsAre(0, 16, 20));
  options.kept_split = {0, 18, 21};
  const Partition kept = Plan(Released(), workers, options);
  EXPECT_THAT(kept.first_layers, ElementsAre(0, 18, 21));
  EXPECT_THAT(kept.why, StartsWith("as it was: 0-15,16-19,20-23 would take "));
  options.kept_split = {0, 8, 16};
  EXPECT_THAT(Plan(Released(), workers, options).first_layers, ElementsAre(0, 16, 20)) << "this one costs too much";
  options.kept_split = {0, 18};
  EXPECT_THAT(Plan(Released(), workers, options).first_layers, ElementsAre(0, 16, 20)) << "of another group";
  options.kept_split = {0, 18, 24};
  EXPECT_THAT(Plan(Released(), workers, options).first_layers, ElementsAre(0, 16, 20)) << "of another model";
  options.kept_split = {0, 18, 21};
  options.aim = SplitAim::kBorder;
  EXPECT_THAT(Plan(Released(), workers, options).first_layers, ElementsAre(0, 16, 20)) << "not at the border";
}

// ---- Links and mixed workers

TEST(PlannerTrafficTest, OverASlowLinkGoesWhatIsCompressed) {
  PartitionOptions options = Options(AssumedLinkSpeed("nccl"));
  options.traffic = Reading();
  EXPECT_THAT(Plan(OnGpus(), {kGpu, kGpu}, options).first_layers, ElementsAre(0, 8));
  options.links.bytes_per_second = AssumedLinkSpeed("tcp");
  EXPECT_THAT(Plan(OnGpus(), {kGpu, kGpu}, options).first_layers, ElementsAre(0, 16))
      << "8 KB a token would take 2.6 times as long as the Finch layers";
}

// The workers 0 and 1 are on one host, and 2 is on another.
TEST(PlannerTrafficTest, TheBorderLiesOnTheSlowLink) {
  PartitionOptions options = Options(0);
  options.traffic = Reading();
  options.links.table = {0, 400e9, 1e9, 400e9, 0, 1e9, 1e9, 1e9, 0};
  EXPECT_THAT(Plan(OnGpus(), {kGpu, kGpu, kGpu}, options).first_layers, ElementsAre(0, 8, 16));
  options.links.table = {0, 1e9, 1e9, 1e9, 0, 400e9, 1e9, 400e9, 0};
  EXPECT_THAT(Plan(OnGpus(), {kGpu, kGpu, kGpu}, options).first_layers, ElementsAre(0, Ge(16), Ge(17)))
      << "the first worker alone reads prompts";
}

TEST(PlannerTrafficTest, AWorkerThatReadsFastAttendsForMoreLayers) {
  WorkerResources fast = kGpu;
  fast.read_bytes_per_second *= 3;
  const PartitionOptions options = Options(AssumedLinkSpeed("nccl"));
  EXPECT_THAT(Plan(OnGpus(), {kGpu, kGpu}, options).first_layers, ElementsAre(0, 19));
  EXPECT_THAT(Plan(OnGpus(), {kGpu, fast}, options).first_layers, ElementsAre(0, 17));
  EXPECT_THAT(Plan(OnGpus(), {fast, kGpu}, options).first_layers, ElementsAre(0, 21));
}

// ---- The search

// Every split of small models, of other shapes and on other workers in each round.
TEST(PlannerTrafficTest, IsAsGoodAsTryingAllSplits) {
  std::mt19937 random(7);
  const auto between = [&](double least, double most) {
    return least + (most - least) * static_cast<double>(random() % 1001) / 1000;
  };
  for (int round = 0; round < 60; ++round) {
    cluster::v1::Described model = Released();
    const int layers = 4 + static_cast<int>(random() % 5), stages = 2 + static_cast<int>(random() % 3);
    model.mutable_layers()->DeleteSubrange(layers, 24 - layers);
    model.mutable_memory()->mutable_layers()->DeleteSubrange(layers, 24 - layers);
    const int gold = static_cast<int>(random() % layers);
    model.set_gold_layers(gold);
    for (int i = 0; i < layers; ++i) {
      const bool is_gold = i >= layers - gold;
      model.mutable_layers(i)->set_prefill_flops(is_gold ? 0 : between(1e7, 2e8));
      model.mutable_memory()->mutable_layers(i)->set_table_bytes(is_gold ? 65'536 * 2 * 64 * 4 : 0);
    }
    std::vector<WorkerResources> workers;
    PartitionOptions options = Options(0);
    for (int i = 0; i < stages; ++i) {
      workers.push_back({static_cast<int64_t>(between(10e9, 60e9)), between(1e11, 1e12), between(1e10, 1e11)});
    }
    for (int i = 0; i < stages * stages; ++i) options.links.table.push_back(between(1e7, 1e9));
    options.traffic.output_tokens = static_cast<int64_t>(between(1, 600));
    options.max_sequences = 16;
    const ModelMemory memory = ReadModelMemory(model);
    for (WorkerResources& worker : workers) worker.model = &memory;
    double best = 1e300, best_at_border = 1e300;
    Partition tried = Plan(model, workers, options);
    const std::vector<int> chosen = tried.first_layers;
    const auto cost_of = [&](const std::vector<int>& first_layers) {
      tried.first_layers = first_layers;
      return CompareSplits(model, workers, options, tried)[0].cost;
    };
    std::vector<int> first_layers = {0};
    const std::function<void()> try_all = [&] {
      if (static_cast<int>(first_layers.size()) == stages) {
        PartitionOptions given = options;
        given.split = first_layers;
        given.split_layers = layers;
        if (!PartitionLayers(model, workers, given).ok()) return;
        const double cost = cost_of(first_layers);
        best = std::min(best, cost);
        const bool at_border = std::find(first_layers.begin(), first_layers.end(), layers - gold) != first_layers.end();
        if (at_border && gold > 0) best_at_border = std::min(best_at_border, cost);
        return;
      }
      for (int next = first_layers.back() + 1; next < layers; ++next) {
        first_layers.push_back(next);
        try_all();
        first_layers.pop_back();
      }
    };
    try_all();
    const bool takes_border = best_at_border <= (1 + kBorderMargin) * best;
    EXPECT_NEAR(cost_of(chosen), takes_border ? best_at_border : best, 1e-9 * best)
        << round << ": " << ::testing::PrintToString(chosen);
  }
}

// Counted, as time depends on the machine: a step takes some 30 ns.
TEST(PlannerTrafficTest, AHundredLayersAndSixtyFourWorkersTakeFewSteps) {
  cluster::v1::Described model = OnGpus();
  while (model.layers_size() < 100) {
    const int like = model.layers_size() < 92 ? 0 : 16;
    *model.add_layers() = model.layers(like);
    *model.mutable_memory()->add_layers() = model.memory().layers(like);
  }
  // The released size's own GOLD layers are in the middle then, and count as Finch-side layers.
  std::mt19937 random(3);
  const auto about = [&](double value) { return value * (0.5 + static_cast<double>(random() % 1001) / 1000); };
  for (const int stages : {8, 33, 64}) {
    std::vector<WorkerResources> workers(stages, kGpu);
    PartitionOptions options = Options(AssumedLinkSpeed("nccl"));
    options.max_sequence_tokens = 1 << 17;
    EXPECT_LE(Plan(model, workers, options).search_steps, 300'000) << stages << " equal workers";
    for (WorkerResources& worker : workers) {
      worker = {static_cast<int64_t>(about(126e9)), about(7e14), about(4e12)};
    }
    for (int i = 0; i < stages * stages; ++i) options.links.table.push_back(about(2e9));
    EXPECT_LE(Plan(model, workers, options).search_steps, 1'000'000) << stages << " mixed workers";
  }
}

// ---- What others would do

TEST(PlannerTrafficTest, TheSplitStandsBesideTheTwoBestOthersAndTheBorder) {
  const cluster::v1::Described model = OnGpus();
  const ModelMemory memory = ReadModelMemory(model);
  std::vector<WorkerResources> workers(2, kGpu);
  for (WorkerResources& worker : workers) worker.model = &memory;
  const PartitionOptions options = Options(AssumedLinkSpeed("nccl"));
  const Partition partition = Plan(model, workers, options);
  const std::vector<SplitEstimate> splits = CompareSplits(model, workers, options, partition);
  ASSERT_EQ(splits.size(), 4U);
  EXPECT_EQ(splits[0].first_layers, partition.first_layers);
  EXPECT_THAT(splits[3].first_layers, ElementsAre(0, 16));
  for (size_t i = 1; i < splits.size(); ++i) EXPECT_GE(splits[i].cost, splits[i - 1].cost) << i;
  const SplitEstimate& border = splits[3];
  EXPECT_EQ(border.slowest_stage, 1);
  EXPECT_FALSE(border.slowest_sends);
  EXPECT_EQ(border.received[1].compressed, (32'768 + 511) * 256);
  EXPECT_NEAR(border.prefill_tokens_per_second, 4.3e5, 0.1e5);
  EXPECT_GT(border.first_token_seconds, 32'768 / border.prefill_tokens_per_second);
  EXPECT_LT(border.decode_tokens_per_second, splits[0].decode_tokens_per_second);
}

TEST(PlannerTrafficTest, OneStageHasNoOthers) {
  const cluster::v1::Described model = Released();
  const ModelMemory memory = ReadModelMemory(model);
  WorkerResources worker = kLargeMachine;
  worker.model = &memory;
  const Partition partition = Plan(model, {worker}, Options(0));
  EXPECT_THAT(partition.why, IsEmpty());
  EXPECT_EQ(CompareSplits(model, {worker}, Options(0), partition).size(), 1U);
}

}  // namespace
}  // namespace goldfinch
