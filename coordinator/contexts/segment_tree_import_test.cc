// Texts that are imported: what they take of a tier and a quota before they are known, and where they go.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/contexts/segment_key.h"
#include "coordinator/contexts/segment_tree.h"
#include "coordinator/contexts/segment_tree_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class SegmentTreeImportTest : public testing::Test {
 protected:
  absl::StatusOr<uint64_t> Import(const std::vector<int32_t>& text, double now = 100) {
    return tree_.Import("", text, TestBytes(true), disk_, 1, now, &drops_);
  }
  SegmentInfo Find(uint64_t number) const { return *tree_.Find(number); }

  SegmentTree tree_{TestIdentity()};
  const int shelf_ = tree_.OpenTier(TestTier(TierKind::kMemory, 1'000'000));
  const int disk_ = tree_.OpenTier(TestTier(TierKind::kDisk, 10'000));
  SegmentDrops drops_;
};

TEST_F(SegmentTreeImportTest, ATextComesAsOneSegment) {
  const auto text = TestText(100);
  StoreText(tree_, "", TestText(50), shelf_, 0);
  const auto number = Import(text);
  ASSERT_TRUE(number.ok()) << number.status();
  EXPECT_EQ(Find(*number).begin, 0) << "though a beginning of it is kept";
  EXPECT_EQ(Find(*number).parent, 0u);
  EXPECT_EQ(tree_.TierBytes(disk_), 100 * kTestRowBytes + kTestSnapshotBytes);
  EXPECT_EQ(tree_.Match("", text + TestText(3, 7)).position, 50) << "it is on its way";
  EXPECT_EQ(tree_.Key(*number), KeyOf(TestIdentity(), "", nullptr, text));
  tree_.Arrived(*number, disk_, kRowsAndSnapshot, 100, &drops_);
  EXPECT_EQ(tree_.Match("", text + TestText(3, 7)).position, 100);
  tree_.Release(*number, &drops_);
  EXPECT_TRUE(drops_.empty());
}

TEST_F(SegmentTreeImportTest, WhatDoesNotComeLeavesNothing) {
  const auto number = Import(TestText(100));
  ASSERT_TRUE(number.ok()) << number.status();
  tree_.Lost(*number, disk_, kRowsAndSnapshot, &drops_);
  tree_.Release(*number, &drops_);
  EXPECT_EQ(tree_.segments(), 0u);
  EXPECT_EQ(tree_.TierBytes(disk_), 0);
}

TEST_F(SegmentTreeImportTest, WhatIsKeptAlreadyIsNotImported) {
  const auto text = TestText(100);
  const uint64_t kept = StoreText(tree_, "", text, shelf_, 0);
  EXPECT_TRUE(absl::IsAlreadyExists(Import(text).status()));
  EXPECT_EQ(Find(kept).holds, 0);
  EXPECT_EQ(tree_.TierBytes(disk_), 0);
}

TEST_F(SegmentTreeImportTest, AContextThatHasLostItsBytesGetsThem) {
  const auto text = TestText(100);
  const uint64_t first = StoreHeld(tree_, "", TestText(60), shelf_, 0);
  const uint64_t named = StoreHeld(tree_, "", text, shelf_, 0);
  ASSERT_TRUE(tree_.Create("", "doc", named, {}, 0).ok());
  EXPECT_EQ(Find(named).parent, first);
  const SegmentKey before = tree_.Key(named);
  tree_.Release(named, &drops_);
  tree_.Release(first, &drops_);
  tree_.CloseTier(shelf_, &drops_);
  EXPECT_FALSE(tree_.Get("", "doc")->usable);
  const auto number = Import(text);
  ASSERT_TRUE(number.ok()) << number.status();
  EXPECT_EQ(*number, named);
  EXPECT_EQ(Find(named).begin, 0);
  EXPECT_NE(tree_.Key(named), before);
  EXPECT_EQ(tree_.Key(named), KeyOf(TestIdentity(), "", nullptr, text));
  tree_.Arrived(named, disk_, kRowsAndSnapshot, 100, &drops_);
  tree_.Release(named, &drops_);
  EXPECT_TRUE(tree_.Get("", "doc")->usable);
  EXPECT_THAT(tree_.Kept(named).snapshots, ElementsAre(100));
}

TEST_F(SegmentTreeImportTest, RoomIsTakenBeforeTheTextIsKnown) {
  const uint64_t old = StoreText(tree_, "", TestText(400, 2), disk_, 0);
  EXPECT_EQ(tree_.TierBytes(disk_), 5000);
  ASSERT_EQ(tree_.Reserve(disk_, "", 4000, 100, &drops_), absl::OkStatus());
  EXPECT_TRUE(tree_.Find(old).has_value());
  ASSERT_EQ(tree_.Reserve(disk_, "", 5000, 100, &drops_), absl::OkStatus());
  EXPECT_FALSE(tree_.Find(old).has_value()) << "evicted for it";
  EXPECT_EQ(tree_.TierBytes(disk_), 9000);
  const absl::Status full = tree_.Reserve(disk_, "", 2000, 100, &drops_);
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_THAT(full.ToString(), HasSubstr("11,000 bytes of the disk, which has 10,000"));
  EXPECT_THAT(tree_.Reserve(disk_, "", 20'000, 100, &drops_).ToString(), HasSubstr("does not fit the disk"));
  EXPECT_TRUE(absl::IsResourceExhausted(Import(TestText(100)).status())) << "others have the room";
  EXPECT_EQ(tree_.segments(), 0u);
  tree_.Unreserve(disk_, "", 4000);
  tree_.Unreserve(disk_, "", 5000);
  EXPECT_EQ(tree_.TierBytes(disk_), 0);
  EXPECT_TRUE(Import(TestText(100)).ok());
}

TEST_F(SegmentTreeImportTest, TheQuotaCountsWhatIsReservedAndIsNamed) {
  tree_.SetQuota("ann", {.bytes_max = 3000});
  ASSERT_EQ(tree_.Reserve(disk_, "ann", 2500, 0, &drops_), absl::OkStatus());
  EXPECT_EQ(tree_.NamespaceBytes("ann"), 2500);
  const absl::Status full = tree_.Reserve(disk_, "ann", 600, 0, &drops_);
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_THAT(full.ToString(),
              HasSubstr("contexts of namespace \"ann\" would take 3,100 bytes, and its quota is 3,000"));
  EXPECT_EQ(tree_.Reserve(disk_, "bob", 600, 0, &drops_), absl::OkStatus());
  tree_.Unreserve(disk_, "ann", 2500);
  EXPECT_EQ(tree_.NamespaceBytes("ann"), 0);
  EXPECT_EQ(tree_.TierBytes(disk_), 600);
}

}  // namespace
}  // namespace goldfinch
