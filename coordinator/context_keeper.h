// Keeps what requests have read, automatically, on the shelves of the workers: which texts those are (SegmentTree), and
// how the scheduler's Steps save them and begin with them.
#ifndef GOLDFINCH_COORDINATOR_CONTEXT_KEEPER_H_
#define GOLDFINCH_COORDINATOR_CONTEXT_KEEPER_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "coordinator/contexts/segment_key.h"
#include "coordinator/contexts/segment_tree.h"
#include "coordinator/contexts/snapshot_plan.h"
#include "coordinator/prefix_keeper.h"

namespace goldfinch {

// What a group can keep. All bytes are those of the worker that needs the most of them, as each keeps the parts of its
// own layers.
struct ShelfCapacity {
  int64_t bytes_max = 0;  // of the smallest shelf
  int64_t bytes_per_token = 0;
  int64_t snapshot_bytes = 0;
};

// Segments that workers free.
struct ShelfDrops {
  std::vector<uint64_t> segments;
  std::vector<uint64_t> snapshots;  // of segments whose rows stay
  bool empty() const { return segments.empty() && snapshots.empty(); }
};

// Pure, like the scheduler that calls it: `now` is in seconds and never goes back. Not thread-safe. For each Step that
// is planned, the order is NextStep, TakeDrops, StepPlanned; workers are told of the drops before they get the Step.
class ContextKeeper final : public PrefixKeeper {
 public:
  explicit ContextKeeper(const SnapshotOptions& options = {}) : options_(options) {}

  // What all groups serve from now on. What was kept of another model is forgotten. No group may be ready.
  void SetModel(const ContextIdentity& identity);
  // A group is ready; its shelves are empty. Without bytes, nothing is kept there.
  void GroupReady(int replica, const ShelfCapacity& capacity);
  // Its workers have to free all that was saved there.
  ShelfDrops GroupEnded(int replica);

  // PrefixKeeper.
  int64_t Kept(int replica, const Request& request, absl::Span<const int32_t> ids) const override;
  bool Prepare(int replica, uint64_t request_number, const Request& request, absl::Span<const int32_t> ids,
               double token_seconds, double now) override;
  Beginning Begin(int replica, const Request& request, absl::Span<const int32_t> ids, int64_t tokens_max,
                  double token_seconds, double now) override;
  void Release(int replica, const Beginning& beginning) override;
  Saved Save(int replica, const Request& request, absl::Span<const int32_t> ids, const SavePoint& point,
             double now) override;
  absl::Status Keep(int replica, const Request& request, absl::Span<const int32_t> ids, double now) override;

  // What the workers of the group have to free before the Step that was planned last.
  ShelfDrops TakeDrops(int replica);
  // The Step that was planned last has this number.
  void StepPlanned(int replica, uint64_t step);
  // All stages have answered a Step. `unsaved`: segments for which some shelf had no room.
  void StepAnswered(int replica, uint64_t step, absl::Span<const uint64_t> unsaved, double now);

  // The bytes that are kept in the fullest shelves, over all groups.
  int64_t bytes() const { return tree_ == nullptr ? 0 : tree_->TierBytes(TierKind::kMemory); }
  ContextCounters counters() const { return tree_ == nullptr ? ContextCounters() : tree_->counters(); }

 private:
  struct Saving {
    uint64_t segment = 0;
    SegmentContents contents = 0;
  };
  struct Step {
    uint64_t number = 0;
    std::vector<Saving> saved;
  };
  struct Group {
    int tier = -1;
    SegmentBytes bytes;
    double token_seconds = 0;
    std::vector<Saving> planned;     // what the Step saves that is being planned
    std::vector<uint64_t> restored;  // what it restores: held until it has been planned
    std::deque<Step> steps;          // in flight, oldest first
    std::set<uint64_t> segments;     // that workers may have
  };

  // Notes what has to be dropped from the groups' shelves.
  void Note(SegmentDrops* drops);

  const SnapshotOptions options_;
  std::unique_ptr<SegmentTree> tree_;  // null without a model
  std::map<int, Group> groups_;        // by replica: those that keep something
  std::map<int, ShelfDrops> drops_;    // by tier: what the workers have not been told yet
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CONTEXT_KEEPER_H_
