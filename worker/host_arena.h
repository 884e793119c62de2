// A bounded stretch of the host's memory that is given out in ranges.
#ifndef GOLDFINCH_WORKER_HOST_ARENA_H_
#define GOLDFINCH_WORKER_HOST_ARENA_H_

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "worker/stage/saved_segment.h"

namespace goldfinch {

// Thread-safe. What is asked for may be given in several ranges, so that it never fails while enough is free. Each
// range takes a time that grows with the logarithm of the number of free ranges.
class HostArena {
 public:
  // Ranges have a multiple of this size, and begin at one from the begin of the memory.
  static constexpr int64_t kUnitBytes = 64;

  // `memory` has `bytes` bytes.
  HostArena(std::shared_ptr<void> memory, int64_t bytes);

  // Ranges of `bytes` in all; the last one may have more memory than it says. Empty if there is not so much. It is one
  // range where any has room for all of it, and else the largest ones there are.
  std::vector<HostRange> Take(int64_t bytes);
  // What Take has given.
  void Release(const std::vector<HostRange>& ranges);

  int64_t bytes() const { return bytes_; }
  int64_t free_bytes() const;
  static constexpr int64_t Rounded(int64_t bytes) { return (bytes + kUnitBytes - 1) / kUnitBytes * kUnitBytes; }

 private:
  using FreeRanges = std::map<int64_t, int64_t>;

  void Add(int64_t begin, int64_t bytes);
  FreeRanges::iterator Remove(FreeRanges::iterator range);
  void Insert(int64_t begin, int64_t bytes);

  const std::shared_ptr<void> memory_;
  const int64_t bytes_;
  mutable std::mutex mutex_;
  int64_t free_bytes_ = 0;
  FreeRanges free_;                                // begin and bytes; none lies directly behind another
  std::set<std::pair<int64_t, int64_t>> by_size_;  // the same, as bytes and begin
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_HOST_ARENA_H_
