// Histories of prompts, and of what is kept of them.
#include "coordinator/contexts/segment_tree.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/contexts/segment_tree_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using Text = std::vector<int32_t>;
using Numbers = std::vector<uint64_t>;

constexpr double kLater = 100;  // long after whatever was just stored

class SegmentTreeTest : public testing::Test {
 protected:
  SegmentTreeTest() : tree_(TestIdentity()) {
    shelf_ = tree_.OpenTier(TestTier(TierKind::kMemory, 1'000'000));
    disk_ = tree_.OpenTier(TestTier(TierKind::kDisk, 1'000'000));
  }

  uint64_t Keep(const Text& text, uint64_t parent = 0, double now = 0, bool logits = false) {
    return StoreText(tree_, "", text, shelf_, now, logits, parent);
  }
  // The next child is added to a held parent.
  uint64_t KeepChain(const std::vector<Text>& texts, double now = 0) {
    uint64_t parent = 0;
    Numbers held;
    for (const Text& next : texts) {
      parent = StoreHeld(tree_, "", next, shelf_, now, false, parent);
      held.push_back(parent);
    }
    for (const uint64_t number : held) tree_.Release(number, &drops_);
    return parent;
  }
  void CopyToDisk(uint64_t number, double now = 0) {
    tree_.Hold(number, now);
    const auto plan = tree_.Bring(number, disk_, now, &drops_);
    ASSERT_TRUE(plan.ok()) << plan.status();
    for (const BringMove& move : plan->moves) tree_.Arrived(move.segment, disk_, move.contents, now, &drops_);
    tree_.Release(number, &drops_);
  }
  ContextMatch Match(const Text& prompt, int64_t limit = INT64_MAX) { return tree_.Match("", prompt, limit); }
  ContextChoice Choose(const Text& prompt, int tier, double token_seconds = kTestTokenSeconds) {
    const ContextMatch match = Match(prompt);
    return tree_.Choose(match, tier,
                        [&](int64_t begin) { return token_seconds * static_cast<double>(match.tokens - begin); });
  }
  bool Kept(uint64_t number) const { return tree_.Find(number).has_value(); }
  bool HasSnapshot(uint64_t number, int tier) const {
    const auto info = tree_.Find(number);
    if (!info) return false;
    for (const SegmentInfo::Copy& copy : info->copies) {
      if (copy.tier == tier) return (copy.present & kSnapshot) != 0;
    }
    return false;
  }

  SegmentTree tree_;
  int shelf_ = 0, disk_ = 0;
  SegmentDrops drops_;
};

TEST_F(SegmentTreeTest, APromptGoesOnFromTheLastSnapshotOfItAndIsMatchedToTheToken) {
  const uint64_t second = KeepChain({TestText(100, 1), TestText(50, 2)});
  const Numbers chain = tree_.Chain(second);
  ASSERT_EQ(chain.size(), 2u);
  const Text kept = TestText(100, 1) + TestText(50, 2);

  ContextMatch match = Match(kept + TestText(7, 3));
  EXPECT_EQ(match.segment, second);
  EXPECT_EQ(match.position, 150);
  EXPECT_EQ(match.matched, 150);
  EXPECT_TRUE(match.partings.empty());

  Text parted = TestText(100, 1) + TestText(33, 2);
  match = Match(parted + TestText(7, 3));
  EXPECT_EQ(match.segment, chain[0]);
  EXPECT_EQ(match.position, 100);
  EXPECT_EQ(match.matched, 133);
  EXPECT_EQ(match.partings, std::vector<int64_t>{133}) << "where a snapshot is worth taking";

  EXPECT_EQ(Match(TestText(99, 1)).segment, 0u);
  EXPECT_EQ(Match(TestText(99, 1)).matched, 99);
  EXPECT_EQ(Match({}).segment, 0u);
}

