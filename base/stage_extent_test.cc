#include "base/stage_extent.h"

#include <vector>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

constexpr int kLayers = 6, kFinch = 4;

std::vector<StageExtent> Stages(const std::vector<int>& first_layers, int finch_layers = kFinch) {
  std::vector<StageExtent> stages;
  for (size_t stage = 0; stage < first_layers.size(); ++stage) {
    stages.push_back(StageExtentAt(first_layers, static_cast<int>(stage), kLayers, finch_layers));
  }
  return stages;
}

TEST(StageExtentTest, StagesCoverTheModel) {
  const std::vector<StageExtent> stages = Stages({0, 2, 4, 5});
  EXPECT_EQ(stages[0], (StageExtent{kLayers, kFinch, 0, 2}));
  EXPECT_EQ(stages[1], (StageExtent{kLayers, kFinch, 2, 4}));
  EXPECT_EQ(stages[2], (StageExtent{kLayers, kFinch, 4, 5}));
  EXPECT_EQ(stages[3], (StageExtent{kLayers, kFinch, 5, 6}));
}

TEST(StageExtentTest, OneStageHasEverythingAndExchangesNothing) {
  const StageExtent all = Stages({0})[0];
  EXPECT_TRUE(all.is_first());
  EXPECT_TRUE(all.is_last());
  EXPECT_TRUE(all.has_gold());
  EXPECT_TRUE(all.has_boundary());
  EXPECT_TRUE(all.has_embedding());
  EXPECT_TRUE(all.reads_ids());
  EXPECT_TRUE(all.has_head());
  EXPECT_FALSE(all.receives_hidden());
  EXPECT_FALSE(all.receives_gold_hidden());
  EXPECT_FALSE(all.sends_hidden());
  EXPECT_FALSE(all.receives_compressed());
  EXPECT_FALSE(all.sends_compressed());
  EXPECT_EQ(all.finch_end(), 4);
  EXPECT_EQ(all.gold_begin(), 4);
  EXPECT_EQ(all.gold_layers(), 2);
  EXPECT_EQ(all.gold_layers_before(), 0);
}

TEST(StageExtentTest, ACutAtTheBoundary) {
  const std::vector<StageExtent> stages = Stages({0, 2, 4, 5});
  const std::vector<bool> embedding = {true, false, true, true}, boundary = {false, true, false, false},
                          gold = {false, false, true, true}, follows = {false, false, true, false};
  for (size_t i = 0; i < stages.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(stages[i].has_embedding(), embedding[i]);
    EXPECT_EQ(stages[i].has_boundary(), boundary[i]);
    EXPECT_EQ(stages[i].sends_compressed(), boundary[i]);
    EXPECT_EQ(stages[i].has_gold(), gold[i]);
    EXPECT_EQ(stages[i].receives_compressed(), gold[i]);
    EXPECT_EQ(stages[i].receives_gold_hidden(), gold[i]);
    EXPECT_EQ(stages[i].follows_boundary(), follows[i]);
    EXPECT_EQ(stages[i].receives_hidden(), i > 0);
    EXPECT_EQ(stages[i].sends_hidden(), i < 3);
    EXPECT_EQ(stages[i].has_head(), i == 3);
  }
  EXPECT_EQ(stages[1].gold_layers(), 0);
  EXPECT_EQ(stages[2].gold_layers(), 1);
  EXPECT_EQ(stages[2].gold_layers_before(), 0);
  EXPECT_EQ(stages[3].gold_layers_before(), 1);
  EXPECT_EQ(stages[3].gold_begin(), 5);
}

TEST(StageExtentTest, ACutBesideTheBoundary) {
  const std::vector<StageExtent> stages = Stages({0, 3, 5});
  EXPECT_FALSE(stages[0].has_boundary());
  EXPECT_FALSE(stages[0].has_gold());
  // Both sides in one stage: its hidden rows come in for every token, and its compressed rows are its own.
  EXPECT_TRUE(stages[1].has_boundary());
  EXPECT_TRUE(stages[1].has_gold());
  EXPECT_TRUE(stages[1].receives_hidden());
  EXPECT_FALSE(stages[1].receives_gold_hidden());
  EXPECT_FALSE(stages[1].receives_compressed());
  EXPECT_TRUE(stages[1].sends_compressed());
  EXPECT_EQ(stages[1].finch_end(), 4);
  EXPECT_EQ(stages[1].gold_begin(), 4);
  // The stage before it has GOLD layers, but the boundary as well.
  EXPECT_TRUE(stages[2].receives_compressed());
  EXPECT_FALSE(stages[2].follows_boundary());
}

TEST(StageExtentTest, WithoutGoldLayersThereIsNoBoundary) {
  for (const StageExtent& stage : Stages({0, 3}, /*finch_layers=*/kLayers)) {
    EXPECT_FALSE(stage.has_gold());
    EXPECT_FALSE(stage.has_boundary());
    EXPECT_FALSE(stage.receives_compressed());
    EXPECT_FALSE(stage.sends_compressed());
    EXPECT_FALSE(stage.follows_boundary());
    EXPECT_EQ(stage.gold_layers(), 0);
    EXPECT_EQ(stage.finch_end(), stage.last_layer);
    EXPECT_EQ(stage.has_embedding(), stage.is_first());
  }
}

// However a model is cut, one stage makes the compressed rows, and each stage with GOLD layers makes or receives them.
TEST(StageExtentTest, EveryCutHasOneBoundary) {
  for (int cuts = 0; cuts < 1 << (kLayers - 1); ++cuts) {
    std::vector<int> first_layers = {0};
    for (int layer = 1; layer < kLayers; ++layer) {
      if ((cuts >> (layer - 1) & 1) != 0) first_layers.push_back(layer);
    }
    int boundaries = 0, gold_layers = 0;
    for (const StageExtent& stage : Stages(first_layers)) {
      EXPECT_EQ(stage.has_gold(), stage.receives_compressed() || (stage.has_boundary() && stage.gold_layers() > 0));
      EXPECT_FALSE(stage.receives_compressed() && stage.has_boundary());
      EXPECT_EQ(stage.gold_layers_before(), gold_layers);
      gold_layers += stage.gold_layers();
      boundaries += stage.has_boundary() ? 1 : 0;
    }
    EXPECT_EQ(boundaries, 1);
    EXPECT_EQ(gold_layers, kLayers - kFinch);
  }
}

TEST(StageExtentTest, RowsOfAStep) {
  EXPECT_EQ(TokenShiftReach(8), 16);
  EXPECT_EQ(StepRowsMax(/*max_step_tokens=*/20, /*max_sequences=*/3, /*gold_layers=*/2), 20 + 3 * 4);
  EXPECT_EQ(StepRowsMax(20, 3, 0), 20);
}

}  // namespace
}  // namespace goldfinch
