// A SegmentStore and the threads that work with it, for the coordinator's thread, which never waits for them.
#ifndef GOLDFINCH_COORDINATOR_CONTEXT_STORE_H_
#define GOLDFINCH_COORDINATOR_CONTEXT_STORE_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "base/work_queue.h"
#include "coordinator/segment_mover.h"
#include "coordinator/store/store.h"
#include "coordinator/store_tier.h"

namespace goldfinch {

// Called on any thread, also while a ContextStore is given an action, and until the mover has ended.
struct ContextStoreEvents {
  absl::AnyInvocable<void(uint64_t move, StoreMoved moved) const> moved;
  absl::AnyInvocable<void(const ContextName& asked, absl::StatusOr<ContextName> kept) const> name_put;
};

class ContextStore {
 public:
  // The mover must outlive it.
  ContextStore(std::shared_ptr<SegmentStore> store, SegmentMover* mover, ContextStoreEvents events);
  // Carries out what it was given; moves may still run.
  ~ContextStore();

  // Reads the ids of all segments, and the names; `done` is called once, on another thread. What is damaged is
  // quarantined, and names that have expired are removed.
  void Load(absl::AnyInvocable<void(StoreContents contents)> done);
  // Carries actions out in their order.
  void Do(StoreAction action);
  // Calls `then` on another thread, after all that was to be done before; moves may still run.
  void After(absl::AnyInvocable<void()> then) { queue_.Post(std::move(then)); }

  StoreTotals totals() const { return store_->totals(); }

 private:
  const std::shared_ptr<SegmentStore> store_;
  SegmentMover* const mover_;
  const std::shared_ptr<const ContextStoreEvents> events_;
  WorkQueue queue_;  // the last one: its tasks use what is above
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CONTEXT_STORE_H_
