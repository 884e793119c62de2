// Moves segments (docs/GLOSSARY.md) between the shelves of a group's workers and a SegmentStore.
//
// The bytes go over the workers' Contexts streams (protos/cluster.proto) and through the mover's own threads. So a move
// never holds up the coordinator's thread, and shares only the network with the Steps. A stream is used by one move at
// a time, part by part. Moves wait in a bounded queue. Moves to the shelves come first, because somebody waits for
// them. Moves to the store keep to a rate, except while another move waits for a stream that they use.
//
// Nothing that a worker says is trusted. What does not match the request, down to the checksum, ends the move and the
// stream, which the worker then opens again. A move also ends when it has made no progress for stall_timeout_seconds.
// The store has nothing of a move that has failed; shelves may have parts of it.
//
// Implementation: segment_mover.cc has the queue and the threads, segment_moves.cc what one move does, shelf_streams.cc
// the streams.
#ifndef GOLDFINCH_COORDINATOR_SHELVES_SEGMENT_MOVER_H_
#define GOLDFINCH_COORDINATOR_SHELVES_SEGMENT_MOVER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "coordinator/contexts/segment_key.h"
#include "coordinator/contexts/segment_tree.h"
#include "coordinator/shelves/shelf_group.h"
#include "coordinator/shelves/shelf_link.h"
#include "coordinator/store/segment.h"

namespace goldfinch {

class SegmentStore;

struct MoverOptions {
  int threads = 3;             // moves that run at once; at most one fewer of them to the store
  int64_t waiting_max = 1024;  // moves in the queue; further ones fail at once
  // Bytes that a move may have in memory in messages to or from workers, besides a few blocks of 1 MiB.
  int64_t move_bytes_max = int64_t{4} << 20;
  double save_bytes_per_second = 256e6;  // of all moves to the store together; 0: as fast as they come
  double stall_timeout_seconds = 20;
};

// What became of a move.
struct MoveResult {
  // NOT_FOUND: a shelf, or the store, does not have all that was asked for. RESOURCE_EXHAUSTED: a shelf, the store, the
  // disk or the mover's queue has no room. DATA_LOSS: the file is damaged, or what a worker sent is.
  // FAILED_PRECONDITION: the replica has no group, or the segment is of another model. CANCELLED: the group has ended,
  // or the mover ends. UNAVAILABLE: a worker's stream broke. DEADLINE_EXCEEDED: there was no progress for too long.
  // Others are the store's. Each names the worker, the segment or the file.
  absl::Status status;
  int64_t bytes = 0;   // of the parts that arrived, each counted once
  double seconds = 0;  // since the move began to run; with `bytes`, for SegmentTree::MeasuredMove
};

// Called once, on a thread of the mover; it must not wait for the mover. No message of the move is on its way any more,
// so what the caller then tells workers to drop stays dropped.
using MoveDone = absl::AnyInvocable<void(MoveResult result)>;

// A segment on the shelves of a replica's group that is to be saved in the store. The caller holds it until the move is
// done.
struct SegmentToSave {
  int replica = 0;
  uint64_t segment = 0;  // its number on the shelves
  std::string name_space;
  SegmentKey key{};
  std::optional<SegmentKey> parent;
  int64_t begin = 0, end = 0;
  std::vector<int32_t> ids;  // of [begin, end)
  bool snapshot = false;     // or only the rows
  bool logits = false;       // with a snapshot: it has the last logits, and they are to be kept
};

// A segment of the store that is to be brought to the shelves of a replica's group.
struct SegmentToBring {
  int replica = 0;
  uint64_t segment = 0;  // its number on the shelves
  SegmentKey key{};
  SegmentContents contents = kRowsAndSnapshot;  // the snapshot comes with its logits, if it has them
};

// Thread-safe. No call waits for a worker or a disk.
class SegmentMover : public ShelfListener {
 public:
  explicit SegmentMover(const MoverOptions& options = {});
  // Ends all moves; their callbacks have run when it returns.
  ~SegmentMover() override;
  SegmentMover(const SegmentMover&) = delete;
  SegmentMover& operator=(const SegmentMover&) = delete;

  // The replica, which had no group, has one now. The streams of its workers are open or will be.
  void SetGroup(int replica, ShelfGroup group);
  // The replica's group has ended: its moves end with CANCELLED, unless they are about to end anyway.
  void GenerationEnded(int replica);

  // Writes the segment to the store, which must outlive the move. Rows that the store has already are taken from there.
  // OK if the store has the whole segment already.
  void Save(SegmentToSave segment, SegmentStore* store, MoveDone done);
  // Puts the segment's parts on the shelves of the stages that have their layers. Parts that are there stay as they
  // are.
  void Bring(SegmentToBring segment, SegmentStore* store, MoveDone done);

  // ---- The workers' streams.

  // The coordinator has given the worker this token; the worker is gone.
  void AddWorker(uint64_t worker, std::string token);
  void RemoveWorker(uint64_t worker);

  // ShelfListener.
  std::optional<uint64_t> WorkerOf(const std::string& token) const override;
  bool Opened(uint64_t worker, std::shared_ptr<ShelfLink> link) override;
  void Received(const ShelfLink* link, cluster::v1::FromShelf message) override;
  void Written(const ShelfLink* link, int64_t bytes) override;
  void Closed(const ShelfLink* link) override;

 private:
  class State;

  const std::unique_ptr<State> state_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SHELVES_SEGMENT_MOVER_H_