TEST_F(SegmentTreeTest, AWholePromptIsAHitOnlyWithItsLogits) {
  const Text prompt = TestText(64);
  const uint64_t number = Keep(prompt);
  EXPECT_EQ(Match(prompt).segment, 0u);
  EXPECT_EQ(Match(prompt + Text{5}).segment, number);

  // Once more, with logits: the snapshot is taken again in place of the other.
  const auto added = tree_.Add("", 0, prompt, TestBytes(/*logits=*/true), 1, 0);
  ASSERT_TRUE(added.ok());
  EXPECT_EQ(added->number, number);
  EXPECT_EQ(added->missing, kSnapshot);
  const auto saving = tree_.Store(number, shelf_, 0, &drops_);
  ASSERT_TRUE(saving.ok());
  EXPECT_EQ(saving->contents, kSnapshot);
  EXPECT_EQ(saving->begin, 64) << "no rows";
  ASSERT_EQ(drops_.size(), 1u);
  EXPECT_EQ(drops_[0].contents, kSnapshot);
  tree_.Arrived(number, shelf_, saving->contents, 0, &drops_);
  tree_.Release(number, &drops_);

  EXPECT_EQ(Match(prompt).position, 64);
  const ContextChoice choice = Choose(prompt, shelf_);
  EXPECT_EQ(choice.segment, number);
  EXPECT_EQ(choice.compute_seconds, 0) << "nothing but the draw";
}

TEST_F(SegmentTreeTest, WhoWantsLogitsBeforeTheEndGoesOnEarlier) {
  KeepChain({TestText(100, 1), TestText(50, 2)});
  const Text prompt = TestText(100, 1) + TestText(60, 2);
  EXPECT_EQ(Match(prompt, 150).position, 150);
  EXPECT_EQ(Match(prompt, 149).position, 100);
  EXPECT_EQ(Match(prompt, 99).position, 0);
}

TEST_F(SegmentTreeTest, TheSameTextIsOneSegmentHoweverItIsCut) {
  const Text text = TestText(100, 1) + TestText(50, 2);
  const uint64_t whole = Keep(text);
  const uint64_t front = Keep(TestText(100, 1));
  EXPECT_EQ(tree_.Find(whole)->begin, 0);
  const uint64_t again = KeepChain({TestText(100, 1), TestText(50, 2)});
  EXPECT_EQ(again, whole);
  EXPECT_EQ(tree_.segments(), 2u);
  // One that goes on gets the longest as its parent, though it was added beyond the front.
  tree_.Hold(front, 0);
  const auto added = tree_.Add("", front, TestText(50, 2) + TestText(9, 3), TestBytes(), 1, 0);
  ASSERT_TRUE(added.ok());
  EXPECT_EQ(tree_.Find(added->number)->parent, whole);
  EXPECT_EQ(added->begin, 150);
  EXPECT_EQ(tree_.Ids(added->number, 150, tree_.Find(added->number)->end), TestText(9, 3));
}

// 64 questions over one document: the first reads it, and the others begin with it.
TEST_F(SegmentTreeTest, WhatIsOnItsWayIsNotStoredTwice) {
  const Text document = TestText(500);
  const auto first = tree_.Add("", 0, document, TestBytes(), 5, 0);
  ASSERT_TRUE(first.ok());
  const Text question = document + TestText(10, 2);
  EXPECT_EQ(Match(question).segment, 0u);
  ASSERT_TRUE(tree_.Store(first->number, shelf_, 0, &drops_).ok());
  EXPECT_EQ(Match(question).segment, 0u) << "it is still on its way";
  // Another one that is at the same place need not store it, too.
  const auto second = tree_.Add("", 0, document, TestBytes(), 5, 0);
  EXPECT_EQ(second->number, first->number);
  EXPECT_EQ(tree_.Store(second->number, shelf_, 0, &drops_)->contents, 0);
  tree_.Arrived(first->number, shelf_, kRowsAndSnapshot, 1, &drops_);
  EXPECT_EQ(Match(question).segment, first->number);
  for (int i = 0; i < 64; ++i) {
    const ContextChoice choice = Choose(document + TestText(10, 100 + i), shelf_);
    ASSERT_EQ(choice.position, 500);
    tree_.CountHit(choice);
  }
  EXPECT_EQ(tree_.counters().tokens_saved, 64 * 500);
}

