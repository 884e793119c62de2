#include "base/check.h"

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(CheckTest, PassesWithoutEvaluatingTheMessage) {
  int evaluated = 0;
  GF_CHECK(1 + 1 == 2) << ++evaluated;
  GF_CHECK_EQ(3, 3) << ++evaluated;
  EXPECT_EQ(evaluated, 0);
}

TEST(CheckTest, EvaluatesTheConditionOnce) {
  int evaluated = 0;
  GF_CHECK(++evaluated > 0);
  EXPECT_EQ(evaluated, 1);
}

TEST(CheckTest, IsOneStatementInAnIfWithoutBraces) {
  bool reached_else = false;
  // NOLINTBEGIN(google-readability-braces-around-statements)
  if (false)
    GF_CHECK(true);
  else
    reached_else = true;
  // NOLINTEND(google-readability-braces-around-statements)
  EXPECT_TRUE(reached_else);
}

TEST(CheckDeathTest, NamesPlaceConditionAndMessage) {
  EXPECT_DEATH(GF_CHECK(2 < 1) << "rows", "base/check_test.cc:[0-9]+: CHECK failed: 2 < 1 rows");
}

TEST(CheckDeathTest, ShowsBothValues) {
  const int rows = 3;
  EXPECT_DEATH(GF_CHECK_LE(rows, 2) << "in the batch", R"(\(3 vs 2\) in the batch)");
}

}  // namespace
}  // namespace goldfinch
