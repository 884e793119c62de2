// Counts which pages of the caches are in use, and by how many sequences.
#ifndef GOLDFINCH_WORKER_STAGE_PAGE_POOL_H_
#define GOLDFINCH_WORKER_STAGE_PAGE_POOL_H_

#include <cstdint>
#include <vector>

#include "base/check.h"

namespace goldfinch {

// Pages are indices from 0 on, and forked sequences share them by count. Not thread-safe. Reserves its memory at
// construction, touches it only as far as pages have been used, and allocates nothing later.
class PagePool {
 public:
  explicit PagePool(int32_t pages) : pages_(pages) {
    uses_.reserve(pages);
    free_.reserve(pages);
  }

  int32_t pages() const { return pages_; }
  int32_t free_pages() const { return pages_ - used_pages_; }

  // There must be a free page.
  int32_t Take() {
    GF_CHECK_GT(free_pages(), 0);
    ++used_pages_;
    if (free_.empty()) {
      uses_.push_back(1);
      return static_cast<int32_t>(uses_.size()) - 1;
    }
    const int32_t page = free_.back();
    free_.pop_back();
    uses_[page] = 1;
    return page;
  }
  void Share(int32_t page) {
    GF_CHECK(in_use(page)) << "page " << page;
    ++uses_[page];
  }
  void Release(int32_t page) {
    GF_CHECK(in_use(page)) << "page " << page;
    if (--uses_[page] > 0) return;
    free_.push_back(page);
    --used_pages_;
  }

 private:
  bool in_use(int32_t page) const { return page >= 0 && page < static_cast<int32_t>(uses_.size()) && uses_[page] >= 1; }

  const int32_t pages_;
  int32_t used_pages_ = 0;
  std::vector<int32_t> uses_;  // the number of sequences that hold a page, for every page that was ever taken
  std::vector<int32_t> free_;  // those of them that nobody holds
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_PAGE_POOL_H_
