// Tuned initial states: texts that begin with one never meet the same ids without it, and it stays as long as it is
// needed, as nobody can compute it.
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
using Text = std::vector<int32_t>;

SegmentKey Key(uint8_t byte) {
  SegmentKey key{};
  key.fill(byte);
  return key;
}

class SegmentTreeTunedTest : public testing::Test {
 protected:
  SegmentTreeTunedTest() : tree_(TestIdentity()) {
    shelf_ = tree_.OpenTier(TestTier(TierKind::kMemory, 1'000'000));
    disk_ = tree_.OpenTier(TestTier(TierKind::kDisk, 1'000'000));
  }

  // On the disk, and held.
  uint64_t Adopt(uint8_t byte, const std::string& name_space = "") {
    const auto adopted = tree_.AdoptTuned(TestIdentity(), name_space, Key(byte), kTestSnapshotBytes, disk_, 0);
    EXPECT_TRUE(adopted.ok()) << adopted.status();
    tree_.Hold(*adopted, 0);
    return *adopted;
  }
  uint64_t Store(uint64_t tuned, const Text& text, bool logits = false) {
    return StoreHeld(tree_, "", text, shelf_, 0, logits, tuned);
  }
  void Release(const std::vector<uint64_t>& numbers) {
    for (const uint64_t number : numbers) tree_.Release(number, &drops_);
  }
  ContextMatch Match(const Text& prompt, uint64_t tuned = 0) { return tree_.Match("", prompt, INT64_MAX, tuned); }
  ContextChoice Choose(const ContextMatch& match, bool only_here = false) {
    return tree_.Choose(
        match, shelf_, [&](int64_t begin) { return kTestTokenSeconds * static_cast<double>(match.tokens - begin); },
        only_here);
  }

  SegmentTree tree_;
  int shelf_ = 0, disk_ = 0;
  SegmentDrops drops_;
};

TEST_F(SegmentTreeTunedTest, TheSameIdsAreOtherTextsAfterEachState) {
  const uint64_t poet = Adopt(1), clerk = Adopt(2);
  const Text text = TestText(100);
  const uint64_t plain = Store(0, text), by_poet = Store(poet, text), by_clerk = Store(clerk, text);
  EXPECT_NE(plain, by_poet);
  EXPECT_NE(by_clerk, by_poet);
  const Text prompt = text + TestText(10, 2);
  EXPECT_EQ(Match(prompt).segment, plain);
  EXPECT_EQ(Match(prompt, poet).segment, by_poet);
  EXPECT_EQ(Match(prompt, clerk).segment, by_clerk);
  EXPECT_NE(tree_.Key(plain), tree_.Key(by_poet));
  EXPECT_NE(tree_.Key(by_clerk), tree_.Key(by_poet));
  const SegmentKey state = Key(1);
  EXPECT_EQ(tree_.Key(by_poet), KeyOf(TestIdentity(), "", &state, text));
  EXPECT_EQ(tree_.TunedOf(by_poet), poet);
  EXPECT_EQ(tree_.TunedOf(poet), poet);
  EXPECT_EQ(tree_.TunedOf(plain), 0u);

  // Nor what was read of another text after it.
  const Text other = TestText(50, 3);
  Store(poet, other);
  EXPECT_EQ(Match(other + text).segment, 0u);
  EXPECT_EQ(Match(other + text, clerk).position, 0);
}

TEST_F(SegmentTreeTunedTest, APromptBeginsWithItsState) {
  const uint64_t poet = Adopt(1);
  const Text prompt = TestText(100);
  ContextMatch match = Match(prompt, poet);
  EXPECT_EQ(match.segment, poet);
  EXPECT_EQ(match.position, 0);
  EXPECT_THAT(tree_.Chain(poet), ElementsAre(poet));
  EXPECT_EQ(Choose(match).segment, poet) << "whatever it takes to load";
  EXPECT_EQ(Choose(match, /*only_here=*/true).segment, 0u) << "it is on the disk";
  const auto plan = tree_.Bring(poet, shelf_, 0, &drops_);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->moves.size(), 1u) << "it has no rows";
  EXPECT_EQ(plan->moves[0].contents, kSnapshot);
  EXPECT_EQ(plan->moves[0].source, disk_);
  tree_.Arrived(poet, shelf_, kSnapshot, 0, &drops_);
  EXPECT_EQ(Choose(match, /*only_here=*/true).segment, poet);

  // With rows after it, the rest of them is all that a sequence takes.
  const uint64_t text = Store(poet, TestText(60));
  match = Match(prompt, poet);
  EXPECT_EQ(match.segment, text);
  EXPECT_THAT(tree_.Chain(text), ElementsAre(text));
  EXPECT_EQ(Choose(match, /*only_here=*/true).position, 60);
  EXPECT_EQ(tree_.Find(text)->begin, 0);
  EXPECT_EQ(tree_.Find(text)->parent, poet);
  tree_.Lost(text, shelf_, kSnapshot, &drops_);
  EXPECT_EQ(Choose(Match(prompt, poet), /*only_here=*/true).segment, poet);
}

