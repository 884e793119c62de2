#include "worker/stage/page_pool.h"

#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(PagePoolTest, TheLowestPagesGoFirst) {
  PagePool pool(3);
  EXPECT_EQ(pool.pages(), 3);
  EXPECT_EQ(pool.free_pages(), 3);
  EXPECT_EQ(pool.Take(), 0);
  EXPECT_EQ(pool.Take(), 1);
  EXPECT_EQ(pool.Take(), 2);
  EXPECT_EQ(pool.free_pages(), 0);
}

TEST(PagePoolTest, APageIsFreeAfterItsLastUse) {
  PagePool pool(1);
  const int32_t page = pool.Take();
  pool.Share(page);
  pool.Share(page);
  pool.Release(page);
  pool.Release(page);
  EXPECT_EQ(pool.free_pages(), 0);
  pool.Release(page);
  EXPECT_EQ(pool.free_pages(), 1);
  EXPECT_EQ(pool.Take(), page);
}

TEST(PagePoolTest, NoPageHasTwoOwners) {
  std::minstd_rand random(1);
  constexpr int32_t kPages = 20;
  PagePool pool(kPages);
  std::vector<int> uses(kPages);
  for (int step = 0; step < 5000; ++step) {
    const int32_t page = static_cast<int32_t>(random() % kPages);
    if (random() % 3 == 0 && pool.free_pages() > 0) {
      const int32_t taken = pool.Take();
      ASSERT_EQ(uses[taken], 0);
      uses[taken] = 1;
    } else if (uses[page] > 0 && random() % 2 == 0) {
      pool.Share(page);
      ++uses[page];
    } else if (uses[page] > 0) {
      pool.Release(page);
      --uses[page];
    }
    int free = 0;
    for (int count : uses) free += count == 0 ? 1 : 0;
    ASSERT_EQ(pool.free_pages(), free);
  }
}

TEST(PagePoolDeathTest, Misuse) {
  PagePool pool(1);
  EXPECT_DEATH(pool.Release(0), "page 0");
  EXPECT_DEATH(pool.Share(0), "page 0");
  EXPECT_DEATH(pool.Release(-1), "page -1");
  pool.Take();
  EXPECT_DEATH(pool.Take(), "free_pages");
  pool.Release(0);
  EXPECT_DEATH(pool.Release(0), "page 0");
  EXPECT_DEATH(pool.Share(0), "page 0");
}

}  // namespace
}  // namespace goldfinch
