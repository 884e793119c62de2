#include "worker/stage/page_pool.h"

#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(IndexSetTest, FindsTheLowestAndTheHighest) {
  std::minstd_rand random(2);
  constexpr int32_t kLimit = 300;
  IndexSet set(kLimit);
  std::set<int32_t> expected;
  for (int step = 0; step < 5000; ++step) {
    const auto index = static_cast<int32_t>(random() % kLimit);
    if (random() % 2 == 0) {
      set.Insert(index);
      expected.insert(index);
    } else {
      set.Erase(index);
      expected.erase(index);
    }
    ASSERT_EQ(set.size(), static_cast<int32_t>(expected.size()));
    ASSERT_EQ(set.Contains(index), expected.contains(index));
    if (expected.empty()) continue;
    ASSERT_EQ(set.Lowest(), *expected.begin());
    ASSERT_EQ(set.Highest(), *expected.rbegin());
  }
}

TEST(PagePoolTest, TheLowestPagesGoFirst) {
  PagePool pool(3);
  EXPECT_EQ(pool.pages(), 3);
  EXPECT_EQ(pool.free_pages(), 3);
  EXPECT_EQ(pool.TakePage(), 0);
  EXPECT_EQ(pool.TakePage(), 1);
  EXPECT_EQ(pool.TakePage(), 2);
  EXPECT_EQ(pool.free_pages(), 0);
  pool.ReleasePage(1);
  pool.ReleasePage(0);
  EXPECT_EQ(pool.TakePage(), 0);
}

TEST(PagePoolTest, APageIsFreeAfterItsLastUse) {
  PagePool pool(1);
  const int32_t page = pool.TakePage();
  pool.SharePage(page);
  pool.SharePage(page);
  pool.ReleasePage(page);
  pool.ReleasePage(page);
  EXPECT_EQ(pool.free_pages(), 0);
  pool.ReleasePage(page);
  EXPECT_EQ(pool.free_pages(), 1);
  EXPECT_EQ(pool.TakePage(), page);
}

// Pages from the front, blocks from the back; a block is free again when the last page in it is.
TEST(PagePoolTest, BlocksBorrowThePagesThatNobodyUses) {
  PagePool pool(10);
  pool.SetBlocks({.blocks = 4, .block_bytes = 40, .page_bytes = 10});  // the last 1.5 have no pages
  EXPECT_EQ(pool.free_blocks(), 4);
  EXPECT_EQ(pool.TakePage(), 0);
  EXPECT_EQ(pool.free_blocks(), 3);
  EXPECT_EQ(pool.TakePage(), 1);
  EXPECT_EQ(pool.free_blocks(), 3) << "the same block";
  EXPECT_EQ(pool.TakeBlock(), 3);
  EXPECT_EQ(pool.open_pages(), 8);
  EXPECT_EQ(pool.TakeBlock(), 2);
  EXPECT_EQ(pool.open_pages(), 6);
  EXPECT_EQ(pool.TakeBlock(), 1);
  EXPECT_EQ(pool.free_blocks(), 0);
  EXPECT_EQ(pool.used_blocks(), 3);
  EXPECT_EQ(pool.open_pages(), 2);
  EXPECT_EQ(pool.free_pages(), 8) << "whoever has lent them";
  pool.ReleaseBlock(2);
  EXPECT_EQ(pool.open_pages(), 4);
  EXPECT_EQ(pool.TakePage(), 2);
  EXPECT_EQ(pool.TakePage(), 3);
  EXPECT_EQ(pool.TakePage(), 8) << "the pages of block 1 are lent";
  EXPECT_EQ(pool.free_blocks(), 0);
  for (const int32_t page : {0, 1, 2}) pool.ReleasePage(page);
  EXPECT_EQ(pool.free_blocks(), 0);
  pool.ReleasePage(3);
  EXPECT_EQ(pool.TakeBlock(), 0);
}

TEST(PagePoolTest, BlocksThatLieElsewhereTakeNoPages) {
  PagePool pool(4);
  pool.SetBlocks({.blocks = 3, .block_bytes = 40});
  for (int i = 0; i < 3; ++i) pool.TakeBlock();
  EXPECT_EQ(pool.open_pages(), 4);
  for (int i = 0; i < 4; ++i) pool.TakePage();
  EXPECT_EQ(pool.used_blocks(), 3);
}

