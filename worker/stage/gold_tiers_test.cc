// Which tier a sequence gets, and what becomes of it when memory is short.
#include "worker/stage/gold_tiers.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "worker/model/fake_device.h"
#include "worker/model/model.h"
#include "worker/model/random_model.h"
#include "worker/stage/gold_tiers_test_util.h"
#include "worker/stage/stage.h"

namespace goldfinch {
namespace {

TEST(GoldTiersTest, Names) {
  EXPECT_EQ(ParseGoldTier("auto"), kFull);
  EXPECT_EQ(ParseGoldTier("full"), kFull);
  EXPECT_EQ(ParseGoldTier("shared"), kShared);
  EXPECT_EQ(ParseGoldTier("compressed"), kCompressed);
  EXPECT_EQ(ParseGoldTier("T3"), std::nullopt);
}

TEST(GoldTiersTest, NothingIsKeptWithoutMemory) {
  for (const GoldTier most : {kCompressed, kFull}) {
    Kept kept({.most = most, .blocks = most == kCompressed ? 100 : 0});
    EXPECT_EQ(kept.tier(kept.Open(100)), kCompressed);
    EXPECT_EQ(kept.tiers().reserved_bytes(), 0);
    EXPECT_EQ(kept.tiers().kept_bytes(), 0);
  }
}

TEST(GoldTiersTest, StagesWithoutGoldLayersReserveNothing) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/1);
  const auto model = LoadModel(*backend, OpenTensors(RandomModel({.layers = {"finch_c2", "llama"}})), {});
  const auto stage = Stage::Create(*backend, *model, {});
  const int64_t before = (*stage)->ReservedBytes();
  EXPECT_TRUE((*stage)->ReserveKept(int64_t{1} << 30).ok());
  EXPECT_EQ((*stage)->ReservedBytes(), before);
  EXPECT_EQ((*stage)->gold_tiers(), nullptr);
}

// No more than every position in every layer; counted as reserved.
TEST(GoldTiersTest, ReservesWhatSequencesCanUse) {
  for (const GoldTier most : {kShared, kFull}) {
    Kept none({.most = most}), all({.most = most, .blocks = 1'000'000}), few({.most = most, .blocks = 7});
    const int64_t positions = 4096 + 64 * kSlots;
    EXPECT_EQ(all.tiers().reserved_bytes(), all.tiers().TierBytes(most, positions));
    EXPECT_EQ(few.tiers().reserved_bytes(), 7 * few.BlockBytes());
    EXPECT_EQ(few.stage().ReservedBytes() - none.stage().ReservedBytes(), 7 * few.BlockBytes());
  }
}

TEST(GoldTiersTest, MemoryThatCannotBeHadIsDoneWithout) {
  FakeDevice device(MakeCpuBackend(/*threads=*/1));
  const auto model = LoadModel(device, OpenTensors(RandomModel({.layers = {"finch_c2", "gold"}})), {});
  const auto stage = Stage::Create(device, *model, {});
  device.set_allocations_left(0);
  const absl::Status status = (*stage)->ReserveKept(1 << 20, /*borrow=*/false);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ((*stage)->gold_tiers()->reserved_bytes(), 0);
}

TEST(GoldTiersTest, BytesOfATier) {
  Kept kept({.blocks = 4});
  EXPECT_EQ(kept.tiers().TierBytes(kCompressed, 1000), 0);
  EXPECT_EQ(kept.tiers().TierBytes(kShared, 64), kept.BlockBytes());
  EXPECT_EQ(kept.tiers().TierBytes(kShared, 65), 2 * kept.BlockBytes());
  EXPECT_EQ(kept.tiers().TierBytes(kFull, 65), 4 * kept.BlockBytes()) << "of two layers";
  EXPECT_EQ(kept.BlockBytes(), 64 * 2 * 128 * 4) << "keys and values of one layer: more than shared rows take";
  // Where shared rows take more, small pages of keys and values leave less unused.
  Kept narrow({.width = 64, .blocks = 4});
  EXPECT_GT(narrow.BlockBytes(), 64 * 2 * 64 * 4);
  EXPECT_EQ(narrow.BlockBytes() % (16 * 64 * 4), 0);
}

// ---- The rule

TEST(GoldTiersTest, TheHighestThatFits) {
  Kept kept({.blocks = 7});
  const int first = kept.Open(64);
  EXPECT_EQ(kept.tier(first), kFull);
  EXPECT_EQ(kept.blocks(), 2);
  const int second = kept.Open(190);  // the full tier needs six, the shared tier three; five are free
  EXPECT_EQ(kept.tier(second), kShared);
  EXPECT_EQ(kept.blocks(), 5);
  const int third = kept.Open(100);
  EXPECT_EQ(kept.tier(third), kShared);
  EXPECT_EQ(kept.blocks(), 7);
  EXPECT_EQ(kept.tiers().drops(), 0);
}

