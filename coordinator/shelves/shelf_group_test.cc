#include "coordinator/shelves/shelf_group.h"

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

using cluster::v1::Described;
using cluster::v1::Joined;
using cluster::v1::PartDescription;
using ::testing::HasSubstr;
using Kind = StatePartKind;

constexpr int kLayers = 4, kGoldLayers = 2;

// Two layers with states, the second of which has keys too, and two GOLD layers.
Described Model() {
  Described model;
  for (int layer = 0; layer < kLayers; ++layer) model.add_layers()->set_state_bytes(layer < 2 ? 4 * (8 + 16) : 4 * 8);
  model.mutable_layers(1)->set_state_bytes(4 * (8 + 16 + 4 * 8));
  model.mutable_layers(1)->set_cache_bytes_per_token(2 * 8);
  model.set_gold_layers(kGoldLayers);
  model.set_vocab_size(100);
  model.set_compressed_bytes_per_token(2 + 2 * 6);
  return model;
}

PartDescription* Add(Joined* joined, uint32_t layer, const std::string& kind, const std::string& dtype,
                     const std::vector<uint64_t>& shape) {
  PartDescription* const part = joined->add_parts();
  part->mutable_part()->set_layer(layer);
  part->mutable_part()->set_kind(kind);
  part->set_dtype(dtype);
  part->mutable_shape()->Assign(shape.begin(), shape.end());
  return part;
}

// What a stage with these layers says.
Joined PartsOf(int first_layer, int last_layer) {
  Joined joined;
  for (int layer = 0; layer < last_layer; ++layer) {
    const bool own = layer >= first_layer;
    if (own) Add(&joined, layer, "time_shift", "f32", {8});
    if (own && layer < 2) Add(&joined, layer, "wkv", "f32", {1, 4, 4});
    if (own && layer == 1) Add(&joined, layer, "keys", "f16", {8});
    if (own && layer == 1) Add(&joined, layer, "tail_rows", "f32", {4, 8});
    if (layer == 1 && last_layer > 2) Add(&joined, layer, "ids", "u16", {});
    if (layer == 1 && last_layer > 2) Add(&joined, layer, "rows", "f16", {6});
  }
  if (last_layer == kLayers) Add(&joined, kLayers - 1, "logits", "f32", {100});
  return joined;
}

std::string ErrorOf(const std::function<void(Joined&)>& spoil, int first_layer = 1, int last_layer = kLayers) {
  Joined joined = PartsOf(first_layer, last_layer);
  spoil(joined);
  return std::string(ReadShelfStage(joined, Model(), first_layer, last_layer).status().message());
}

TEST(ShelfGroupTest, AnySplitGivesTheSameModel) {
  std::vector<ContextModel> models;
  for (const std::vector<int>& first_layers : {std::vector<int>{0}, {0, 1}, {0, 2}, {0, 3}, {0, 1, 2, 3}}) {
    std::vector<ShelfStage> stages;
    for (size_t i = 0; i < first_layers.size(); ++i) {
      const int last = i + 1 < first_layers.size() ? first_layers[i + 1] : kLayers;
      const absl::StatusOr<ShelfStage> stage =
          ReadShelfStage(PartsOf(first_layers[i], last), Model(), first_layers[i], last);
      ASSERT_TRUE(stage.ok()) << stage.status();
      EXPECT_EQ(stage->has_logits, last == kLayers);
      EXPECT_EQ(stage->parts.empty() || stage->parts.front().layer <= first_layers[i], true);
      stages.push_back(*stage);
    }
    const absl::StatusOr<ShelfGroup> group = MakeShelfGroup({"f", "world", "f16", "cpu-f32", 1}, 100, kLayers, stages);
    ASSERT_TRUE(group.ok()) << group.status();
    EXPECT_EQ(group->logits_layer, 3);
    models.push_back(group->model);
    EXPECT_EQ(group->model, models.front());
  }
  EXPECT_EQ(models.front().parts.size(), 9u);
  EXPECT_EQ(models.front().parts.front(), (ContextPart{0, Kind::kTimeShift, ElementType::kF32, {8}}));
  EXPECT_EQ(models.front().parts[6], (ContextPart{1, Kind::kRows, ElementType::kF16, {6}}));
  const absl::StatusOr<ShelfStage> none = ReadShelfStage({}, Model(), 0, kLayers);
  EXPECT_TRUE(none.ok() && none->parts.empty()) << "a worker that says nothing";
}

