#include "base/cache_page.h"

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(CachePageTest, PagesAreRoundedUp) {
  EXPECT_EQ(CachePagesFor(0), 0);
  EXPECT_EQ(CachePagesFor(1), 1);
  EXPECT_EQ(CachePagesFor(64), 1);
  EXPECT_EQ(CachePagesFor(65), 2);
  EXPECT_EQ(CachePagesToReserve(130, 3), 3 + 3);
}

}  // namespace
}  // namespace goldfinch
