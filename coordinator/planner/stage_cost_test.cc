#include "coordinator/planner/stage_cost.h"

#include <vector>

#include "coordinator/planner/model_description.h"
#include "coordinator/planner/planner_test_util.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

// 16 Finch-side layers, then 8 GOLD layers, width 2048.
ModelMemory ReleasedMemory() { return ReadModelMemory(Released()); }

// ---- Bytes

TEST(ReceivedBytesTest, BetweenFinchLayersEveryTokenSendsAHiddenRow) {
  const ReceivedBytes bytes = ReceivedForRequest(ReleasedMemory(), {0, 8, 20}, 1, 1000, 5);
  EXPECT_EQ(bytes, (ReceivedBytes{.hidden = 1004 * 8192, .compressed = 0, .ids = 0}))
      << "the fifth token that is drawn is not read";
  EXPECT_EQ(ReceivedForRequest(ReleasedMemory(), {0, 8, 20}, 0, 1000, 5).total(), 0) << "the first stage receives none";
}

TEST(ReceivedBytesTest, AtTheBorderATokenSends258BytesAndAPromptItsLastRows) {
  EXPECT_EQ(ReceivedForRequest(ReleasedMemory(), {0, 16}, 1, 1000, 5),
            (ReceivedBytes{.hidden = (17 + 4) * 8192, .compressed = 1004 * 256, .ids = 1004 * 2}));
  EXPECT_EQ(ReceivedForRequest(ReleasedMemory(), {0, 16}, 1, 10, 1).hidden, 10 * 8192)
      << "a prompt shorter than the rows that GOLD layers need is sent whole";
}

TEST(ReceivedBytesTest, BetweenGoldLayersTheRowsThatAreLeftAreSent) {
  // Each of the three GOLD layers before has taken two of the 17 rows off.
  EXPECT_EQ(ReceivedForRequest(ReleasedMemory(), {0, 19}, 1, 1000, 1),
            (ReceivedBytes{.hidden = 11 * 8192, .compressed = 1000 * 256, .ids = 2000}));
  // Every later stage gets compressed rows from the stage of the boundary.
  EXPECT_EQ(ReceivedForRequest(ReleasedMemory(), {0, 16, 20}, 2, 1000, 1),
            (ReceivedBytes{.hidden = 9 * 8192, .compressed = 1000 * 256, .ids = 2000}));
  EXPECT_EQ(ReceivedForRequest(ReleasedMemory(), {0, 16, 20}, 2, 17, 1).hidden, 17 * 8192)
      << "nothing warms up in a prompt that is read whole";
}

TEST(ReceivedBytesTest, LargeVocabulariesTakeFourBytesAnIdAndSideRowsDoubleHiddenRows) {
  ModelMemory model = ReleasedMemory();
  model.vocab_size = 65'537;
  model.uses_side_rows = true;
  EXPECT_EQ(ReceivedForRequest(model, {0, 16}, 1, 100, 1).ids, 400);
  EXPECT_EQ(ReceivedForRequest(model, {0, 16}, 1, 100, 1).hidden, 17 * 8192) << "there are none past the border";
  EXPECT_EQ(ReceivedForRequest(model, {0, 8}, 1, 100, 1).hidden, 2 * 100 * 8192);
}

// ---- Times

constexpr StageLimits kLimits{
    .max_sequences = 64, .cache_tokens_least = 1024, .max_step_tokens = 512, .max_logit_rows = 64};
const ExpectedTraffic kTraffic{};  // 32,768 tokens read and 512 drawn, at 65,536, 16 at a time

StageCost CostOf(int stage, int first, int last, const ExpectedTraffic& traffic = kTraffic,
                 const LinkSpeeds& links = {}, const WorkerResources& worker = kMachine, int stages = 2) {
  const cluster::v1::Described model = Released();
  const ModelMemory memory = ReadModelMemory(model);
  std::vector<WorkerResources> workers(stages, worker);
  for (WorkerResources& one : workers) one.model = &memory;
  return StageCosts(model, workers, links, traffic, kLimits).Of(stage, first, last);
}

TEST(StageCostTest, APromptTakesTheOperationsOfItsFinchLayersAndTheCompressedRow) {
  const double layer = 1.01e8 / kMachine.flops;
  EXPECT_NEAR(CostOf(0, 0, 8).token, 8 * layer, 1e-9);
  const double compress = 2.0 * 2048 * 128 / kMachine.flops;
  EXPECT_NEAR(CostOf(0, 0, 16).token, 16 * layer + compress, 1e-9);
}

TEST(StageCostTest, ReadingWeightsInSmallStepsTakesLongerThanComputing) {
  ExpectedTraffic short_prompts = kTraffic;
  short_prompts.prompt_tokens = 1;
  EXPECT_GT(CostOf(0, 0, 8, short_prompts).token, 5 * CostOf(0, 0, 8).token);
}

TEST(StageCostTest, SequencesShareTheReadingOfWeightsAndNotThatOfStates) {
  ExpectedTraffic one = kTraffic, many = kTraffic;
  one.sequences = 2;  // one in each of two steps
  many.sequences = 8;
  const double alone = CostOf(0, 0, 1, one).output_token, shared = CostOf(0, 0, 1, many).output_token;
  const double state = 2 * (2048 * 64 * 4 + 2 * 2048 * 4) / kMachine.read_bytes_per_second;
  const double weights = (101'000'000 - 2 * 2048 * 4) / kMachine.read_bytes_per_second;  // as Released says
  EXPECT_NEAR(alone, weights + state, 1e-7);
  EXPECT_NEAR(shared, weights / 4 + state, 1e-7);
}

