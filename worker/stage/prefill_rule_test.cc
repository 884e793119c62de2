#include "worker/stage/prefill_rule.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <set>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

// What the last of `layers` GOLD layers must be given, followed back through the token shifts, two a layer: row p of a
// shift's output needs rows p and p - 1 of its input, unless the shift state holds p - 1.
std::set<int64_t> RowsNeeded(std::set<int64_t> wanted, int64_t gold_position, int layers) {
  for (int shift = 0; shift < 2 * layers; ++shift) {
    std::set<int64_t> needed;
    for (int64_t position : wanted) {
      needed.insert(position);
      if (position > gold_position) needed.insert(position - 1);
    }
    wanted = needed;
  }
  return wanted;
}

std::set<int64_t> Range(int64_t begin, int64_t end) {
  std::set<int64_t> range;
  for (int64_t position = begin; position < end; ++position) range.insert(range.end(), position);
  return range;
}

TEST(PrefillRuleTest, NoLogitsNoRows) {
  EXPECT_EQ(ApplyPrefillRule(0, 100, 0, 4).count(), 0);
  EXPECT_EQ(ApplyPrefillRule(99, 100, 0, 4).count(), 0);
}

TEST(PrefillRuleTest, ExactlyTheRowsThatTheLogitsDependOn) {
  for (int layers = 1; layers <= 5; ++layers) {
    for (int64_t end = 1; end <= 26; ++end) {
      for (int64_t wanted = 1; wanted <= end; ++wanted) {
        for (int64_t gold_position = 0; gold_position <= end - wanted; ++gold_position) {
          const GoldInputRows rows = ApplyPrefillRule(gold_position, end, wanted, layers);
          ASSERT_EQ(Range(rows.begin, rows.end), RowsNeeded(Range(end - wanted, end), gold_position, layers))
              << layers << " layers, end " << end << ", wanted " << wanted << ", gold position " << gold_position;
          if (rows.warm_up) {
            // Every shift spends a row, and the rest are the rows that are wanted.
            ASSERT_EQ(rows.count() - int64_t{2} * layers, wanted);
            ASSERT_GT(rows.begin, gold_position);
          } else {
            ASSERT_EQ(rows.begin, gold_position) << "the states must fit the first row";
          }
        }
      }
    }
  }
}

TEST(PrefillRuleTest, RowsBeforeTheChunkAreAmongTheNewest) {
  std::minstd_rand random(1);
  const auto below = [&random](int64_t limit) { return static_cast<int64_t>(random() % limit); };
  for (int round = 0; round < 2000; ++round) {
    const int layers = 1 + static_cast<int>(below(6));
    int64_t position = 0, gold_position = 0;
    for (int chunk = 0; chunk < 12; ++chunk) {
      const int64_t count = 1 + below(below(3) == 0 ? 30 : 3), end = position + count;
      const int64_t wanted = below(2) == 0 ? below(count + 1) : below(2);
      const GoldInputRows rows = ApplyPrefillRule(gold_position, end, wanted, layers);
      if (wanted > 0) {
        ASSERT_GE(rows.begin, std::max<int64_t>(0, position - int64_t{2} * layers));
        ASSERT_LE(rows.count(), wanted + int64_t{2} * layers);
        gold_position = end;
      }
      position = end;
    }
  }
}

}  // namespace
}  // namespace goldfinch
