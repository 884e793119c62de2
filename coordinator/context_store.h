// A SegmentStore and the threads that use it, so that the coordinator's thread never waits for the disk.
#ifndef GOLDFINCH_COORDINATOR_CONTEXT_STORE_H_
#define GOLDFINCH_COORDINATOR_CONTEXT_STORE_H_

#include <cstdint>
#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "base/work_queue.h"
#include "coordinator/segment_mover.h"
#include "coordinator/store/store.h"
#include "coordinator/store_tier.h"

namespace goldfinch {

// Called on any thread, even from within Do, until the mover has ended.
struct ContextStoreEvents {
  absl::AnyInvocable<void(uint64_t move, StoreMoved moved) const> moved;
  absl::AnyInvocable<void(const ContextName& asked, absl::StatusOr<ContextName> kept) const> name_put;
};

class ContextStore {
 public:
  // The mover must outlive it.
  ContextStore(std::shared_ptr<SegmentStore> store, SegmentMover* mover, ContextStoreEvents events);
  // Carries out the actions that it was given. Moves may still run afterwards.
  ~ContextStore();

  // Reads the ids of all segments, and the names; `done` is called once, on another thread. What is damaged is
  // quarantined, and names that have expired are removed.
  void Load(absl::AnyInvocable<void(StoreContents contents)> done);
  // Carries actions out in their order.
  void Do(StoreAction action);

  StoreTotals totals() const { return store_->totals(); }

 private:
  const std::shared_ptr<SegmentStore> store_;
  SegmentMover* const mover_;
  const std::shared_ptr<const ContextStoreEvents> events_;
  WorkQueue queue_;  // the last one: its tasks use what is above
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CONTEXT_STORE_H_
