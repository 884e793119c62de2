// What one move of SegmentMover does, on one of its threads.
#ifndef GOLDFINCH_COORDINATOR_SHELVES_SEGMENT_MOVES_H_
#define GOLDFINCH_COORDINATOR_SHELVES_SEGMENT_MOVES_H_

#include <atomic>
#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "coordinator/shelves/segment_mover.h"
#include "coordinator/shelves/shelf_group.h"
#include "coordinator/shelves/shelf_streams.h"
#include "coordinator/store/store.h"

namespace goldfinch {

struct MoveRun {
  ShelfStreams* streams;
  const ShelfGroup* group;
  const std::atomic<bool>* cancelled;
  // Waits until so many bytes more may go to the store; without a lease, they do not go over a stream.
  std::function<void(ShelfLease* lease, int64_t bytes)> pace;
  int64_t bytes = 0;  // MoveResult::bytes
};

// Both wait for workers and for the disk. The errors are those of MoveResult.
absl::Status RunSave(const SegmentToSave& segment, SegmentStore* store, MoveRun* run);
absl::Status RunBring(const SegmentToBring& segment, SegmentStore* store, MoveRun* run);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SHELVES_SEGMENT_MOVES_H_
