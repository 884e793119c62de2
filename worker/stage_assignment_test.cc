#include "worker/stage_assignment.h"

#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "protos/cluster.pb.h"
#include "worker/model/layers.h"

namespace goldfinch {
namespace {

ModelShape Shape(const std::vector<std::string>& layers) {
  ModelShape shape{.width = 64, .vocab_size = 12, .head_size = 64, .compressed = 4, .kinds = {}, .channel_kinds = {}};
  for (const std::string& name : layers) {
    for (const TimeMixKind& kind : TimeMixKinds()) {
      if (name == kind.name) shape.kinds.push_back(&kind);
    }
  }
  return shape;
}

cluster::v1::Form Form(const std::vector<int>& first_layers, int stage) {
  cluster::v1::Form form;
  form.set_generation(9);
  form.set_stage(stage);
  for (const int first : first_layers) form.add_first_layers(first);
  form.set_max_sequences(3);
  form.set_max_sequence_tokens(100);
  form.set_cache_tokens(200);
  form.set_max_step_tokens(10);
  form.set_max_logit_rows(5);
  form.set_transport_key(std::string(32, 'k'));
  form.set_sampleable(std::string("\xFD\x07", 2));
  form.set_repeats_freely(std::string("\x02\x08", 2));
  return form;
}

std::vector<StageLinks> Links(const ModelShape& shape, const std::vector<int>& first_layers) {
  std::vector<StageLinks> links;
  for (size_t stage = 0; stage < first_layers.size(); ++stage) {
    const auto assignment = AssignStage(Form(first_layers, static_cast<int>(stage)), shape, DType::kF16);
    EXPECT_TRUE(assignment.ok()) << assignment.status();
    links.push_back(assignment->links);
  }
  return links;
}

const std::vector<std::string> kGoldFinch = {"finch_c2", "finch_c2", "finch_c2", "finch_c2", "gold", "gold"};

TEST(StageAssignment, HiddenRowsGoFromStageToStage) {
  EXPECT_EQ(Links(Shape({"finch", "finch", "finch"}), {0, 1, 2}),
            (std::vector<StageLinks>{{-1, 1, -1, {}}, {0, 2, -1, {}}, {1, -1, -1, {}}}));
  EXPECT_EQ(Links(Shape(kGoldFinch), {0}), (std::vector<StageLinks>{{-1, -1, -1, {}}}));
}

TEST(StageAssignment, CompressedRowsGoFromTheLastFinchLayerToAllLaterStages) {
  const ModelShape shape = Shape(kGoldFinch);
  // At a cut, within a stage that has GOLD layers too, and from the first stage.
  EXPECT_EQ(Links(shape, {0, 2, 4, 5}),
            (std::vector<StageLinks>{{-1, 1, -1, {}}, {0, 2, -1, {2, 3}}, {1, 3, 1, {}}, {2, -1, 1, {}}}));
  EXPECT_EQ(Links(shape, {0, 3, 5}), (std::vector<StageLinks>{{-1, 1, -1, {}}, {0, 2, -1, {2}}, {1, -1, 1, {}}}));
  EXPECT_EQ(Links(shape, {0, 4}), (std::vector<StageLinks>{{-1, 1, -1, {1}}, {0, -1, 0, {}}}));
  EXPECT_EQ(Links(shape, {0, 3}), (std::vector<StageLinks>{{-1, 1, -1, {}}, {0, -1, -1, {}}}));
}

TEST(StageAssignment, LimitsAndTraffic) {
  const ModelShape shape = Shape(kGoldFinch);
  const auto assignment = AssignStage(Form({0, 2, 4, 5}, 3), shape, DType::kF16);
  ASSERT_TRUE(assignment.ok()) << assignment.status();
  EXPECT_EQ(assignment->generation, 9u);
  EXPECT_EQ(assignment->stages, 4);
  EXPECT_EQ(assignment->first_layer, 5);
  EXPECT_EQ(assignment->last_layer, 6);
  EXPECT_EQ(assignment->options, (StageOptions{.max_sequences = 3,
                                               .max_sequence_tokens = 100,
                                               .cache_tokens = 200,
                                               .max_step_tokens = 10,
                                               .max_logit_rows = 5,
                                               .cache_dtype = DType::kF16}));
  EXPECT_EQ(assignment->hidden_rows_max, 10 + 2 * 2 * 3) << "2G rows more of each sequence";
  constexpr int64_t kHidden = 22 * 64 * 4, kCompressed = 10 * 4 * 2;
  EXPECT_EQ(assignment->Traffic(shape), (std::vector<StageTraffic>{{}, {0, kCompressed}, {0, kHidden}, {}}));
  const auto before = AssignStage(Form({0, 2, 4, 5}, 1), shape, DType::kF16);
  ASSERT_TRUE(before.ok()) << before.status();
  EXPECT_EQ(before->Traffic(shape), (std::vector<StageTraffic>{{0, kHidden}, {}, {kHidden, 0}, {kCompressed, 0}}))
      << "rows of either kind may go to the next stage";
  const auto in_8_bits = AssignStage(Form({0, 2, 4, 5}, 3), shape, DType::kInt8);
  ASSERT_TRUE(in_8_bits.ok()) << in_8_bits.status();
  EXPECT_EQ(in_8_bits->Traffic(shape)[1].receive_bytes_max, 10 * (4 + 2)) << "a scale a row";
  // Bit i % 8 of byte i / 8.
  ASSERT_NE(assignment->vocabulary, nullptr);
  EXPECT_EQ(assignment->vocabulary->size(), 12);
  EXPECT_FALSE(assignment->vocabulary->sampleable(1));
  EXPECT_TRUE(assignment->vocabulary->sampleable(10));
  EXPECT_FALSE(assignment->vocabulary->sampleable(11));
  EXPECT_TRUE(assignment->vocabulary->repeats_freely(1));
  EXPECT_TRUE(assignment->vocabulary->repeats_freely(11));
  EXPECT_FALSE(assignment->vocabulary->repeats_freely(0));

  cluster::v1::Form form = Form({0, 2, 4, 5}, 0);
  form.clear_sampleable();
  form.clear_repeats_freely();
  const auto first = AssignStage(form, shape, DType::kF16);
  ASSERT_TRUE(first.ok()) << "only the last stage samples";
  EXPECT_EQ(first->vocabulary, nullptr);
}

}  // namespace
}  // namespace goldfinch
