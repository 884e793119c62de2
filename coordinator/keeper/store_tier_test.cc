// What the store's tier does with moves that end in unexpected ways.
#include "coordinator/keeper/store_tier.h"

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/contexts/segment_tree.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using Kind = StoreAction::Kind;
using Text = std::vector<int32_t>;

constexpr SegmentBytes kBytes = {.per_token = 10, .snapshot = 100};

class StoreTierTest : public testing::Test {
 protected:
  StoreTierTest()
      : tree_({"f", "bytes", "bf16", "cpu-f32"}),
        shelf_(tree_.OpenTier({.name = "the shelf", .bytes_max = 1 << 20})),
        tier_({.bytes_max = 1 << 20, .saves_max = 4}, {}, kBytes, 0.01, &tree_, 0) {
    tier_.GenerationReady(0, shelf_);
  }

  // Puts a text on the shelf.
  uint64_t Keep(const Text& ids) {
    const auto added = tree_.Add("", 0, ids, kBytes, 0.1 * static_cast<double>(ids.size()), 0);
    const auto saving = tree_.Store(added->number, shelf_, 0, &drops_);
    tree_.Arrived(added->number, shelf_, saving->contents, 0, &drops_);
    tree_.Release(added->number, &drops_);
    return added->number;
  }
  // What is lost of the store's is noticed, as its owner does it.
  void Lose(uint64_t segment, SegmentContents contents) {
    tree_.Lost(segment, tier_.tier(), contents, &drops_);
    tier_.Dropped({.segment = segment, .tier = tier_.tier(), .contents = contents});
  }
  std::vector<StoreAction> Actions() {
    std::vector<StoreAction> taken = tier_.TakeActions([](int) { return true; }, 10, &drops_);
    for (const SegmentDrop& drop : drops_) {
      if (drop.tier == tier_.tier()) tier_.Dropped(drop);
    }
    drops_.clear();
    return taken;
  }
  void End(const StoreAction& action, SegmentContents stored, const absl::Status& status = absl::OkStatus()) {
    tier_.Moved(action.move, {.status = status, .bytes = 1000, .seconds = 0.1, .stored = stored}, 10, &drops_);
  }

  SegmentTree tree_;
  const int shelf_;
  SegmentDrops drops_;
  StoreTier tier_;
};

TEST_F(StoreTierTest, ASegmentHasOneSaveAtATime) {
  const uint64_t parent = Keep(Text(100, 1));
  Text longer(100, 1);
  longer.resize(200, 2);
  const uint64_t child = Keep(longer);
  ASSERT_EQ(tree_.Find(child)->parent, parent);
  tier_.Stored(child);
  const std::vector<StoreAction> first = Actions();
  ASSERT_EQ(first.size(), 2U);
  EXPECT_FALSE(first[0].save.snapshot);
  EXPECT_EQ(first[0].save.segment, parent);
  // Its snapshot is worth a file, too, but what is written of it has no end yet.
  tier_.Stored(parent);
  EXPECT_TRUE(Actions().empty());
  End(first[0], kRows);
  const std::vector<StoreAction> second = Actions();
  ASSERT_EQ(second.size(), 1U);
  EXPECT_TRUE(second[0].save.snapshot);
  EXPECT_EQ(second[0].save.key, first[0].save.key);
  End(second[0], kRowsAndSnapshot);
  End(first[1], kRowsAndSnapshot);
  EXPECT_TRUE(Actions().empty());
  EXPECT_EQ(tier_.bytes(), 200 * 10 + 2 * 100);
}

TEST_F(StoreTierTest, WhatASaveFindsDamagedIsNotCounted) {
  const uint64_t segment = Keep(Text(100, 1));
  tier_.Stored(segment);
  End(Actions().at(0), kRowsAndSnapshot);
  Lose(segment, kSnapshot);
  ASSERT_EQ(Actions().at(0).kind, Kind::kDropSnapshot);
  tier_.Stored(segment);
  const std::vector<StoreAction> again = Actions();
  ASSERT_EQ(again.size(), 1U);
  ASSERT_TRUE(again[0].save.snapshot);
  End(again[0], 0, absl::DataLossError("its rows were to be copied"));
  EXPECT_TRUE(Actions().empty());
  EXPECT_EQ(tier_.bytes(), 0);
  EXPECT_TRUE(tree_.Find(segment).has_value()) << "it is on the shelf";
}

TEST_F(StoreTierTest, WhatWasDroppedWhileItWasWrittenIsDeleted) {
  const uint64_t segment = Keep(Text(100, 1));
  tier_.Stored(segment);
  const StoreAction save = Actions().at(0);
  tier_.GenerationEnded(0, &drops_);
  tree_.CloseTier(shelf_, &drops_);
  Lose(segment, kRowsAndSnapshot);
  EXPECT_TRUE(Actions().empty());
  End(save, kRowsAndSnapshot);
  EXPECT_FALSE(tree_.Find(segment).has_value());
  const std::vector<StoreAction> taken = Actions();
  ASSERT_EQ(taken.size(), 1U);
  EXPECT_EQ(taken[0].kind, Kind::kDelete);
  EXPECT_EQ(taken[0].key, save.save.key);
  EXPECT_EQ(tier_.bytes(), 0);
  EXPECT_EQ(tier_.protected_bytes(), 0);
}

}  // namespace
}  // namespace goldfinch
