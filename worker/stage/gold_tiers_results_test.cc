// Results do not depend on tiers, nor on whose memory kept rows have borrowed.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/tensor.h"
#include "worker/stage/gold_tiers.h"
#include "worker/stage/gold_tiers_test_util.h"

namespace goldfinch {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr int kSteps = 100;  // each takes six times as long
#else
constexpr int kSteps = 250;
#endif

// Whatever clients do, in a pool so small that tiers change all the time, beside a stage that keeps nothing.
void Walk(const Kept::Setup& setup, double tolerance, bool expect_changes) {
  SCOPED_TRACE(testing::Message() << setup.blocks << " blocks, width " << setup.width << ", " << setup.layers.size()
                                  << " layers, most " << static_cast<int>(setup.most)
                                  << (setup.borrow ? ", borrowing" : ""));
  Kept kept(setup);
  Kept::Setup plain_setup = setup;
  plain_setup.most = kCompressed;
  Kept plain(plain_setup);
  std::minstd_rand random(static_cast<unsigned>(20240717 + setup.blocks));
  const auto below = [&random](int64_t limit) { return static_cast<int64_t>(random() % limit); };
  std::vector<bool> open(kSlots);
  int64_t mixed = 0, in_part = 0;
  for (int step = 0; step < kSteps; ++step) {
    for (int slot = 0; slot < kSlots; ++slot) {
      if (!open[slot] || (below(30) != 0 && kept.stage().position(slot) < 500)) continue;
      kept.stage().Close(slot);
      plain.stage().Close(slot);
      open[slot] = false;
    }
    if (below(3) == 0 && std::count(open.begin(), open.end(), false) > 0) {
      const auto parent = static_cast<int>(below(kSlots));
      const bool fork = open[parent] && below(2) == 0;
      const int slot = fork ? *kept.stage().Fork(parent) : kept.Open();
      ASSERT_EQ(slot, fork ? *plain.stage().Fork(parent) : plain.Open());
      open[slot] = true;
    }
    std::vector<Kept::Part> parts;
    bool seen[3] = {};
    for (int64_t i = 0, first = below(kSlots); i < kSlots; ++i) {
      const auto slot = static_cast<int>((first + i) % kSlots);
      if (!open[slot] || below(3) == 0) continue;
      const int64_t tokens = 1 + (below(3) == 0 ? below(90) : 0);
      parts.push_back({slot, tokens, below(5) == 0 ? below(std::min<int64_t>(tokens, 10) + 1) : 1});
    }
    if (parts.empty()) continue;
    const std::vector<float> actual = kept.Forward(parts), expected = plain.Forward(parts);
    ASSERT_EQ(actual.size(), expected.size());
    if (tolerance == 0) {
      ASSERT_EQ(actual, expected) << "step " << step;
    } else {
      double error = 0, size = 0;
      for (size_t i = 0; i < actual.size(); ++i) {
        error += (actual[i] - expected[i]) * (actual[i] - expected[i]);
        size += expected[i] * expected[i];
      }
      ASSERT_LE(std::sqrt(error), tolerance * std::sqrt(size)) << "step " << step;
    }
    for (const Kept::Part& part : parts) {
      const GoldTier tier = kept.tier(part.slot);
      seen[static_cast<int>(tier)] = true;
      if (tier == kShared && kept.tiers().kept(part.slot) < kept.stage().position(part.slot)) ++in_part;
    }
    mixed += std::count(std::begin(seen), std::end(seen), true) > 1 ? 1 : 0;
    if (!setup.borrow) {
      ASSERT_LE(kept.blocks(), setup.blocks);
    }
  }
  for (int slot = 0; slot < kSlots; ++slot) {
    if (open[slot]) kept.stage().Close(slot);
  }
  EXPECT_EQ(kept.blocks(), 0);
  if (!expect_changes) return;
  EXPECT_GE(setup.fake ? kept.tiers().drops() : in_part, kSteps / 25) << "sequences that lost a tier, or a part of it";
  EXPECT_GE(mixed, kSteps / 12) << "steps with sequences of different tiers";
}

TEST(GoldTiersResultsTest, ResultsDoNotDependOnTiers) {
  const std::vector<std::string> three = {"finch_c2", "gold", "gold", "gold"};
  for (const int64_t blocks : {5, 12}) {
    Walk({.layers = three, .width = 128, .blocks = blocks, .fake = false}, 0, /*expect_changes=*/true);
    Walk({.layers = three, .width = 64, .blocks = blocks, .fake = false}, 0, /*expect_changes=*/true);
  }
  Walk({.most = kShared, .blocks = 5, .fake = false}, 0, /*expect_changes=*/false);
  Walk({.layers = {"finch", "gold"}, .blocks = 4, .fake = false}, 0, /*expect_changes=*/false);
  Walk({.blocks = 10'000, .fake = false}, 0, /*expect_changes=*/false);
  // Pages of all sequences, kept rows in what they leave.
  Walk({.layers = three, .blocks = 3, .cache_tokens = 4000, .borrow = true}, 0, /*expect_changes=*/true);
  Walk({.blocks = 0, .fake = false, .cache_tokens = CacheTokensOf(4), .borrow = true}, 0, /*expect_changes=*/true);
}

// A prompt that has lost its tier is forked, gives blocks away and is paused while it has a part of its rows.
TEST(GoldTiersResultsTest, ResultsDoNotDependOnRowsThatLagBehind) {
  for (const bool fake : {false, true}) {
    SCOPED_TRACE(fake);
    Kept kept({.blocks = 20, .fake = fake}), plain({.most = kCompressed, .fake = fake});
    const auto read = [&](int slot, int64_t tokens) {
      kept.Read(slot, tokens);
      plain.Read(slot, tokens);
    };
    const auto run = [&](int slot) {
      EXPECT_EQ(kept.Forward({{slot, 1, 1}}), plain.Forward({{slot, 1, 1}})) << "slot " << slot;
    };
    const int slot = kept.Open();
    ASSERT_EQ(plain.Open(), slot);
    read(slot, 640);
    read(slot, 30);  // it goes down to the shared tier
    EXPECT_EQ(kept.tier(slot), kShared);
    EXPECT_EQ(kept.tiers().kept(slot), 30 * GoldTiers::kDerivedRows);
    const int copy = *kept.stage().Fork(slot), late_copy = *kept.stage().Fork(slot);
    ASSERT_EQ(*plain.stage().Fork(slot), copy);
    ASSERT_EQ(*plain.stage().Fork(slot), late_copy);
    EXPECT_EQ(kept.tiers().kept(copy), 64) << "the full pages of what is derived";
    read(copy, 3);
    const int small = kept.Open();
    ASSERT_EQ(plain.Open(), small);
    read(small, 90);  // takes blocks of others where they can give some
    read(slot, 2);
    EXPECT_LT(kept.tiers().kept(slot), 200);
    for (const int each : {small, copy, slot, late_copy, copy, slot}) run(each);
  }
}

TEST(GoldTiersResultsTest, ResultsOnADeviceDoNotDependOnTiers) {
  Walk({.blocks = 7}, 0, /*expect_changes=*/true);
  Walk({.blocks = 7, .activations = DType::kBf16}, 0.02, /*expect_changes=*/true);
  Walk({.blocks = 0, .cache_tokens = CacheTokensOf(4), .borrow = true}, 0, /*expect_changes=*/true);
}

}  // namespace
}  // namespace goldfinch