TEST(GoldTiersTest, RowsAreDerivedWhileAPromptIsRead) {
  Kept kept({.blocks = 20});
  const int slot = kept.Open();
  kept.Read(slot, 640);
  EXPECT_EQ(kept.tier(slot), kFull);
  EXPECT_EQ(kept.tiers().kept(slot), 640);
  kept.Read(slot, 10);  // no longer fits the full tier: its rows are derived for the other in slices
  EXPECT_EQ(kept.tier(slot), kShared);
  EXPECT_EQ(kept.tiers().kept(slot), 10 * GoldTiers::kDerivedRows);
  kept.Read(slot, 20);
  EXPECT_EQ(kept.tiers().kept(slot), 30 * GoldTiers::kDerivedRows);
  kept.Run(slot, 1);
  EXPECT_EQ(kept.tiers().kept(slot), 671) << "and all that are left when they are attended to";
}

// The shared tier for one goes before the full tier for another, but not before the shared tier.
TEST(GoldTiersTest, NewSequencesGetTheSharedTierAtTheCostOfTheFullOne) {
  Kept kept({.blocks = 4});
  const int first = kept.Open(128);
  EXPECT_EQ(kept.tier(first), kFull);
  const int second = kept.Open(100);
  EXPECT_EQ(kept.tier(first), kShared);
  EXPECT_EQ(kept.tier(second), kShared);
  EXPECT_EQ(kept.tiers().drops(), 1);
  const int third = kept.Open(1);
  EXPECT_EQ(kept.tier(third), kCompressed);
  EXPECT_EQ(kept.tiers().drops(), 1);
  EXPECT_EQ(kept.blocks(), 4);
}

// Nobody is dropped for a sequence that does not fit even so.
TEST(GoldTiersTest, NothingIsDroppedInVain) {
  Kept kept({.blocks = 6});
  const int first = kept.Open(192);
  const int second = kept.Open(256);
  EXPECT_EQ(kept.tier(first), kFull);
  EXPECT_EQ(kept.tier(second), kCompressed);
  EXPECT_EQ(kept.tiers().drops(), 0);
}

TEST(GoldTiersTest, GrowthTakesABlockAsNeeded) {
  Kept kept({.most = kShared, .blocks = 9});
  const int slot = kept.Open(63);
  for (int64_t tokens = 64; tokens <= 200; ++tokens) {
    kept.Run(slot, 1);
    ASSERT_EQ(kept.blocks(), (tokens + 63) / 64);
  }
}

// The largest at the full tier goes down first, then the largest of the others; it may be the one that grows.
TEST(GoldTiersTest, GrowthTakesFromTheLargest) {
  Kept kept({.blocks = 10});
  const int large = kept.Open(192), small = kept.Open(128);
  EXPECT_EQ(kept.tier(large), kFull);
  EXPECT_EQ(kept.tier(small), kFull);
  EXPECT_EQ(kept.blocks(), 10);
  kept.Run(small, 1);
  EXPECT_EQ(kept.tier(large), kShared);
  EXPECT_EQ(kept.tier(small), kFull);
  EXPECT_EQ(kept.blocks(), 3 + 6);
  kept.Run(large, 1);
  EXPECT_EQ(kept.blocks(), 4 + 6);
  kept.Run(large, 64);  // its own growth is at the cost of the one at the full tier
  EXPECT_EQ(kept.tier(large), kShared);
  EXPECT_EQ(kept.tier(small), kShared);
  EXPECT_EQ(kept.blocks(), 5 + 3);
  kept.Run(small, 64 * 2);
  EXPECT_EQ(kept.blocks(), 5 + 5);
  kept.Run(small, 64);  // six: none is free
  EXPECT_EQ(kept.tiers().drops(), 3);
  EXPECT_NE(kept.tier(large), kept.tier(small)) << "one of five went";
  kept.Run(kept.tier(small) == kShared ? small : large, 600);
  EXPECT_EQ(kept.tier(small), kCompressed);
  EXPECT_EQ(kept.tier(large), kCompressed);
  EXPECT_EQ(kept.blocks(), 0);
}

// With one layer the shared tier is no smaller than the full tier.
TEST(GoldTiersTest, OneLayerGoesToTheCompressedTierAtOnce) {
  Kept kept({.layers = {"finch_c2", "gold"}, .blocks = 3});
  const int slot = kept.Open(192);
  EXPECT_EQ(kept.tier(slot), kFull);
  kept.Run(slot, 1);
  EXPECT_EQ(kept.tier(slot), kCompressed);
  EXPECT_EQ(kept.blocks(), 0);
}

