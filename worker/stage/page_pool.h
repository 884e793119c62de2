// Counts what the memory of the caches is used for: pages, which have the right of way, and blocks of kept rows, which
// borrow the memory of pages that nobody uses. docs/decisions/0024-one-pool.md says why.
#ifndef GOLDFINCH_WORKER_STAGE_PAGE_POOL_H_
#define GOLDFINCH_WORKER_STAGE_PAGE_POOL_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace goldfinch {

// A set of indices from 0 to a limit. Allocates nothing after its constructor. Finding the lowest and the highest
// member takes constant time on average.
class IndexSet {
 public:
  IndexSet() = default;
  // Empty.
  explicit IndexSet(int32_t limit) : words_((static_cast<size_t>(limit) + kBits - 1) / kBits) {}

  int32_t size() const { return size_; }
  bool Contains(int32_t index) const { return (words_[index / kBits] >> (index % kBits) & 1) != 0; }
  // Nothing happens if the index is in the set already.
  void Insert(int32_t index);
  // Nothing happens if it is not.
  void Erase(int32_t index);
  // The set must not be empty.
  int32_t Lowest();
  int32_t Highest();

 private:
  static constexpr int32_t kBits = 64;

  std::vector<uint64_t> words_;
  int32_t size_ = 0;
  int32_t low_ = 0;    // no word below has a member
  int32_t high_ = -1;  // no word above has one
};

// How blocks lie in memory: block b at [b * block_bytes, (b + 1) * block_bytes). Page p lies at [p * page_bytes,
// (p + 1) * page_bytes) of the same memory or, if page_bytes is 0, elsewhere.
struct BlockLayout {
  int32_t blocks = 0;
  int64_t block_bytes = 1;
  int64_t page_bytes = 0;  // at most block_bytes
};

// Pages and blocks are indices from 0 on, and sequences share them by count. A page and a block that overlap are
// never in use together. Pages are taken from the lowest free one on and blocks from the highest, so that they meet
// late. Not thread-safe. Allocates nothing but in its constructor and in SetBlocks.
class PagePool {
 public:
  explicit PagePool(int32_t pages);

  int32_t pages() const { return static_cast<int32_t>(page_uses_.size()); }
  // Pages that no sequence uses. Some may lie under blocks that are in use: those must be released first.
  int32_t free_pages() const { return pages() - used_pages_; }
  // Pages that TakePage can give now.
  int32_t open_pages() const { return open_.size(); }
  // There must be an open page.
  int32_t TakePage();
  void SharePage(int32_t page);
  void ReleasePage(int32_t page);
  // The number of sequences that hold the page.
  int32_t uses(int32_t page) const { return page_uses_[page]; }

  // Blocks are all free then. To be called at most once, while no page is in use.
  void SetBlocks(const BlockLayout& layout);
  int32_t blocks() const { return layout_.blocks; }
  int32_t used_blocks() const { return used_blocks_; }
  // Blocks that TakeBlock can give now.
  int32_t free_blocks() const { return free_blocks_.size(); }
  // There must be a free block.
  int32_t TakeBlock();
  void ShareBlock(int32_t block);
  void ReleaseBlock(int32_t block);

 private:
  struct Range {
    int32_t first;
    int32_t last;  // included; below `first` if there is none
  };
  Range BlocksOf(int32_t page) const;
  Range PagesOf(int32_t block) const;
  bool LiesUnderABlock(int32_t page) const;

  std::vector<int32_t> page_uses_;  // the number of sequences that hold a page
  int32_t used_pages_ = 0;
  IndexSet open_;

  BlockLayout layout_;
  std::vector<int32_t> block_uses_;   // the number of sequences that hold a block
  std::vector<int32_t> block_pages_;  // the number of pages in use that overlap it
  int32_t used_blocks_ = 0;
  IndexSet free_blocks_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_PAGE_POOL_H_
