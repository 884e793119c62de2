// A SegmentStore and the threads that use it, so that the coordinator's thread never waits for the disk.
#ifndef GOLDFINCH_COORDINATOR_KEEPER_STORE_THREADS_H_
#define GOLDFINCH_COORDINATOR_KEEPER_STORE_THREADS_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "base/work_queue.h"
#include "coordinator/keeper/store_tier.h"
#include "coordinator/shelves/segment_mover.h"
#include "coordinator/store/store.h"

namespace goldfinch {

// Called on any thread, even from within Do, until the mover has ended.
struct StoreEvents {
  // A move of the segment with this key has ended; `moved.stored` is not set, see Stored.
  absl::AnyInvocable<void(uint64_t move, const SegmentKey& key, StoreMoved moved) const> moved;
  absl::AnyInvocable<void(const ContextName& asked, absl::StatusOr<ContextName> kept) const> name_put;
};

class StoreThreads {
 public:
  // The mover must outlive it.
  StoreThreads(std::shared_ptr<SegmentStore> store, SegmentMover* mover, StoreEvents events);
  // Carries out the actions that it was given. Moves may still run afterwards.
  ~StoreThreads();

  // Reads the ids of all segments, and the names; `done` is called once, on another thread. What is damaged is
  // quarantined, and names that have expired are removed.
  void Load(absl::AnyInvocable<void(StoreContents contents)> done);
  // Carries actions out in their order, but for those of names: they come before all others that have not begun, as
  // there may be many, and a context should not take long to be durable.
  void Do(StoreAction action);
  // What the store has of the segment now. To be asked when the end of a move is handled, as what it was at that end
  // may be of the past.
  SegmentContents Stored(const SegmentKey& key) const;
  // Calls `then` on another thread, after all that was to be done before; moves may still run.
  void After(absl::AnyInvocable<void()> then) { queue_.Post(std::move(then)); }

  StoreTotals totals() const { return store_->totals(); }

 private:
  void DoNames();
  void DoName(const StoreAction& action);

  const std::shared_ptr<SegmentStore> store_;
  SegmentMover* const mover_;
  const std::shared_ptr<const StoreEvents> events_;
  std::mutex mutex_;
  std::deque<StoreAction> names_;  // guarded by mutex_: actions of names that have not begun
  WorkQueue queue_;                // the last one: its tasks use what is above
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_KEEPER_STORE_THREADS_H_