// Up again only when twice the need is free, so that a sequence does not go up and down with every page of another.
TEST(GoldTiersTest, PromotionWaitsForPlenty) {
  Kept kept({.most = kShared, .blocks = 4});
  const int large = kept.Open(128), other = kept.Open(128);
  const int late = kept.Open(60);
  EXPECT_EQ(kept.tier(late), kCompressed);
  kept.stage().Close(other);  // two are free: twice the one
  kept.Run(late, 1);
  EXPECT_EQ(kept.tier(late), kShared);
  kept.Run(late, 10);
  EXPECT_EQ(kept.blocks(), 4);
  const int last = kept.Open(100);
  EXPECT_EQ(kept.tier(last), kCompressed);
  kept.stage().Close(late);
  kept.Run(last, 1);
  EXPECT_EQ(kept.tier(last), kCompressed) << "two are free and two are needed";
  kept.stage().Close(large);
  kept.Run(last, 1);
  EXPECT_EQ(kept.tier(last), kShared);
}

TEST(GoldTiersTest, PromotionToTheFullTierWaitsForPlenty) {
  Kept kept({.blocks = 8});
  const int first = kept.Open(128), second = kept.Open(64 * 3);
  EXPECT_EQ(kept.tier(first), kFull);
  EXPECT_EQ(kept.tier(second), kShared);
  kept.stage().Close(first);  // five are free; twice six are too many
  kept.Run(second, 0 + 1);
  EXPECT_EQ(kept.tier(second), kShared);
  Kept more({.blocks = 20});
  const int third = more.Open(64 * 9), fourth = more.Open(64 * 2);
  EXPECT_EQ(more.tier(third), kFull);
  EXPECT_EQ(more.tier(fourth), kShared);
  more.stage().Close(third);
  more.Run(fourth, 1);  // three pages: twelve are twice the need, 18 are free
  EXPECT_EQ(more.tier(fourth), kFull);
  EXPECT_EQ(more.blocks(), 6);
}

TEST(GoldTiersTest, ForksShareFullPages) {
  Kept kept({.blocks = 20});
  const int slot = kept.Open(130);
  EXPECT_EQ(kept.blocks(), 6);
  const int copy = *kept.stage().Fork(slot);
  EXPECT_EQ(kept.blocks(), 6);
  EXPECT_EQ(kept.tier(copy), kFull);
  kept.Run(copy, 1);
  EXPECT_EQ(kept.blocks(), 8) << "a last page of its own, of two layers";
  kept.stage().Close(slot);
  EXPECT_EQ(kept.blocks(), 6);
  kept.stage().Close(copy);
  EXPECT_EQ(kept.blocks(), 0);
  // A fork shares nothing of less than a page.
  const int short_slot = kept.Open(60), short_copy = *kept.stage().Fork(short_slot);
  EXPECT_EQ(kept.tier(short_copy), kCompressed);
  kept.Run(short_copy, 1);
  EXPECT_EQ(kept.tier(short_copy), kFull);
}

// A sequence that is dropped may free nothing, for all of it is shared.
TEST(GoldTiersTest, DroppingWhatIsShared) {
  Kept kept({.blocks = 8});
  const int slot = kept.Open(256);
  std::vector<int> all = {slot};
  for (int i = 0; i < 3; ++i) all.push_back(*kept.stage().Fork(slot));
  for (int64_t tokens = 0; tokens < 300; tokens += 20) {
    for (const int each : all) kept.Run(each, 20);
  }
  EXPECT_LE(kept.blocks(), 8);
  for (const int each : all) kept.stage().Close(each);
  EXPECT_EQ(kept.blocks(), 0);
}

// ---- Sequences in part

TEST(GoldTiersTest, TheFirstPositionsHaveTheSharedTierAsFarAsMemoryGoes) {
  Kept kept({.blocks = 3, .fake = false});
  const int slot = kept.Open(300);
  EXPECT_EQ(kept.tier(slot), kShared);
  EXPECT_EQ(kept.tiers().kept(slot), 3 * 64);
  kept.Run(slot, 5);
  EXPECT_EQ(kept.tiers().kept(slot), 3 * 64);
  const int other = kept.Open(100);
  EXPECT_EQ(kept.tier(other), kCompressed) << "two of three blocks are not its part";
  kept.stage().Close(slot);
  kept.Run(other, 1);
  EXPECT_EQ(kept.tiers().kept(other), 101);
}