TEST_F(SegmentTreeTest, WhoGivesUpLeavesNothingBehind) {
  const auto first = tree_.Add("", 0, TestText(50, 1), TestBytes(), 1, 0);
  const auto second = tree_.Add("", first->number, TestText(50, 2), TestBytes(), 1, 0);
  tree_.Release(second->number, &drops_);
  EXPECT_EQ(tree_.segments(), 1u);
  tree_.Release(first->number, &drops_);
  EXPECT_EQ(tree_.segments(), 0u);
  EXPECT_EQ(tree_.index_bytes(), 0);
  EXPECT_TRUE(drops_.empty());
}

TEST_F(SegmentTreeTest, AFailedSaveIsMadeUpForByTheNext) {
  const auto first = tree_.Add("", 0, TestText(50, 1), TestBytes(), 1, 0);
  const auto second = tree_.Add("", first->number, TestText(50, 2), TestBytes(), 1, 0);
  EXPECT_EQ(second->begin, 50);
  ASSERT_TRUE(tree_.Store(first->number, shelf_, 0, &drops_).ok());
  tree_.Lost(first->number, shelf_, kRowsAndSnapshot, &drops_);  // a worker could not
  const auto saving = tree_.Store(second->number, shelf_, 0, &drops_);
  ASSERT_TRUE(saving.ok());
  EXPECT_EQ(saving->begin, 0) << "the rows before it are in no other segment";
  EXPECT_EQ(tree_.TierBytes(shelf_), 100 * kTestRowBytes + kTestSnapshotBytes);
}

TEST_F(SegmentTreeTest, NamespacesNeverMeet) {
  const Text text = TestText(100);
  const uint64_t alice = StoreText(tree_, "alice", text, shelf_, 0);
  EXPECT_EQ(tree_.Match("bob", text + Text{1}).matched, 0);
  EXPECT_EQ(tree_.Match("", text + Text{1}).matched, 0);
  const uint64_t bob = StoreText(tree_, "bob", text, shelf_, 0);
  EXPECT_NE(alice, bob);
  EXPECT_NE(tree_.Key(alice), tree_.Key(bob));
  EXPECT_EQ(tree_.Match("alice", text + Text{1}).segment, alice);
  EXPECT_EQ(tree_.Match("bob", text + Text{1}).segment, bob);
}

TEST_F(SegmentTreeTest, KeysAreChains) {
  const uint64_t second = KeepChain({TestText(100, 1), TestText(50, 2)});
  const uint64_t first = tree_.Chain(second)[0];
  const SegmentKey parent = KeyOf(TestIdentity(), "", nullptr, TestText(100, 1));
  EXPECT_EQ(tree_.Key(second), KeyOf(TestIdentity(), "", &parent, TestText(50, 2)));
  EXPECT_EQ(tree_.Key(first), parent);
}