TEST_F(SegmentTreeTunedTest, TheLastCopyStaysWhileItIsNeeded) {
  const uint64_t poet = Adopt(1);
  const uint64_t text = Store(poet, TestText(60));
  ASSERT_TRUE(tree_.Bring(poet, shelf_, 0, &drops_).ok());
  tree_.Arrived(poet, shelf_, kSnapshot, 0, &drops_);
  Release({poet, text});
  // Another copy is there, so that on the shelf may go, but never the last one.
  EXPECT_TRUE(tree_.MakeRoom(shelf_, 1'000'000 - 1700, 100, &drops_).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(tree_.MakeRoom(disk_, 1'000'000, 100, &drops_)));
  ASSERT_TRUE(tree_.Find(poet).has_value());
  EXPECT_EQ(tree_.Find(poet)->copies.size(), 1u);
  EXPECT_EQ(tree_.Find(poet)->copies[0].tier, disk_);

  // It goes with the last text that began with it.
  drops_.clear();
  EXPECT_TRUE(tree_.MakeRoom(shelf_, 1'000'000, 100, &drops_).ok());
  EXPECT_FALSE(tree_.Find(text).has_value());
  EXPECT_FALSE(tree_.Find(poet).has_value());
  EXPECT_EQ(tree_.FindTuned(Key(1)), 0u);
  ASSERT_EQ(drops_.size(), 2u);
  EXPECT_EQ(drops_[1].segment, poet);
  EXPECT_EQ(drops_[1].contents, kRowsAndSnapshot) << "with the empty rows that shelves have";
  EXPECT_EQ(tree_.TierBytes(disk_), 0);
  EXPECT_EQ(tree_.NamespaceBytes(""), 0);
  EXPECT_EQ(tree_.segments(), 0u);
}

TEST_F(SegmentTreeTunedTest, ContextsOfIt) {
  const uint64_t poet = Adopt(1);
  const auto made = tree_.Create("", "poet", poet, {}, 0);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->tokens, 0);
  EXPECT_TRUE(made->usable);
  Release({poet});
  EXPECT_TRUE(tree_.Find(poet).has_value());
  TextKept kept = tree_.Kept(poet);
  EXPECT_EQ(kept.row_tokens, 0);
  EXPECT_THAT(kept.snapshots, ElementsAre(0));
  EXPECT_TRUE(kept.on_disk);
  EXPECT_FALSE(kept.in_memory);

  // The text goes on under another name, and the state stays behind it.
  tree_.Hold(poet, 0);
  const uint64_t poem = Store(poet, TestText(30));
  ASSERT_TRUE(tree_.Create("", "poem", poem, {}, 0).ok());
  Release({poet, poem});
  kept = tree_.Kept(poem);
  EXPECT_EQ(kept.row_tokens, 30);
  EXPECT_THAT(kept.snapshots, ElementsAre(0, 30));
  EXPECT_TRUE(kept.in_memory) << "where the text is, whatever else has the state";
  EXPECT_FALSE(kept.on_disk);
  ASSERT_TRUE(tree_.Delete("", "poet", 0, &drops_).ok());
  EXPECT_TRUE(tree_.Find(poet).has_value()) << "the poem begins with it";
  ASSERT_TRUE(tree_.Delete("", "poem", 0, &drops_).ok());
  EXPECT_FALSE(tree_.Find(poem).has_value());
  EXPECT_FALSE(tree_.Find(poet).has_value());
}

// A key that was made without the state would be that of the same ids alone.
TEST_F(SegmentTreeTunedTest, ALostStateStillSaysWhatItsTextsAre) {
  const uint64_t poet = Adopt(1);
  const Text text = TestText(60);
  const uint64_t first = Store(poet, text);
  const SegmentKey key = tree_.Key(first);
  tree_.Lost(poet, disk_, kSnapshot, &drops_);
  ASSERT_TRUE(tree_.Find(poet).has_value());
  EXPECT_EQ(Match(text + text, poet).segment, first) << "its own snapshot is there";
  // What is stored anew of it, or behind it, still has it as its parent.
  tree_.Lost(first, shelf_, kRowsAndSnapshot, &drops_);
  SegmentDrops drops;
  const auto saving = tree_.Store(first, shelf_, 0, &drops);
  ASSERT_TRUE(saving.ok()) << saving.status();
  EXPECT_EQ(tree_.Find(first)->parent, poet);
  tree_.Arrived(first, shelf_, saving->contents, 0, &drops);
  EXPECT_EQ(tree_.Key(first), key);
  EXPECT_EQ(Match(text).segment, 0u);

  const ContextMatch nothing = Match(TestText(20, 9), poet);
  EXPECT_EQ(nothing.segment, 0u);
  EXPECT_EQ(Choose(nothing).segment, 0u) << "which the caller must not take for: compute all";
  Release({first, poet});
}