// Who needs little gets it from one that holds much, which loses only so much.
TEST(GoldTiersTest, TheLargestGivesSomeToTheSmall) {
  Kept kept({.blocks = 9, .fake = false});
  const int large = kept.Open(600);
  EXPECT_EQ(kept.tiers().kept(large), 9 * 64);
  const int small = kept.Open(100);
  EXPECT_EQ(kept.tiers().kept(small), 100);
  EXPECT_EQ(kept.tiers().kept(large), 7 * 64);
  EXPECT_EQ(kept.tiers().drops(), 0);
  kept.Run(large, 1);
  EXPECT_EQ(kept.tiers().kept(large), 7 * 64);
  kept.stage().Close(small);
  kept.Run(large, 1);
  EXPECT_EQ(kept.tiers().kept(large), 9 * 64) << "what is free again is used at once";
}

// ---- Memory of pages that nobody uses

TEST(GoldTiersTest, KeptRowsBorrowUnusedPagesAndGiveThemBack) {
  Kept kept({.cache_tokens = CacheTokensOf(3), .borrow = true});
  EXPECT_EQ(kept.tiers().reserved_bytes(), 0) << "nothing is for kept rows alone";
  const int slot = kept.Open(30);  // its page is in the first block
  EXPECT_EQ(kept.tier(slot), kFull);
  EXPECT_EQ(kept.blocks(), 2);
  const int second = kept.Open();
  kept.Read(second, 31 * 64);
  EXPECT_EQ(kept.tiers().drops(), 0) << "the pages of the first block come first";
  kept.Read(second, 1);
  EXPECT_EQ(kept.tier(slot), kShared);
  EXPECT_EQ(kept.blocks(), 1);
  const int third = kept.Open(), fourth = kept.Open();
  kept.Read(third, 31 * 64);
  EXPECT_EQ(kept.tier(slot), kShared);
  kept.Read(fourth, 1);
  EXPECT_EQ(kept.tier(slot), kCompressed);
  EXPECT_EQ(kept.blocks(), 0);
  EXPECT_EQ(kept.tiers().drops(), 2);
  kept.Read(fourth, 31 * 64);  // as many pages as without kept rows
  for (const int other : {second, third, fourth}) kept.stage().Close(other);
  kept.Run(slot, 1);
  EXPECT_EQ(kept.tier(slot), kShared) << "there is plenty again";
}

TEST(GoldTiersTest, BorrowedBlocksLieBesideThoseForKeptRowsAlone) {
  Kept kept({.blocks = 5, .cache_tokens = CacheTokensOf(2), .borrow = true});
  EXPECT_EQ(kept.tiers().reserved_bytes(), 5 * kept.BlockBytes());
  EXPECT_EQ(kept.tier(kept.Open(192)), kFull);
  EXPECT_EQ(kept.blocks(), 6) << "of seven, but one has pages";
}

TEST(GoldTiersTest, PagesTakeBackNoMoreThanTheyNeed) {
  Kept kept({.fake = false, .cache_tokens = CacheTokensOf(4), .borrow = true});
  const int slot = kept.Open(300);
  EXPECT_EQ(kept.tiers().kept(slot), 3 * 64);
  const int other = kept.Open();
  kept.Read(other, 27 * 64);  // the first block
  EXPECT_EQ(kept.tiers().kept(slot), 3 * 64);
  kept.Read(other, 1);
  EXPECT_EQ(kept.tiers().kept(slot), 2 * 64);
  kept.stage().Close(other);
}

// A fork needs a page of its own where the last one is not full.
TEST(GoldTiersTest, ForksTakePagesBack) {
  Kept kept({.cache_tokens = CacheTokensOf(2), .borrow = true});
  const int slot = kept.Open(10), other = kept.Open();
  EXPECT_EQ(kept.tier(slot), kShared);
  kept.Read(other, 31 * 64);
  const int full = *kept.stage().Fork(other);
  EXPECT_EQ(kept.tier(slot), kShared) << "all of its pages are shared";
  const int copy = *kept.stage().Fork(slot);
  EXPECT_EQ(kept.tier(slot), kCompressed);
  for (const int each : {slot, other, full, copy}) kept.stage().Close(each);
}

TEST(GoldTiersTest, WithoutMoreMemoryKeptRowsBorrowAlone) {
  FakeDevice device(MakeCpuBackend(/*threads=*/1));
  const auto model = LoadModel(device, OpenTensors(RandomModel({.layers = {"finch_c2", "gold"}})), {});
  const auto stage = Stage::Create(device, *model, {});
  const int64_t before = device.allocated_bytes();
  device.set_bytes_max(before + (256 << 10));
  const absl::Status status = (*stage)->ReserveKept(int64_t{1} << 24);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_GT((*stage)->gold_tiers()->reserved_bytes(), 0);
  EXPECT_LE((*stage)->gold_tiers()->reserved_bytes(), 256 << 10);
  EXPECT_EQ(device.allocated_bytes() - before, (*stage)->gold_tiers()->reserved_bytes());
}

}  // namespace
}  // namespace goldfinch