TEST_F(SegmentTreeTest, AMissHasAReason) {
  const Text text = TestText(100);
  EXPECT_EQ(Match(text).reason, ContextMiss::kNoneKept);

  const uint64_t number = Keep(text);
  const ContextChoice choice = Choose(text + Text{1}, shelf_, /*token_seconds=*/1e-9);
  EXPECT_EQ(choice.segment, 0u);
  EXPECT_EQ(choice.reason, ContextMiss::kCheaperToCompute);

  ASSERT_TRUE(tree_.MakeRoom(shelf_, 1'000'000, kLater, &drops_).ok());
  EXPECT_FALSE(Kept(number));
  EXPECT_EQ(Match(text + Text{1}).reason, ContextMiss::kEvicted);
  EXPECT_EQ(tree_.Match("bob", text + Text{1}).reason, ContextMiss::kNoneKept);
  EXPECT_EQ(Match(TestText(100, 9)).reason, ContextMiss::kNoneKept);
  const Text parted = TestText(20) + TestText(50, 8);
  EXPECT_EQ(Match(parted).reason, ContextMiss::kNoneKept) << "it has another beginning";

  ASSERT_TRUE(
      tree_.Adopt(TestIdentity("model-b"), "", 0, TestText(60, 5), TestBytes(), disk_, kRowsAndSnapshot, 1, 0).ok());
  EXPECT_EQ(Match(TestText(70, 5)).segment, 0u) << "contexts of another model are of no use";
  EXPECT_EQ(Match(TestText(70, 5)).reason, ContextMiss::kOtherModel);

  tree_.CountMiss(ContextMiss::kOtherModel);
  tree_.CountMiss(ContextMiss::kOtherModel);
  EXPECT_EQ(tree_.counters().misses[static_cast<size_t>(ContextMiss::kOtherModel)], 2);
}

// ---- Whether it is worth it

TEST_F(SegmentTreeTest, TheCheapestWayCountsNotTheLongest) {
  const uint64_t second = KeepChain({TestText(1000, 1), TestText(100, 2)});
  const uint64_t first = tree_.Chain(second)[0];
  CopyToDisk(second);
  const int other = tree_.OpenTier(TestTier(TierKind::kMemory, 1'000'000));
  for (int i = 0; i < 100; ++i) tree_.MeasuredMove(disk_, 2000, 0.5);
  const Text prompt = TestText(1000, 1) + TestText(150, 2);
  // The shelf that has it is better than one that reads it from the other shelf, and that better than the disk.
  const ContextChoice near = Choose(prompt, shelf_), far = Choose(prompt, other);
  EXPECT_EQ(near.segment, second);
  EXPECT_EQ(far.segment, second);
  EXPECT_LT(near.load_seconds, far.load_seconds);
  EXPECT_LT(far.load_seconds, 0.1);
  // If the shelf has lost the second one's snapshot, it is not worth reading it from the disk.
  tree_.Lost(second, shelf_, kSnapshot, &drops_);
  const ContextChoice shorter = Choose(prompt, shelf_, /*token_seconds=*/1e-3);
  EXPECT_EQ(shorter.segment, first);
  EXPECT_EQ(shorter.position, 1000);
  EXPECT_DOUBLE_EQ(shorter.compute_seconds, 0.15);
  EXPECT_EQ(Choose(prompt, shelf_, /*token_seconds=*/1).segment, second) << "unless tokens take very long";
}

