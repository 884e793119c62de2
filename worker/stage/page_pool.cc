#include "worker/stage/page_pool.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace goldfinch {

void IndexSet::Insert(int32_t index) {
  const int32_t word = index / kBits;
  const uint64_t bit = uint64_t{1} << (index % kBits);
  if ((words_[word] & bit) != 0) return;
  words_[word] |= bit;
  ++size_;
  low_ = std::min(low_, word);
  high_ = std::max(high_, word);
}

void IndexSet::Erase(int32_t index) {
  const uint64_t bit = uint64_t{1} << (index % kBits);
  if ((words_[index / kBits] & bit) == 0) return;
  words_[index / kBits] &= ~bit;
  --size_;
}

int32_t IndexSet::Lowest() {
  GF_CHECK_GT(size_, 0);
  while (words_[low_] == 0) ++low_;
  return low_ * kBits + std::countr_zero(words_[low_]);
}

int32_t IndexSet::Highest() {
  GF_CHECK_GT(size_, 0);
  while (words_[high_] == 0) --high_;
  return high_ * kBits + kBits - 1 - std::countl_zero(words_[high_]);
}

PagePool::PagePool(int32_t pages) : page_uses_(pages), open_(pages) {
  for (int32_t page = 0; page < pages; ++page) open_.Insert(page);
}

// ---- Pages

int32_t PagePool::TakePage() {
  GF_CHECK_GT(open_pages(), 0);
  const int32_t page = open_.Lowest();
  open_.Erase(page);
  page_uses_[page] = 1;
  ++used_pages_;
  const Range blocks = BlocksOf(page);
  for (int32_t block = blocks.first; block <= blocks.last; ++block) {
    ++block_pages_[block];
    free_blocks_.Erase(block);
  }
  return page;
}

void PagePool::SharePage(int32_t page) {
  GF_CHECK(page >= 0 && page < pages() && page_uses_[page] >= 1) << "page " << page;
  ++page_uses_[page];
}

void PagePool::ReleasePage(int32_t page) {
  GF_CHECK(page >= 0 && page < pages() && page_uses_[page] >= 1) << "page " << page;
  if (--page_uses_[page] > 0) return;
  --used_pages_;
  open_.Insert(page);
  const Range blocks = BlocksOf(page);
  for (int32_t block = blocks.first; block <= blocks.last; ++block) {
    if (--block_pages_[block] == 0) free_blocks_.Insert(block);
  }
}

// ---- Blocks

void PagePool::SetBlocks(const BlockLayout& layout) {
  GF_CHECK(blocks() == 0 && used_pages_ == 0);
  GF_CHECK(layout.page_bytes >= 0 && layout.page_bytes <= layout.block_bytes);
  layout_ = layout;
  block_uses_.resize(layout.blocks);
  block_pages_.resize(layout.blocks);
  free_blocks_ = IndexSet(layout.blocks);
  for (int32_t block = 0; block < layout.blocks; ++block) free_blocks_.Insert(block);
}

int32_t PagePool::TakeBlock() {
  GF_CHECK_GT(free_blocks(), 0);
  const int32_t block = free_blocks_.Highest();
  free_blocks_.Erase(block);
  block_uses_[block] = 1;
  ++used_blocks_;
  const Range pages = PagesOf(block);
  for (int32_t page = pages.first; page <= pages.last; ++page) open_.Erase(page);
  return block;
}

void PagePool::ShareBlock(int32_t block) {
  GF_CHECK(block >= 0 && block < blocks() && block_uses_[block] >= 1) << "block " << block;
  ++block_uses_[block];
}

void PagePool::ReleaseBlock(int32_t block) {
  GF_CHECK(block >= 0 && block < blocks() && block_uses_[block] >= 1) << "block " << block;
  if (--block_uses_[block] > 0) return;
  --used_blocks_;
  free_blocks_.Insert(block);
  // None of these pages was in use, but the one at either end may lie under the next block as well.
  const Range pages = PagesOf(block);
  for (int32_t page = pages.first; page <= pages.last; ++page) {
    if (!LiesUnderABlock(page)) open_.Insert(page);
  }
}

PagePool::Range PagePool::BlocksOf(int32_t page) const {
  const int64_t begin = page * layout_.page_bytes, end = begin + layout_.page_bytes;
  if (end == begin || begin >= layout_.blocks * layout_.block_bytes) return {0, -1};
  return {static_cast<int32_t>(begin / layout_.block_bytes),
          std::min(static_cast<int32_t>((end - 1) / layout_.block_bytes), layout_.blocks - 1)};
}

PagePool::Range PagePool::PagesOf(int32_t block) const {
  if (layout_.page_bytes == 0) return {0, -1};
  const int64_t begin = block * layout_.block_bytes, end = begin + layout_.block_bytes;
  return {static_cast<int32_t>(std::min<int64_t>(begin / layout_.page_bytes, pages())),
          static_cast<int32_t>(std::min<int64_t>((end - 1) / layout_.page_bytes, pages() - 1))};
}

bool PagePool::LiesUnderABlock(int32_t page) const {
  const Range blocks = BlocksOf(page);
  for (int32_t block = blocks.first; block <= blocks.last; ++block) {
    if (block_uses_[block] > 0) return true;
  }
  return false;
}

}  // namespace goldfinch