TEST(ShelfGroupTest, WhatAWorkerSaysMustBeWhatTheModelHas) {
  EXPECT_EQ(ErrorOf([](auto&) {}), "");
  EXPECT_THAT(ErrorOf([](auto& m) { Add(&m, 0, "time_shift", "f32", {8}); }),
              HasSubstr("time_shift of layer 0 is no part of this stage, which has the layers 1 to 3"));
  EXPECT_THAT(ErrorOf([](auto& m) { Add(&m, 900, "wkv", "f32", {8}); }), HasSubstr("is no part of this stage"));
  EXPECT_THAT(ErrorOf([](auto& m) { *m.add_parts() = m.parts(0); }), HasSubstr("time_shift of layer 1 appears twice"));
  EXPECT_THAT(ErrorOf([](auto& m) { m.mutable_parts(0)->set_shape(0, 9); }),
              HasSubstr("layer 1 has 228 bytes of a sequence and 16 of a token, expected 224 and 16"));
  EXPECT_THAT(ErrorOf([](auto& m) { m.mutable_parts(2)->set_dtype("f32"); }), HasSubstr("and 32 of a token"));
  EXPECT_THAT(ErrorOf([](auto& m) { m.mutable_parts()->DeleteSubrange(0, 1); }), HasSubstr("layer 1 has 192 bytes"));
  EXPECT_THAT(ErrorOf([](auto& m) { m.mutable_parts(0)->clear_shape(); }),
              HasSubstr("time_shift of layer 1 has no shape"));
  EXPECT_THAT(ErrorOf([](auto& m) { m.mutable_parts(0)->mutable_part()->set_kind("moods"); }),
              HasSubstr("a part of layer 1 has unknown kind \"moods\" or type \"f32\""));
  EXPECT_THAT(ErrorOf([](auto& m) { m.mutable_parts(5)->set_shape(0, 5); }),
              HasSubstr("compressed rows have 10 bytes beside their ids, expected 14"));
  EXPECT_THAT(ErrorOf([](auto& m) { m.mutable_parts(5)->mutable_part()->set_layer(2); }),
              HasSubstr("rows of layer 2 is no part"));
  EXPECT_THAT(ErrorOf([](auto& m) { m.mutable_parts(4)->set_dtype("i32"); }), HasSubstr("ids of layer 1 are i32"));
  EXPECT_THAT(ErrorOf([](auto& m) { m.mutable_parts(4)->add_shape(1); }), HasSubstr("expected u16 without axes"));
  EXPECT_THAT(ErrorOf([](auto& m) { m.mutable_parts()->DeleteSubrange(4, 1); }),
              HasSubstr("lists ids 0 times and logits 1 times, expected 1 and 1"));
  EXPECT_THAT(ErrorOf([](auto& m) { m.mutable_parts()->RemoveLast(); }),
              HasSubstr("and logits 0 times, expected 1 and 1"));
  EXPECT_THAT(ErrorOf([](auto& m) { m.mutable_parts()->rbegin()->set_shape(0, 99); }),
              HasSubstr("expected f32 [100] of layer 3"));
  EXPECT_THAT(ErrorOf([](auto& m) { Add(&m, 1, "rows", "f16", {6}); }, 0, 2), HasSubstr("rows of layer 1 is no part"));
  EXPECT_THAT(ErrorOf([](auto& m) { Add(&m, 1, "ids", "u16", {}); }, 0, 2), HasSubstr("lists ids 1 times"));
  EXPECT_THAT(ErrorOf([](auto& m) { Add(&m, 3, "logits", "f32", {100}); }, 0, 2), HasSubstr("logits 1 times"));
}

// Two shapes of the same size.
TEST(ShelfGroupTest, StagesMustAgree) {
  ShelfStage one = *ReadShelfStage(PartsOf(0, 3), Model(), 0, 3), other = *ReadShelfStage(PartsOf(3, 4), Model(), 3, 4);
  for (ContextPart& part : other.parts) {
    if (part.kind == Kind::kRows) part.shape = {2, 3};
  }
  EXPECT_THAT(std::string(MakeShelfGroup({}, 100, kLayers, {one, other}).status().message()),
              HasSubstr("stages disagree on rows of layer 1"));
}

}  // namespace
}  // namespace goldfinch
