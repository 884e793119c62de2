// Counts the pages of kept texts (docs/GLOSSARY.md) that sequences of one group began with.
#ifndef GOLDFINCH_COORDINATOR_SCHEDULER_KEPT_PAGES_H_
#define GOLDFINCH_COORDINATOR_SCHEDULER_KEPT_PAGES_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/cache_page.h"
#include "base/check.h"
#include "coordinator/scheduler/prefix_keeper.h"

namespace goldfinch {

// Workers share the full pages of a segment between all sequences that were restored from it with the same first page,
// from when the first of them is opened until the last one is closed (SegmentPages, worker/stage/sequence_state.h). So
// these count once, however many use them.
class KeptPages {
 public:
  // The full pages of one segment in sequences that begin with it.
  struct Run {
    uint64_t segment = 0;
    int64_t begin = 0;  // the index of the first one
    int64_t pages = 0;  // at least one
  };
  // Those of a chain, in its order. Together they are all full pages of its text.
  static std::vector<Run> RunsOf(const PrefixKeeper::Beginning& beginning) {
    std::vector<Run> runs;
    int64_t begin = 0;
    for (size_t i = 0; i < beginning.segments.size(); ++i) {
      const int64_t end = beginning.ends[i] / kCachePageTokens;
      if (end > begin) runs.push_back({beginning.segments[i], begin, end - begin});
      begin = end;
    }
    return runs;
  }

  // All pages of runs that are used.
  int64_t pages() const { return pages_; }
  int uses(const Run& run) const {
    const auto found = uses_.find({run.segment, run.begin});
    return found == uses_.end() ? 0 : found->second;
  }
  // Counts one more use of each. Returns the pages that were not used before.
  int64_t Add(const std::vector<Run>& runs) {
    const int64_t before = pages_;
    for (const Run& run : runs) {
      if (++uses_[{run.segment, run.begin}] == 1) pages_ += run.pages;
    }
    return pages_ - before;
  }
  // Counts one use less of each, which was added before. Returns the pages that are not used any more.
  int64_t Remove(const std::vector<Run>& runs) {
    const int64_t before = pages_;
    for (const Run& run : runs) {
      const auto found = uses_.find({run.segment, run.begin});
      GF_CHECK(found != uses_.end()) << "segment " << run.segment;
      if (--found->second > 0) continue;
      uses_.erase(found);
      pages_ -= run.pages;
    }
    return before - pages_;
  }

 private:
  absl::flat_hash_map<std::pair<uint64_t, int64_t>, int> uses_;  // by segment and first page
  int64_t pages_ = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SCHEDULER_KEPT_PAGES_H_