TEST(StageCostTest, GoldLayersAttendToTheWholeContextAtTheTierThatFits) {
  WorkerResources large = kMachine;
  large.memory_bytes = int64_t{1} << 40;
  const StageCost full = CostOf(1, 16, 24, kTraffic, {}, large);
  EXPECT_EQ(full.kept.compressed + full.kept.shared, 0);
  // Keys and values in fp32, of 65,536 positions in eight layers.
  EXPECT_NEAR(full.output_token, 65'536.0 * 8 * 2 * 2048 * 4 / kMachine.read_bytes_per_second,
              0.05 * full.output_token);
  const StageCost shared = CostOf(1, 16, 24);
  EXPECT_GT(shared.kept.shared, 0);
  EXPECT_GT(shared.output_token, 2 * full.output_token);
  EXPECT_LE(shared.memory_bytes, kMachine.memory_bytes);
  WorkerResources small = kMachine;
  small.memory_bytes = 4'000'000'000;
  EXPECT_GT(CostOf(1, 16, 24, kTraffic, {}, small).output_token, shared.output_token);
  ExpectedTraffic shorter = kTraffic;
  shorter.context_tokens = 32'768;
  EXPECT_LT(CostOf(1, 16, 24, shorter, {}, large).output_token, 0.55 * full.output_token);
}

TEST(StageCostTest, KeyAndValueLayersReadTheirCacheForEachToken) {
  cluster::v1::Described model = Released();
  cluster::v1::Described cached = model;
  cached.mutable_memory()->mutable_layers(3)->set_cache_bytes_per_token(2 * 2048 * 2);
  const ModelMemory memory = ReadModelMemory(model), with_cache = ReadModelMemory(cached);
  const auto cost_of = [&](const ModelMemory& held) {
    std::vector<WorkerResources> workers(2, kMachine);
    for (WorkerResources& worker : workers) worker.model = &held;
    return StageCosts(model, workers, {}, kTraffic, kLimits).Of(0, 0, 8);
  };
  const StageCost without = cost_of(memory), with = cost_of(with_cache);
  EXPECT_NEAR(with.output_token - without.output_token, 65'536.0 * 8192 / kMachine.read_bytes_per_second, 1e-3);
  // A row of the prompt attends to 49,152 positions on average: 4 operations for each number of the width.
  EXPECT_NEAR(with.token - without.token, 4.0 * 2048 * 49'152 / kMachine.flops, 1e-6);
}

TEST(StageCostTest, AStageIsAsSlowAsWhatItSends) {
  const LinkSpeeds slow{.bytes_per_second = 1e6, .table = {}};
  const StageCost hidden = CostOf(0, 0, 8, kTraffic, slow), border = CostOf(0, 0, 16, kTraffic, slow);
  EXPECT_DOUBLE_EQ(hidden.token, 8192 / 1e6);
  EXPECT_DOUBLE_EQ(hidden.request, (32'768 + 511) * 8192 / 1e6);
  EXPECT_NEAR(border.send_request, ((32'768 + 511) * 256 + 511 * 8192) / 1e6, 1e-3);
  EXPECT_LT(border.send_request, border.compute_request);
  // The stage of the boundary sends its rows to every later stage, one after the other.
  const StageCost three = CostOf(0, 0, 16, kTraffic, slow, kMachine, /*stages=*/3);
  EXPECT_NEAR(three.send_request - border.send_request, (32'768 + 511) * 256 / 1e6, 1e-3);
  // Each link has its own speed.
  LinkSpeeds unequal;
  unequal.table = {0, 1e6, 1e9, 0, 0, 1e9, 0, 0, 0};
  EXPECT_NEAR(CostOf(0, 0, 8, kTraffic, unequal, kMachine, 3).send_request, (32'768 + 511) * 8192 / 1e6, 1e-3);
  EXPECT_NEAR(CostOf(1, 8, 12, kTraffic, unequal, kMachine, 3).send_request, (32'768 + 511) * 8192 / 1e9, 1e-3);
}

TEST(StageCostTest, LinksAreAssumedByTheirTransport) {
  EXPECT_GT(AssumedLinkSpeed("nccl"), AssumedLinkSpeed("local"));
  EXPECT_GT(AssumedLinkSpeed("local"), AssumedLinkSpeed("tcp"));
}

// The search relies on it.
TEST(StageCostTest, NoStageCostsLessThanItMustHoweverLongItIs) {
  for (const int64_t memory_bytes : {int64_t{6'000'000'000}, kMachine.memory_bytes, int64_t{1} << 42}) {
    for (const int64_t prompt_tokens : {1, 32'768, 65'000}) {
      WorkerResources worker = kMachine;
      worker.memory_bytes = memory_bytes;
      const cluster::v1::Described model = Released();
      const ModelMemory memory = ReadModelMemory(model);
      std::vector<WorkerResources> workers(2, worker);
      for (WorkerResources& one : workers) one.model = &memory;
      ExpectedTraffic traffic = kTraffic;
      traffic.prompt_tokens = prompt_tokens;
      const LinkSpeeds links{.bytes_per_second = 1e9, .table = {}};
      const StageCosts costs(model, workers, links, traffic, kLimits);
      for (int first = 0; first < 24; ++first) {
        double least = 0;
        for (int last = first + 1; last <= 24; ++last) {
          EXPECT_GE(costs.LeastRequest(1, first, last), least) << first << " to " << last;
          least = costs.LeastRequest(1, first, last);
          if (!costs.Fits(1, first, last)) continue;
          EXPECT_GE(costs.Of(1, first, last).request, least) << first << " to " << last;
        }
      }
    }
  }
}

}  // namespace
}  // namespace goldfinch