TEST_F(SegmentTreeTunedTest, EachIsThereOnceInItsNamespace) {
  const uint64_t poet = Adopt(1, "alice");
  EXPECT_EQ(tree_.FindTuned(Key(1)), poet);
  EXPECT_TRUE(
      absl::IsAlreadyExists(tree_.AdoptTuned(TestIdentity(), "alice", Key(1), kTestSnapshotBytes, disk_, 0).status()));
  tree_.SetQuota("alice", {.bytes_max = kTestSnapshotBytes});
  EXPECT_TRUE(absl::IsResourceExhausted(
      tree_.AdoptTuned(TestIdentity(), "alice", Key(2), kTestSnapshotBytes, disk_, 0).status()));
  EXPECT_EQ(tree_.Adopt(TestIdentity(), "bob", poet, TestText(10), TestBytes(), disk_, kRows, 1, 0).status().code(),
            absl::StatusCode::kNotFound)
      << "not Bob's";
  tree_.Release(poet, &drops_);
  EXPECT_EQ(tree_.segments(), 0u) << "nobody needs it";
}

TEST_F(SegmentTreeTunedTest, WhatIsImportedComesToItsTier) {
  const auto import = [&](uint8_t byte) {
    return tree_.ImportTuned("", Key(byte), kTestSnapshotBytes, disk_, 0, &drops_);
  };
  const auto poet = import(1);
  ASSERT_TRUE(poet.ok()) << poet.status();
  EXPECT_EQ(tree_.FindTuned(Key(1)), *poet);
  EXPECT_EQ(Match(TestText(10), *poet).segment, 0u) << "it is on its way";
  EXPECT_TRUE(absl::IsUnavailable(import(1).status()));
  tree_.Arrived(*poet, disk_, kSnapshot, 0, &drops_);
  EXPECT_EQ(Match(TestText(10), *poet).segment, *poet);
  EXPECT_TRUE(absl::IsAlreadyExists(import(1).status()));
  // What is lost, while a text needs it, can come again.
  const uint64_t text = Store(*poet, TestText(60));
  tree_.Lost(*poet, disk_, kSnapshot, &drops_);
  Release({*poet});
  EXPECT_EQ(import(1).value_or(0), *poet);
  tree_.Arrived(*poet, disk_, kSnapshot, 0, &drops_);
  EXPECT_EQ(tree_.TierBytes(disk_), kTestSnapshotBytes);
  Release({text, *poet});
  EXPECT_TRUE(tree_.Find(*poet).has_value()) << "the text begins with it";
  // What does not come, or has no room, leaves nothing.
  const auto clerk = import(2);
  ASSERT_TRUE(clerk.ok()) << clerk.status();
  tree_.Lost(*clerk, disk_, kSnapshot, &drops_);
  Release({*clerk});
  EXPECT_EQ(tree_.FindTuned(Key(2)), 0u);
  tree_.SetQuota("", {.bytes_max = kTestSnapshotBytes});
  EXPECT_TRUE(absl::IsResourceExhausted(import(3).status()));
  EXPECT_EQ(tree_.FindTuned(Key(3)), 0u);
}

// What a store has at the start: a state, and a text that begins with it.
TEST_F(SegmentTreeTunedTest, WhatWasFoundIsAdoptedAsItWasCut) {
  const auto poet = tree_.AdoptTuned(TestIdentity(), "", Key(1), kTestSnapshotBytes, disk_, 0);
  ASSERT_TRUE(poet.ok());
  const auto poem = tree_.Adopt(TestIdentity(), "", *poet, TestText(40), TestBytes(), disk_, kRowsAndSnapshot, 1, 0);
  ASSERT_TRUE(poem.ok()) << poem.status();
  const auto lonely = tree_.AdoptTuned(TestIdentity(), "", Key(2), kTestSnapshotBytes, disk_, 0);
  ASSERT_TRUE(lonely.ok());
  tree_.Tidy(&drops_);
  EXPECT_TRUE(tree_.Find(*poet).has_value());
  EXPECT_FALSE(tree_.Find(*lonely).has_value()) << "no name and no text leads to it";
  tree_.Hold(*poet, 0);
  EXPECT_EQ(Match(TestText(60), *poet).position, 40);
  EXPECT_EQ(Match(TestText(60)).segment, 0u);
  Release({*poet});
}

}  // namespace
}  // namespace goldfinch
