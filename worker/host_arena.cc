#include "worker/host_arena.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/check.h"

namespace goldfinch {

HostArena::HostArena(std::shared_ptr<void> memory, int64_t bytes)
    : memory_(std::move(memory)), bytes_(bytes / kUnitBytes * kUnitBytes), free_bytes_(bytes_) {
  if (bytes_ > 0) Add(0, bytes_);
}

int64_t HostArena::free_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return free_bytes_;
}

std::vector<HostRange> HostArena::Take(int64_t bytes) {
  GF_CHECK_GT(bytes, 0);
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<HostRange> ranges;
  if (bytes > free_bytes_) return ranges;
  char* const memory = static_cast<char*>(memory_.get());
  while (bytes > 0) {
    // The smallest that has room for all of it leaves large ones whole; or else the largest.
    auto from = by_size_.lower_bound({bytes, 0});
    if (from == by_size_.end()) from = std::prev(from);
    const auto [available, begin] = *from;
    const int64_t taken = std::min(available, Rounded(bytes));
    Remove(free_.find(begin));
    if (taken < available) Add(begin + taken, available - taken);
    free_bytes_ -= taken;
    ranges.push_back({memory + begin, std::min(bytes, taken)});
    bytes -= taken;
  }
  return ranges;
}

void HostArena::Release(const std::vector<HostRange>& ranges) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const HostRange& range : ranges) Insert(range.data - static_cast<char*>(memory_.get()), Rounded(range.bytes));
}

void HostArena::Add(int64_t begin, int64_t bytes) {
  free_.emplace(begin, bytes);
  by_size_.emplace(bytes, begin);
}

// Returns the next one.
HostArena::FreeRanges::iterator HostArena::Remove(FreeRanges::iterator range) {
  by_size_.erase({range->second, range->first});
  return free_.erase(range);
}

// Joins it with its neighbors.
void HostArena::Insert(int64_t begin, int64_t bytes) {
  free_bytes_ += bytes;
  auto after = free_.lower_bound(begin);
  if (after != free_.end() && after->first == begin + bytes) {
    bytes += after->second;
    after = Remove(after);
  }
  if (after != free_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == begin) {
      begin = before->first;
      bytes += before->second;
      Remove(before);
    }
  }
  Add(begin, bytes);
}

}  // namespace goldfinch
