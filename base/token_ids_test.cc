#include "base/token_ids.h"

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(TokenIdsTest, IdsTakeTwoBytesWhereTheLargestFits) {
  EXPECT_EQ(IdBytes(1), 2);
  EXPECT_EQ(IdBytes(65536), 2) << "the largest id is 65535";
  EXPECT_EQ(IdBytes(65537), 4);
  EXPECT_STREQ(IdTypeName(65536), "u16");
  EXPECT_STREQ(IdTypeName(65537), "i32");
}

}  // namespace
}  // namespace goldfinch