// Whatever is taken and released, no byte has two owners, and what is free can be had.
void Walk(int32_t page_count, const BlockLayout& layout) {
  SCOPED_TRACE(testing::Message() << page_count << " pages of " << layout.page_bytes << " bytes");
  std::minstd_rand random(1);
  PagePool pool(page_count);
  pool.SetBlocks(layout);
  std::vector<int> pages(page_count), blocks(layout.blocks);
  const auto free_bytes = [&](int64_t begin, int64_t end, int64_t size, const std::vector<int>& uses) {
    for (int64_t i = begin / size; i * size < end && i < static_cast<int64_t>(uses.size()); ++i) {
      if (uses[i] > 0) return false;
    }
    return true;
  };
  for (int step = 0; step < 5000; ++step) {
    const auto page = static_cast<int32_t>(random() % page_count),
               block = static_cast<int32_t>(random() % layout.blocks);
    switch (random() % 6) {
      case 0:
        if (pool.open_pages() > 0) {
          ASSERT_EQ(pages[pool.TakePage()]++, 0);
        }
        break;
      case 1:
        if (pool.free_blocks() > 0) {
          ASSERT_EQ(blocks[pool.TakeBlock()]++, 0);
        }
        break;
      case 2:
        if (pages[page] == 0) break;
        ++pages[page];
        pool.SharePage(page);
        break;
      case 3:
        if (blocks[block] == 0) break;
        ++blocks[block];
        pool.ShareBlock(block);
        break;
      case 4:
        if (pages[page] == 0) break;
        --pages[page];
        pool.ReleasePage(page);
        break;
      default:
        if (blocks[block] == 0) break;
        --blocks[block];
        pool.ReleaseBlock(block);
        break;
    }
    int free = 0, open = 0, free_blocks = 0;
    for (int32_t i = 0; i < page_count; ++i) {
      const bool covered = !free_bytes(i * layout.page_bytes, (i + 1) * layout.page_bytes, layout.block_bytes, blocks);
      ASSERT_FALSE(covered && pages[i] > 0) << "page " << i;
      free += pages[i] == 0 ? 1 : 0;
      open += pages[i] == 0 && !covered ? 1 : 0;
    }
    for (int32_t i = 0; i < layout.blocks; ++i) {
      const bool empty = free_bytes(i * layout.block_bytes, (i + 1) * layout.block_bytes, layout.page_bytes, pages);
      free_blocks += blocks[i] == 0 && empty ? 1 : 0;
    }
    ASSERT_EQ(pool.free_pages(), free);
    ASSERT_EQ(pool.open_pages(), open);
    ASSERT_EQ(pool.free_blocks(), free_blocks);
  }
}

TEST(PagePoolTest, NoByteHasTwoOwners) {
  Walk(20, {.blocks = 5, .block_bytes = 40, .page_bytes = 10});
  Walk(20, {.blocks = 9, .block_bytes = 37, .page_bytes = 11});  // pages lie across blocks
  Walk(20, {.blocks = 3, .block_bytes = 33, .page_bytes = 33});
  Walk(50, {.blocks = 4, .block_bytes = 100, .page_bytes = 9});  // the last pages lie behind all blocks
}

TEST(PagePoolDeathTest, Misuse) {
  PagePool pool(1);
  pool.SetBlocks({.blocks = 1, .block_bytes = 10, .page_bytes = 10});
  EXPECT_DEATH(pool.ReleasePage(0), "page 0");
  EXPECT_DEATH(pool.SharePage(0), "page 0");
  EXPECT_DEATH(pool.ReleasePage(-1), "page -1");
  EXPECT_DEATH(pool.ReleaseBlock(0), "block 0");
  EXPECT_DEATH(pool.ShareBlock(1), "block 1");
  pool.TakePage();
  EXPECT_DEATH(pool.TakePage(), "open_pages");
  EXPECT_DEATH(pool.TakeBlock(), "free_blocks");
  pool.ReleasePage(0);
  EXPECT_DEATH(pool.ReleasePage(0), "page 0");
  pool.TakeBlock();
  EXPECT_DEATH(pool.TakePage(), "open_pages");
}

}  // namespace
}  // namespace goldfinch