TEST_F(SegmentTreeTest, ALongTextIsNotBroughtFromASlowDisk) {
  const uint64_t number = Keep(TestText(1000));
  CopyToDisk(number);
  tree_.CloseTier(shelf_, &drops_);
  shelf_ = tree_.OpenTier(TestTier(TierKind::kMemory, 1'000'000));
  EXPECT_EQ(Choose(TestText(1001), shelf_).segment, number);
  for (int i = 0; i < 200; ++i) tree_.MeasuredMove(disk_, 11'000, 60);
  EXPECT_EQ(Choose(TestText(1001), shelf_).reason, ContextMiss::kCheaperToCompute);
}

// ---- What stays

TEST_F(SegmentTreeTest, TheLeastSecondsPerByteGoFirstAndOfEqualsTheOldest) {
  const uint64_t cheap = Keep(TestText(10, 1)), dear = Keep(TestText(1000, 2)), later = Keep(TestText(10, 3), 0, 1);
  const int64_t small = 10 * kTestRowBytes + kTestSnapshotBytes;
  ASSERT_TRUE(tree_.MakeRoom(shelf_, 1'000'000 - tree_.TierBytes(shelf_) + 1, kLater, &drops_).ok());
  EXPECT_FALSE(Kept(cheap));
  EXPECT_TRUE(Kept(later));
  EXPECT_TRUE(Kept(dear));
  ASSERT_EQ(drops_.size(), 1u);
  EXPECT_EQ(drops_[0].segment, cheap);
  EXPECT_EQ(drops_[0].tier, shelf_);
  EXPECT_EQ(drops_[0].contents, kRowsAndSnapshot);
  // What is worth little, but used all the time, outlives what is worth more and is not.
  for (int i = 0; Kept(dear) && i < 1000; ++i) {
    Keep(TestText(10, 100 + i), 0, kLater + 10.0 * i);
    tree_.Hold(later, kLater + 10.0 * i);
    tree_.Release(later, &drops_);
    ASSERT_TRUE(
        tree_.MakeRoom(shelf_, 1'000'000 - tree_.TierBytes(shelf_) + small, kLater + 10.0 * i + 5, &drops_).ok());
  }
  EXPECT_FALSE(Kept(dear));
  EXPECT_TRUE(Kept(later));
  EXPECT_GE(tree_.counters().evictions, 10);
}

TEST_F(SegmentTreeTest, SnapshotsBetweenGoBeforeRowsThatOthersNeed) {
  const uint64_t last = KeepChain({TestText(100, 1), TestText(100, 2), TestText(100, 3)});
  const Numbers chain = tree_.Chain(last);
  tree_.Hold(last, 10);
  EXPECT_FALSE(tree_.MakeRoom(shelf_, 1'000'000, kLater, &drops_).ok());
  EXPECT_FALSE(HasSnapshot(chain[0], shelf_));
  EXPECT_FALSE(HasSnapshot(chain[1], shelf_));
  EXPECT_TRUE(HasSnapshot(last, shelf_));
  EXPECT_EQ(tree_.TierBytes(shelf_), 300 * kTestRowBytes + kTestSnapshotBytes);
  EXPECT_EQ(Match(TestText(100, 1) + TestText(100, 2) + TestText(101, 3)).segment, last);
  EXPECT_EQ(Match(TestText(100, 1) + TestText(100, 2)).reason, ContextMiss::kEvicted);
  tree_.Release(last, &drops_);
  EXPECT_TRUE(tree_.MakeRoom(shelf_, 1'000'000, kLater, &drops_).ok());
  EXPECT_EQ(tree_.segments(), 0u);
}

TEST_F(SegmentTreeTest, WhatIsInUsePinnedNamedOrJustStoredStays) {
  const uint64_t held = StoreHeld(tree_, "", TestText(50, 1), shelf_, 0);
  const uint64_t pinned = StoreHeld(tree_, "", TestText(50, 2), shelf_, 0);
  const uint64_t named = StoreHeld(tree_, "", TestText(50, 3), shelf_, 0);
  ASSERT_TRUE(tree_.Create("", "pinned", pinned, {}, 0).ok());
  ASSERT_TRUE(tree_.Pin("", "pinned", true, 0).ok());
  ASSERT_TRUE(tree_.Create("", "named", named, {}, 0).ok());
  tree_.Release(pinned, &drops_);
  tree_.Release(named, &drops_);
  const uint64_t fresh = Keep(TestText(50, 4), 0, kLater - 1);
  const absl::Status full = tree_.MakeRoom(shelf_, 1'000'000, kLater, &drops_);
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_EQ(full.message(),
            "contexts that must stay and a new one would take 1,006,000 bytes of the memory of replica 0, which has "
            "1,000,000");
  EXPECT_TRUE(drops_.empty());
  EXPECT_TRUE(Kept(held) && Kept(pinned) && Kept(named) && Kept(fresh));
  // A copy of the named one on disk is enough; the pinned one stays in memory.
  CopyToDisk(named, kLater);
  CopyToDisk(pinned, kLater);
  EXPECT_FALSE(tree_.MakeRoom(shelf_, 1'000'000, kLater + 10, &drops_).ok());
  EXPECT_TRUE(HasSnapshot(pinned, shelf_) && HasSnapshot(pinned, disk_));
  EXPECT_FALSE(HasSnapshot(named, shelf_));
  EXPECT_TRUE(HasSnapshot(named, disk_));
  EXPECT_FALSE(Kept(fresh)) << "time has passed";
  EXPECT_FALSE(tree_.MakeRoom(disk_, 1'000'000, kLater + 10, &drops_).ok());
  EXPECT_TRUE(HasSnapshot(named, disk_));
}

TEST_F(SegmentTreeTest, NothingIsEvictedForWhatCanNeverFit) {
  const uint64_t number = Keep(TestText(50, 1));
  const auto added = tree_.Add("", 0, TestText(200'000, 2), TestBytes(), 1, kLater);
  EXPECT_TRUE(absl::IsResourceExhausted(tree_.Store(added->number, shelf_, kLater, &drops_).status()));
  EXPECT_TRUE(absl::IsResourceExhausted(tree_.MakeRoom(shelf_, 1'000'001, kLater, &drops_)));
  EXPECT_TRUE(Kept(number));
  tree_.Release(added->number, &drops_);
  EXPECT_TRUE(drops_.empty());
}

// ---- Moving bytes, and losing them

TEST_F(SegmentTreeTest, AChainIsBroughtToAnotherShelfInMoves) {
  const uint64_t second = KeepChain({TestText(100, 1), TestText(50, 2)});
  const uint64_t first = tree_.Chain(second)[0];
  const int other = tree_.OpenTier(TestTier(TierKind::kMemory, 100'000));
  tree_.Hold(second, 0);
  const auto plan = tree_.Bring(second, other, 0, &drops_);
  ASSERT_TRUE(plan.ok());
  ASSERT_EQ(plan->moves.size(), 3u) << "the snapshot of the first is not needed";
  EXPECT_EQ(plan->moves[0].segment, first);
  EXPECT_EQ(plan->moves[0].contents, kRows);
  EXPECT_EQ(plan->moves[0].source, shelf_);
  EXPECT_EQ(plan->moves[0].bytes, 1000);
  EXPECT_EQ(plan->moves[2].segment, second);
  EXPECT_EQ(plan->moves[2].contents, kSnapshot);
  const auto again = tree_.Bring(second, other, 0, &drops_);
  EXPECT_TRUE(again->moves.empty());
  EXPECT_EQ(again->awaited, (Numbers{first, second}));
  for (const BringMove& move : plan->moves) tree_.Arrived(move.segment, other, move.contents, 0, &drops_);
  EXPECT_TRUE(tree_.Bring(second, other, 0, &drops_)->awaited.empty());
  EXPECT_EQ(tree_.TierBytes(other), 150 * kTestRowBytes + kTestSnapshotBytes);
  EXPECT_EQ(tree_.NamespaceBytes(""), 150 * kTestRowBytes + 2 * kTestSnapshotBytes) << "copies count once";

  const int small = tree_.OpenTier(TestTier(TierKind::kMemory, 1500));
  EXPECT_TRUE(absl::IsResourceExhausted(tree_.Bring(second, small, 0, &drops_).status()));
  EXPECT_EQ(tree_.TierBytes(small), 0);
}

TEST_F(SegmentTreeTest, AGenerationsEndTakesWhatOnlyItsShelvesHad) {
  const uint64_t second = KeepChain({TestText(100, 1), TestText(50, 2)});
  const uint64_t third = Keep(TestText(80, 3));
  CopyToDisk(second);
  tree_.CloseTier(shelf_, &drops_);
  EXPECT_TRUE(drops_.empty()) << "the workers' memory is gone anyway";
  EXPECT_FALSE(Kept(third));
  EXPECT_EQ(Match(TestText(100, 1) + TestText(60, 2)).segment, second);
  tree_.Arrived(second, shelf_, kRowsAndSnapshot, 5, &drops_);  // an answer that comes late
  tree_.Lost(second, shelf_, kRowsAndSnapshot, &drops_);
  EXPECT_EQ(tree_.TierBytes(TierKind::kMemory), 0);
  EXPECT_EQ(tree_.TierBytes(TierKind::kDisk), 150 * kTestRowBytes + kTestSnapshotBytes);
}

TEST_F(SegmentTreeTest, RowsThatAreLostTakeWhatWasBuiltOnThem) {
  const uint64_t last = KeepChain({TestText(100, 1), TestText(50, 2), TestText(50, 3)});
  const Numbers chain = tree_.Chain(last);
  CopyToDisk(last);
  tree_.CloseTier(shelf_, &drops_);
  tree_.Hold(last, 0);
  ASSERT_TRUE(tree_.Create("", "mine", last, {}, 0).ok());
  tree_.Release(last, &drops_);
  drops_.clear();
  tree_.Lost(chain[1], disk_, kRowsAndSnapshot, &drops_);  // its file is broken
  // The name and its ids stay, and so do the rows before.
  EXPECT_EQ(tree_.TierBytes(disk_), 100 * kTestRowBytes);
  EXPECT_FALSE(tree_.Get("", "mine")->usable);
  ASSERT_EQ(drops_.size(), 1u);
  EXPECT_EQ(drops_[0].segment, last);
  EXPECT_EQ(tree_.Ids(last, 0, 200), TestText(100, 1) + TestText(50, 2) + TestText(50, 3));
  // Whoever computes the text again stores it in the same place.
  shelf_ = tree_.OpenTier(TestTier(TierKind::kMemory, 1'000'000));
  EXPECT_EQ(Keep(TestText(100, 1) + TestText(50, 2) + TestText(50, 3)), last);
  EXPECT_TRUE(tree_.Get("", "mine")->usable);
  EXPECT_EQ(tree_.Find(last)->begin, 100) << "the one between has lost its rows";
  EXPECT_FALSE(Kept(chain[1]));
}

// ---- Bounds

TEST_F(SegmentTreeTest, AChainHasALimit) {
  uint64_t parent = 0;
  Numbers held;
  for (int i = 0; i < SegmentTree::kChainMax; ++i) {
    const auto added = tree_.Add("", parent, Text{i}, {0, 1, false}, 1, 0);
    ASSERT_TRUE(added.ok()) << i;
    parent = added->number;
    held.push_back(parent);
  }
  EXPECT_TRUE(absl::IsResourceExhausted(tree_.Add("", parent, Text{1}, TestBytes(), 1, 0).status()));
  for (const uint64_t number : held) tree_.Release(number, &drops_);
  EXPECT_EQ(tree_.segments(), 0u) << "without recursion";
}

// Texts that share a long beginning and then all part at other places.
TEST_F(SegmentTreeTest, ManyTextsOfOneBeginningKeepItsIdsOnce) {
  const Text document = TestText(20'000);
  Numbers numbers;
  for (int i = 0; i < 500; ++i) {
    Text text(document.begin(), document.begin() + 10'000 + 20 * i);
    text.push_back(50'000 + i);
    const auto added = tree_.Add("", 0, text, {0, 1, false}, 1, 0);
    ASSERT_TRUE(added.ok());
    numbers.push_back(added->number);
  }
  EXPECT_LT(tree_.index_bytes(), 40'000 + 500 * 1200);
  EXPECT_EQ(Match(document).partings.size(), ContextMatch::kPartingsMax);
  for (const uint64_t number : numbers) tree_.Release(number, &drops_);
  EXPECT_EQ(tree_.index_bytes(), 0);
}

}  // namespace
}  // namespace goldfinch
