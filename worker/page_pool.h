// Which pages of the caches are in use, and by how many sequences.
#ifndef GOLDFINCH_WORKER_PAGE_POOL_H_
#define GOLDFINCH_WORKER_PAGE_POOL_H_

#include <cstdint>
#include <vector>

#include "base/check.h"

namespace goldfinch {

// Pages are indices; forked sequences share them by count. Not thread-safe. Allocates nothing after construction.
class PagePool {
 public:
  explicit PagePool(int32_t pages) : uses_(pages, 0) {
    free_.reserve(pages);
    // The lowest pages go first, so that memory is touched from the start on.
    for (int32_t page = pages - 1; page >= 0; --page) free_.push_back(page);
  }

  int32_t pages() const { return static_cast<int32_t>(uses_.size()); }
  int32_t free_pages() const { return static_cast<int32_t>(free_.size()); }

  // There must be a free page.
  int32_t Take() {
    GF_CHECK(!free_.empty());
    const int32_t page = free_.back();
    free_.pop_back();
    uses_[page] = 1;
    return page;
  }
  void Share(int32_t page) {
    GF_CHECK_GE(uses_[page], 1);
    ++uses_[page];
  }
  void Release(int32_t page) {
    GF_CHECK_GE(uses_[page], 1);
    if (--uses_[page] == 0) free_.push_back(page);
  }

 private:
  std::vector<int32_t> uses_;
  std::vector<int32_t> free_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_PAGE_POOL_H_
