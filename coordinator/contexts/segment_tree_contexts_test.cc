// Histories of named contexts: who may change them, what they keep from being evicted, and what is there after a
// restart.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/contexts/segment_key.h"
#include "coordinator/contexts/segment_tree.h"
#include "coordinator/contexts/segment_tree_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using Text = std::vector<int32_t>;

class SegmentTreeContextsTest : public testing::Test {
 protected:
  SegmentTreeContextsTest() : tree_(TestIdentity()) { shelf_ = tree_.OpenTier(TestTier(TierKind::kMemory, 1'000'000)); }

  // A context of its own text.
  uint64_t Create(const std::string& name, const Text& text, std::optional<double> seconds_to_live = {},
                  double now = 0) {
    const uint64_t number = StoreHeld(tree_, "", text, shelf_, now);
    const auto created = tree_.Create("", name, number, seconds_to_live, now);
    EXPECT_TRUE(created.ok()) << created.status();
    tree_.Release(number, &drops_);
    return number;
  }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const ContextInfo& context : tree_.List("", "", 1000).contexts) names.push_back(context.name);
    return names;
  }

  SegmentTree tree_;
  int shelf_ = 0;
  SegmentDrops drops_;
};

TEST_F(SegmentTreeContextsTest, ANameStandsForATextUntilItIsDeleted) {
  const uint64_t number = Create("manual", TestText(50));
  const ContextInfo info = *tree_.Get("", "manual");
  EXPECT_EQ(info.segment, number);
  EXPECT_EQ(info.tokens, 50);
  EXPECT_TRUE(info.usable);
  EXPECT_FALSE(info.expires.has_value());
  EXPECT_EQ(tree_.Get("bob", "manual").status().message(), "there is no context \"manual\"");

  tree_.Hold(number, 0);
  EXPECT_TRUE(absl::IsAlreadyExists(tree_.Create("", "manual", number, {}, 0).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(tree_.Create("", "", number, {}, 0).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(tree_.Create("", std::string(257, 'x'), number, {}, 0).status()));
  tree_.SetQuota("", {.contexts_max = 1});
  EXPECT_TRUE(absl::IsResourceExhausted(tree_.Create("", "other", number, {}, 0).status()));
  tree_.SetQuota("", {});
  ASSERT_TRUE(tree_.Create("", "other", number, {}, 0).ok());
  tree_.Release(number, &drops_);

  EXPECT_TRUE(tree_.Delete("", "manual", 0, &drops_).ok());
  EXPECT_TRUE(tree_.Find(number).has_value()) << "it has another name";
  EXPECT_TRUE(tree_.Delete("", "other", 0, &drops_).ok());
  EXPECT_FALSE(tree_.Find(number).has_value()) << "nobody needs it";
  ASSERT_EQ(drops_.size(), 1u);
  EXPECT_EQ(drops_[0].segment, number);
  EXPECT_EQ(tree_.TierBytes(shelf_), 0);
}

TEST_F(SegmentTreeContextsTest, DeletingAForkLeavesWhatOthersShare) {
  const uint64_t document = StoreHeld(tree_, "", TestText(100, 1), shelf_, 0);
  const uint64_t one = StoreHeld(tree_, "", TestText(10, 2), shelf_, 0, false, document);
  const uint64_t two = StoreHeld(tree_, "", TestText(10, 3), shelf_, 0, false, document);
  ASSERT_TRUE(tree_.Create("", "one", one, {}, 0).ok());
  ASSERT_TRUE(tree_.Create("", "two", two, {}, 0).ok());
  for (const uint64_t number : {document, one, two}) tree_.Release(number, &drops_);
  ASSERT_TRUE(tree_.Delete("", "one", 0, &drops_).ok());
  EXPECT_FALSE(tree_.Find(one).has_value());
  EXPECT_TRUE(tree_.Find(document).has_value());
  // Somebody who uses it at the moment keeps it until then.
  ASSERT_TRUE(tree_.Use("", "two", 0).ok());
  ASSERT_TRUE(tree_.Delete("", "two", 0, &drops_).ok());
  EXPECT_TRUE(tree_.Find(two).has_value());
  tree_.Release(two, &drops_);
  EXPECT_EQ(tree_.segments(), 0u);
  EXPECT_EQ(tree_.TierBytes(shelf_), 0);
}

TEST_F(SegmentTreeContextsTest, OfTwoWhoAppendOneLoses) {
  const uint64_t first = Create("chat", TestText(50, 1));
  const uint64_t etag = tree_.Get("", "chat")->etag;
  tree_.Hold(first, 0);
  const uint64_t mine = StoreHeld(tree_, "", TestText(10, 2), shelf_, 0, false, first);
  const uint64_t yours = StoreHeld(tree_, "", TestText(10, 3), shelf_, 0, false, first);
  const auto advanced = tree_.Advance("", "chat", etag, mine, 1, &drops_);
  ASSERT_TRUE(advanced.ok());
  EXPECT_EQ(advanced->tokens, 60);
  const absl::Status late = tree_.Advance("", "chat", etag, yours, 1, &drops_).status();
  EXPECT_TRUE(absl::IsAborted(late));
  EXPECT_EQ(tree_.Get("", "chat")->segment, mine);
  EXPECT_TRUE(absl::IsAborted(tree_.Delete("", "chat", etag, &drops_)));
  EXPECT_TRUE(absl::IsAborted(tree_.Rename("", "chat", "talk", etag).status()));
  EXPECT_TRUE(absl::IsAborted(tree_.Pin("", "chat", true, etag).status()));
  EXPECT_TRUE(tree_.Advance("", "chat", advanced->etag, yours, 1, &drops_).ok());
}

TEST_F(SegmentTreeContextsTest, ListsByPagesAndRenames) {
  for (const std::string name : {"c", "a", "e", "b", "d"}) Create(name, TestText(5, name[0]));
  ContextPage page = tree_.List("", "", 2);
  ASSERT_EQ(page.contexts.size(), 2u);
  EXPECT_EQ(page.contexts[1].name, "b");
  EXPECT_EQ(page.next, "b");
  EXPECT_TRUE(tree_.Delete("", "b", 0, &drops_).ok());  // pages go on all the same
  page = tree_.List("", page.next, 3);
  EXPECT_EQ(page.contexts[0].name, "c");
  EXPECT_TRUE(page.next.empty());
  EXPECT_TRUE(tree_.List("bob", "", 3).contexts.empty());

  const uint64_t etag = tree_.Get("", "a")->etag;
  ASSERT_TRUE(tree_.Rename("", "a", "z", etag).ok());
  EXPECT_NE(tree_.Get("", "z")->etag, etag);
  EXPECT_TRUE(absl::IsAlreadyExists(tree_.Rename("", "z", "c", 0).status()));
  EXPECT_EQ(Names(), (std::vector<std::string>{"c", "d", "e", "z"}));
}

TEST_F(SegmentTreeContextsTest, UseRefreshesTheExpiry) {
  const uint64_t used = Create("used", TestText(50, 1), 10.0);
  const uint64_t left = Create("left", TestText(50, 2), 10.0);
  ASSERT_TRUE(tree_.Use("", "used", 5).ok());
  tree_.Release(used, &drops_);
  EXPECT_EQ(tree_.Expire(9.9, &drops_).size(), 0u);
  EXPECT_EQ(tree_.Expire(10, &drops_).size(), 1u);
  EXPECT_EQ(Names(), std::vector<std::string>{"used"});
  EXPECT_TRUE(tree_.Find(left).has_value()) << "its bytes may be evicted, but need not";
  EXPECT_TRUE(tree_.MakeRoom(shelf_, 998'500, 12, &drops_).ok());
  EXPECT_FALSE(tree_.Find(left).has_value());
  EXPECT_EQ(tree_.Expire(15, &drops_).size(), 1u);
}

TEST_F(SegmentTreeContextsTest, WhatIsPinnedDoesNotExpire) {
  Create("mine", TestText(50), 10.0);
  ASSERT_TRUE(tree_.Pin("", "mine", true, 0).ok());
  EXPECT_FALSE(tree_.Get("", "mine")->expires.has_value());
  EXPECT_TRUE(tree_.Expire(100, &drops_).empty());
  const auto unpinned = tree_.Pin("", "mine", false, 0);
  ASSERT_TRUE(unpinned.ok());
  EXPECT_EQ(unpinned->expires, 110.0);
  EXPECT_EQ(tree_.SetSecondsToLive("", "mine", 5, 102)->expires, 107.0);
  const std::vector<ExpiredContext> expired = tree_.Expire(107, &drops_);
  ASSERT_EQ(expired.size(), 1u);
  EXPECT_EQ(expired[0].name, "mine");
}

TEST_F(SegmentTreeContextsTest, TellsWhatIsKeptAndWhatIsShared) {
  const uint64_t document = StoreHeld(tree_, "", TestText(100, 1), shelf_, 0);
  const uint64_t one = StoreHeld(tree_, "", TestText(10, 2), shelf_, 0, false, document);
  const auto two = tree_.Add("", document, TestText(20, 3), TestBytes(), 1, 0);
  ASSERT_TRUE(tree_.Create("", "one", one, {}, 0).ok());
  EXPECT_EQ(tree_.Kept(one).shared_row_tokens, 0);
  ASSERT_TRUE(tree_.Create("", "two", two->number, {}, 0).ok());
  const TextKept kept = tree_.Kept(one);
  EXPECT_EQ(kept.row_tokens, 110);
  EXPECT_EQ(kept.shared_row_tokens, 100);
  EXPECT_EQ(kept.snapshots, (std::vector<int64_t>{100, 110}));
  EXPECT_EQ(kept.shared_snapshots, 1);
  EXPECT_TRUE(kept.in_memory);
  EXPECT_FALSE(kept.on_disk);
  // Nothing is kept of the end of the other one, but it can go on from the document.
  const TextKept other = tree_.Kept(two->number);
  EXPECT_EQ(other.row_tokens, 100);
  EXPECT_EQ(other.snapshots, std::vector<int64_t>{100});
  EXPECT_TRUE(other.in_memory);
  tree_.CloseTier(shelf_, &drops_);
  EXPECT_FALSE(tree_.Kept(one).in_memory);
  EXPECT_TRUE(tree_.Kept(one).snapshots.empty());
}

TEST_F(SegmentTreeContextsTest, EtagsGoOnFromThoseOfAnotherTree) {
  Create("a", TestText(50));
  SegmentTree next(TestIdentity(), tree_.next_etag());
  const int shelf = next.OpenTier(TestTier(TierKind::kMemory, 10'000));
  const uint64_t number = StoreHeld(next, "", TestText(50), shelf, 0);
  EXPECT_GT(next.Create("", "a", number, {}, 0)->etag, tree_.Get("", "a")->etag);
}

TEST_F(SegmentTreeContextsTest, AQuotaEvictsItsOwnAndThenRefuses) {
  const uint64_t bobs = StoreText(tree_, "bob", TestText(100), shelf_, 0);
  tree_.SetQuota("alice", {.bytes_max = 5000});
  const uint64_t named = StoreHeld(tree_, "alice", TestText(100, 1), shelf_, 0);
  ASSERT_TRUE(tree_.Create("alice", "mine", named, {}, 0).ok());
  tree_.Release(named, &drops_);
  const uint64_t automatic = StoreText(tree_, "alice", TestText(100, 2), shelf_, 0);
  const uint64_t third = StoreText(tree_, "alice", TestText(100, 3), shelf_, 10);
  EXPECT_FALSE(tree_.Find(automatic).has_value());
  EXPECT_EQ(tree_.NamespaceBytes("alice"), 4000);

  const auto large = tree_.Add("alice", 0, TestText(300, 4), TestBytes(), 1, 100);
  const absl::Status full = tree_.Store(large->number, shelf_, 100, &drops_).status();
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_EQ(full.message(), "contexts of namespace \"alice\" would take 6,000 bytes, and its quota is 5,000");
  EXPECT_FALSE(tree_.Find(third).has_value());
  EXPECT_TRUE(tree_.Find(named).has_value());
  EXPECT_TRUE(tree_.Find(bobs).has_value());
  tree_.Release(large->number, &drops_);
  EXPECT_EQ(tree_.NamespaceBytes("alice"), 2000);
}

// ---- After a restart

TEST_F(SegmentTreeContextsTest, WhatWasOnDiskIsThereAgain) {
  const int disk = tree_.OpenTier(TestTier(TierKind::kDisk, 10'000));
  const ContextIdentity identity = TestIdentity();
  const auto adopt = [&](uint64_t parent, const Text& ids, SegmentContents contents) {
    return tree_.Adopt(identity, "", parent, ids, TestBytes(), disk, contents, 1, 0);
  };
  const uint64_t first = *adopt(0, TestText(100, 1), kRows);
  const uint64_t second = *adopt(first, TestText(50, 2), kRowsAndSnapshot);
  const uint64_t orphan = *adopt(second, TestText(50, 3), kRows);
  EXPECT_TRUE(absl::IsAlreadyExists(adopt(0, TestText(100, 1) + TestText(50, 2), kRowsAndSnapshot).status()));
  EXPECT_TRUE(absl::IsResourceExhausted(adopt(0, TestText(900, 4), kRowsAndSnapshot).status()));
  // The same text in one segment is another one; its begin stays what its file says.
  const uint64_t whole = *adopt(0, TestText(100, 1) + TestText(20, 2), kRowsAndSnapshot);
  EXPECT_EQ(tree_.Find(whole)->begin, 0);

  const SegmentKey parent = KeyOf(identity, "", nullptr, TestText(100, 1));
  EXPECT_EQ(tree_.Key(second), KeyOf(identity, "", &parent, TestText(50, 2)));
  tree_.Tidy(&drops_);
  ASSERT_EQ(drops_.size(), 1u);
  EXPECT_EQ(drops_[0].segment, orphan);
  EXPECT_EQ(tree_.Match("", TestText(100, 1) + TestText(50, 2) + TestText(50, 3)).segment, second);
  tree_.Lost(first, disk, kRowsAndSnapshot, &drops_);
  EXPECT_TRUE(absl::IsNotFound(adopt(first, TestText(50, 5), kRowsAndSnapshot).status()));
}

// Whoever owns a shelf frees all of a segment whose rows go.
TEST_F(SegmentTreeContextsTest, RowsDoNotGoWithoutTheSnapshotBesideThem) {
  const int disk = tree_.OpenTier(TestTier(TierKind::kDisk, 10'000));
  const uint64_t number = StoreHeld(tree_, "", TestText(50), shelf_, 0);
  ASSERT_TRUE(tree_.Create("", "mine", number, {}, 0).ok());
  ASSERT_TRUE(tree_.Bring(number, disk, 0, &drops_).ok());
  tree_.Arrived(number, disk, kRowsAndSnapshot, 0, &drops_);
  tree_.Lost(number, disk, kSnapshot, &drops_);
  tree_.Release(number, &drops_);
  // The rows are on the disk as well, but nowhere else is the snapshot.
  const int64_t bytes = tree_.TierBytes(shelf_);
  EXPECT_FALSE(tree_.MakeRoom(shelf_, 1'000'000, 100, &drops_).ok());
  EXPECT_EQ(tree_.TierBytes(shelf_), bytes);
  EXPECT_TRUE(drops_.empty());
}

TEST_F(SegmentTreeContextsTest, AContextOfAnotherModelSaysSo) {
  const int disk = tree_.OpenTier(TestTier(TierKind::kDisk, 10'000));
  const uint64_t other =
      *tree_.Adopt(TestIdentity("model-b"), "", 0, TestText(50), TestBytes(), disk, kRowsAndSnapshot, 1, 0);
  tree_.Hold(other, 0);
  ASSERT_TRUE(tree_.Create("", "old", other, {}, 0).ok());
  tree_.Release(other, &drops_);
  const absl::Status status = tree_.Use("", "old", 1).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_EQ(status.message(),
            "context \"old\" was made by model-b/vocabulary/bf16/cpu-f32/1, this server runs "
            "model-a/vocabulary/bf16/cpu-f32/1");
  EXPECT_TRUE(tree_.Delete("", "old", 0, &drops_).ok());
  EXPECT_EQ(tree_.segments(), 0u);
}

}  // namespace
}  // namespace goldfinch
