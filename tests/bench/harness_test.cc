#include "tests/bench/harness.h"

#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(FiguresTest, TableHasRowsByColumnsAndAims) {
  Figures figures({"bf16", "int8"});
  figures.Add("decode, tokens/s", "bf16", 7.126, 2);
  figures.Add("of reading", "bf16", 0.9, 2, {.low = 0.85});
  figures.Add("decode, tokens/s", "int8", 17.6, 2, {.low = 10});
  figures.Add("of reading", "int8", 0.8, 2, {.low = 0.85});
  EXPECT_EQ(figures.Table(),
            "| quantity | bf16 | int8 | aim |\n"
            "|---|---|---|---|\n"
            "| decode, tokens/s | 7.13 | 17.60 | int8 >= 10 |\n"
            "| of reading | 0.90 | 0.80 | >= 0.85 |\n");
}

TEST(FiguresTest, RowsOfALaterColumnStandWhereItGotThem) {
  Figures figures({"bf16", "int8"});
  figures.Add("4k", "bf16", 1, 0);
  figures.Add("memory", "bf16", 2, 0);
  figures.Add("4k", "int8", 3, 0);
  figures.Add("64k", "int8", 4, 0, {.low = 0.5, .high = 5});
  figures.Add("memory", "int8", 5, 0);
  EXPECT_EQ(figures.Table(),
            "| quantity | bf16 | int8 | aim |\n"
            "|---|---|---|---|\n"
            "| 4k | 1 | 3 | |\n"
            "| 64k | | 4 | 0.5 to 5 |\n"
            "| memory | 2 | 5 | |\n");
}

TEST(FiguresTest, MissedNamesWhatIsOutsideOfItsAim) {
  Figures figures({"a", "b"});
  figures.Add("low", "a", 0.849, 3, {.low = 0.85});
  figures.Add("low", "b", 0.85, 3, {.low = 0.85});
  figures.Add("between", "a", 1.06, 2, {.low = 0.95, .high = 1.05});
  figures.Add("high", "a", 1.2, 2, {.high = 1.2});
  figures.Add("none", "a", -1, 2);
  EXPECT_THAT(figures.Missed(), ElementsAre("a: low: 0.849, aim >= 0.85", "a: between: 1.06, aim 0.95 to 1.05"));
}

TEST(FiguresTest, WhatWasNotMeasuredIsMissed) {
  Figures figures({"a"});
  EXPECT_THAT(figures.Missed(), IsEmpty());
  figures.Add("low", "a", std::numeric_limits<double>::quiet_NaN(), 2, {.low = 0});
  EXPECT_THAT(figures.Missed(), ElementsAre("a: low: not measured, aim >= 0"));
}

TEST(FiguresTest, Json) {
  Figures figures({"a", "b"});
  figures.Add("row", "b", 1.25, 0);
  figures.Add("held", "a", 2, 0, {.high = 1}, {{"bytes", 7}});
  figures.NotMeasured("row", "a", "no memory");
  EXPECT_EQ(figures.Json(), nlohmann::json::parse(R"([
      {"quantity": "held", "column": "a", "value": 2.0, "aim": "<= 1", "verdict": "MISSED", "bytes": 7},
      {"quantity": "row", "column": "a", "not_measured": "no memory"},
      {"quantity": "row", "column": "b", "value": 1.25}])"));
}

}  // namespace
}  // namespace goldfinch
