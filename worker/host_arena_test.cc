#include "worker/host_arena.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;

constexpr int64_t kUnit = HostArena::kUnitBytes;

class HostArenaTest : public testing::Test {
 public:
  // Units from the begin of the memory, and units taken, of each range.
  using Units = std::vector<std::pair<int64_t, int64_t>>;
  Units UnitsOf(const std::vector<HostRange>& ranges) const {
    Units units;
    for (const HostRange& range : ranges) {
      units.emplace_back((range.data - memory.get()) / kUnit, HostArena::Rounded(range.bytes) / kUnit);
    }
    return units;
  }
  // Leaves free ranges of these units, in this order, with one unit in use between them.
  void LeaveFree(const std::vector<int64_t>& units) {
    std::vector<std::vector<HostRange>> released;
    for (const int64_t count : units) {
      released.push_back(arena->Take(count * kUnit));
      arena->Take(kUnit);
    }
    while (arena->free_bytes() > 0) arena->Take(arena->free_bytes());
    for (const auto& ranges : released) arena->Release(ranges);
  }

  static constexpr int64_t kBytes = 100 * kUnit;
  std::shared_ptr<char[]> memory{new char[kBytes]};
  std::shared_ptr<HostArena> arena =
      std::make_shared<HostArena>(std::shared_ptr<void>(memory, memory.get()), kBytes + kUnit / 2);
};

TEST_F(HostArenaTest, TheSmallestRangeThatHasRoomIsUsed) {
  LeaveFree({7, 3, 5, 4});
  EXPECT_EQ(UnitsOf(arena->Take(4 * kUnit - 1)), (Units{{7 + 1 + 3 + 1 + 5 + 1, 4}}));
  EXPECT_EQ(UnitsOf(arena->Take(4 * kUnit)), (Units{{7 + 1 + 3 + 1, 4}}));
  EXPECT_EQ(UnitsOf(arena->Take(1)), (Units{{7 + 1 + 3 + 1 + 4, 1}}));
}

TEST_F(HostArenaTest, WhatNoRangeHasRoomForIsInTheLargestOnes) {
  LeaveFree({1, 7, 2, 5});
  const std::vector<HostRange> ranges = arena->Take(11 * kUnit + 1);
  EXPECT_EQ(UnitsOf(ranges), (Units{{2, 7}, {2 + 7 + 1 + 2 + 1, 5}}));
  EXPECT_EQ(ranges.back().bytes, 4 * kUnit + 1) << "no more than was asked for";
  EXPECT_EQ(arena->free_bytes(), 3 * kUnit);
  EXPECT_THAT(arena->Take(3 * kUnit + 1), ElementsAre()) << "there is not so much";
  EXPECT_EQ(arena->Take(3 * kUnit).size(), 2u);
}

// Nothing is given out twice, and whatever the order in which it is released, it is one range again at the end.
TEST_F(HostArenaTest, RangesNeverMeetAndJoinAgain) {
  std::mt19937 random(7);
  std::vector<std::vector<HostRange>> taken;
  std::vector<int> owner(kBytes / kUnit, -1);  // of each unit
  const auto mark = [&](const std::vector<HostRange>& ranges, int from, int to) {
    for (const auto& [begin, units] : UnitsOf(ranges)) {
      for (int64_t unit = begin; unit < begin + units; ++unit) {
        ASSERT_EQ(owner[unit], from);
        owner[unit] = to;
      }
    }
  };
  for (int i = 0; i < 5000; ++i) {
    if (random() % 2 == 0) {
      std::vector<HostRange> ranges = arena->Take(1 + random() % (9 * kUnit));
      if (ranges.empty()) continue;
      mark(ranges, -1, 1);
      taken.push_back(std::move(ranges));
    } else if (!taken.empty()) {
      std::swap(taken[random() % taken.size()], taken.back());
      mark(taken.back(), 1, -1);
      arena->Release(taken.back());
      taken.pop_back();
    }
    const auto used = std::count(owner.begin(), owner.end(), 1);
    ASSERT_EQ(arena->free_bytes(), kBytes - used * kUnit);
  }
  for (const auto& ranges : taken) arena->Release(ranges);
  EXPECT_EQ(UnitsOf(arena->Take(kBytes)), (Units{{0, kBytes / kUnit}}));
}

}  // namespace
}  // namespace goldfinch
