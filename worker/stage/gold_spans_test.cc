#include "worker/stage/gold_spans.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using Pairs = std::vector<std::pair<int64_t, int64_t>>;

// Slot, first row, rows, first position.
using Spans = std::vector<std::vector<int64_t>>;

Spans At(const GoldSpans& plan, int shift) {
  Spans spans;
  for (const RowSpan& span : plan.at(shift))
    spans.push_back({span.slot, span.row_begin, span.row_count, span.position});
  return spans;
}

Pairs Spent(const GoldSpans& plan, int shift) {
  std::vector<RowCopy> copies = {{7, 7}};
  plan.SpentRows(shift, &copies);
  Pairs pairs;
  for (const RowCopy& copy : copies) pairs.emplace_back(copy.from, copy.to);
  return pairs;
}

Pairs Remaining(const GoldSpans& plan, int shift) {
  std::vector<RowCopy> copies = {{7, 7}};
  plan.RemainingRows(shift, &copies);
  Pairs pairs;
  for (const RowCopy& copy : copies) pairs.emplace_back(copy.from, copy.to);
  return pairs;
}

// Three Finch-side layers and two GOLD layers.
StageExtent Stage(int first, int last) { return {5, 3, first, last}; }

TEST(GoldSpansTest, DecodingSequencesKeepTheirRows) {
  const std::vector<int32_t> pages = {4, 2};
  GoldSpans plan(Stage(0, 5), /*max_sequences=*/3);
  EXPECT_EQ(plan.shifts(), 4);
  plan.Clear();
  plan.Add(2, {70, 71, false}, pages.data());
  plan.Add(1, {}, nullptr);  // its logits are not wanted
  plan.Add(0, {5, 8, false}, nullptr);
  plan.Finish();
  for (const int shift : {0, 1, 4}) {
    EXPECT_EQ(At(plan, shift), (Spans{{2, 0, 1, 70}, {0, 1, 3, 5}}));
    EXPECT_EQ(plan.rows(shift), 4);
  }
  EXPECT_EQ(plan.at(3)[0].pages, pages.data());
  EXPECT_EQ(Spent(plan, 0), Pairs{});
  EXPECT_EQ(Remaining(plan, 0), Pairs{});
}

TEST(GoldSpansTest, NoRowsNoSpans) {
  GoldSpans plan(Stage(0, 5), 3);
  plan.Clear();
  plan.Add(0, {}, nullptr);
  plan.Finish();
  EXPECT_TRUE(plan.empty());
  EXPECT_EQ(plan.rows(4), 0);
}

TEST(GoldSpansTest, EachShiftSpendsARowOfSequencesThatWarmUp) {
  GoldSpans plan(Stage(0, 5), 3);
  plan.Clear();
  plan.Add(1, ApplyPrefillRule(/*gold_position=*/0, /*chunk_end=*/100, /*logit_rows=*/1, 2), nullptr);
  plan.Add(0, {30, 32, false}, nullptr);
  plan.Finish();
  EXPECT_EQ(At(plan, 0), (Spans{{1, 0, 5, 95}, {0, 5, 2, 30}}));
  EXPECT_EQ(At(plan, 1), (Spans{{1, 0, 4, 96}, {0, 4, 2, 30}}));
  EXPECT_EQ(At(plan, 4), (Spans{{1, 0, 1, 99}, {0, 1, 2, 30}})) << "the row whose logits are wanted";
  EXPECT_EQ(plan.rows(0), 7);
  EXPECT_EQ(plan.rows(4), 3);
  EXPECT_EQ(Spent(plan, 0), (Pairs{{0, 1}}));
  EXPECT_EQ(Remaining(plan, 0), (Pairs{{1, 0}, {2, 1}, {3, 2}, {4, 3}, {5, 4}, {6, 5}}));
  EXPECT_EQ(Spent(plan, 3), (Pairs{{0, 1}}));
  EXPECT_EQ(Remaining(plan, 3), (Pairs{{1, 0}, {2, 1}, {3, 2}}));
  // The same however often it is asked: ops may run twice.
  EXPECT_EQ(At(plan, 0), (Spans{{1, 0, 5, 95}, {0, 5, 2, 30}}));
  // A step without warming up, after one with it.
  plan.Clear();
  plan.Add(0, {32, 33, false}, nullptr);
  plan.Finish();
  EXPECT_EQ(At(plan, 4), (Spans{{0, 0, 1, 32}}));
}

TEST(GoldSpansTest, LaterStagesGetWhatEarlierOnesHaveLeft) {
  GoldSpans plan(Stage(4, 5), 3);
  EXPECT_EQ(plan.shifts(), 2);
  const GoldInputRows rows = ApplyPrefillRule(0, 100, 1, 2);
  EXPECT_EQ(plan.EntryRows(rows), 3);
  EXPECT_EQ(plan.EntryRows({30, 32, false}), 2);
  plan.Clear();
  plan.Add(0, {30, 32, false}, nullptr);
  plan.Add(1, rows, nullptr);
  plan.Finish();
  EXPECT_EQ(At(plan, 0), (Spans{{0, 0, 2, 30}, {1, 2, 3, 97}}));
  EXPECT_EQ(At(plan, 2), (Spans{{0, 0, 2, 30}, {1, 2, 1, 99}}));
}

// The first of two stages that share the GOLD layers sends on what the second expects.
TEST(GoldSpansTest, StagesAgreeOnTheRowsBetweenThem) {
  const GoldInputRows rows = ApplyPrefillRule(0, 100, 3, 2);
  GoldSpans first(Stage(2, 4), 1), second(Stage(4, 5), 1);
  for (GoldSpans* plan : {&first, &second}) {
    plan->Clear();
    plan->Add(0, rows, nullptr);
    plan->Finish();
  }
  EXPECT_EQ(At(first, 2), At(second, 0));
  EXPECT_EQ(second.rows(2), 3);
}

}  // namespace
}  // namespace goldfinch
