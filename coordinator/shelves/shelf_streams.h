// The workers' Contexts streams as SegmentMover uses them: each by one move at a time, and with limits of what waits in
// it.
#ifndef GOLDFINCH_COORDINATOR_SHELVES_SHELF_STREAMS_H_
#define GOLDFINCH_COORDINATOR_SHELVES_SHELF_STREAMS_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/shelves/shelf_group.h"
#include "coordinator/shelves/shelf_link.h"
#include "protos/cluster.pb.h"

namespace goldfinch {

class ShelfLease;

// Thread-safe. Every wait ends when it is cancelled, or when there has been no progress for the stall timeout.
class ShelfStreams final : public ShelfListener {
 public:
  ShelfStreams(int64_t bytes_max, double stall_timeout_seconds)
      : bytes_max_(bytes_max), stall_timeout_seconds_(stall_timeout_seconds) {}

  void AddWorker(uint64_t worker, std::string token);
  // Closes its stream.
  void RemoveWorker(uint64_t worker);

  // ShelfListener.
  std::optional<uint64_t> WorkerOf(const std::string& token) const override;
  bool Opened(uint64_t worker, std::shared_ptr<ShelfLink> link) override;
  void Received(const ShelfLink* link, cluster::v1::FromShelf message) override;
  void Written(const ShelfLink* link, int64_t bytes) override;
  void Closed(const ShelfLink* link) override;

  // Waits until the stage's worker has a stream that nobody else uses. `urgent` ones come before others. UNAVAILABLE if
  // the worker is gone.
  absl::StatusOr<std::unique_ptr<ShelfLease>> Lease(const ShelfStage& stage, bool urgent,
                                                    const std::atomic<bool>& cancelled);
  // Closes all streams: whoever waits for one gets UNAVAILABLE.
  void CloseAll();
  // Lets everyone who waits check again whether he is cancelled.
  void Wake();

 private:
  friend class ShelfLease;
  using Clock = std::chrono::steady_clock;

  struct Stream {
    uint64_t worker = 0;
    std::shared_ptr<ShelfLink> link;
    std::deque<cluster::v1::FromShelf> inbox;
    int64_t unwritten = 0;  // bytes of what was sent
    bool closed = false;
    bool leased = false;
    bool has_unexpected_message = false;  // it came while nobody had leased the stream
    Clock::time_point progress = Clock::now();
  };
  struct Worker {
    std::string token;
    std::shared_ptr<Stream> stream;  // null: there is none
    int urgent = 0;                  // leases that somebody waits for
  };

  // Waits until `ready`. If `progress` is not null, it is the time of the last progress, from which the timeout counts.
  absl::Status Await(std::unique_lock<std::mutex>& lock, const std::string& name, const std::atomic<bool>& cancelled,
                     const Clock::time_point* progress, absl::FunctionRef<bool()> ready);

  const int64_t bytes_max_;
  const double stall_timeout_seconds_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::map<uint64_t, Worker> workers_;
  std::unordered_map<std::string, uint64_t> tokens_;
  std::unordered_map<const ShelfLink*, std::shared_ptr<Stream>> streams_;
};

// The use of one stream by one thread, until it is destroyed. Errors name the worker: UNAVAILABLE (the stream broke),
// CANCELLED, DEADLINE_EXCEEDED.
class ShelfLease {
 public:
  ~ShelfLease();
  ShelfLease(const ShelfLease&) = delete;
  ShelfLease& operator=(const ShelfLease&) = delete;

  const std::string& name() const { return name_; }

  // Queues the message, however much is queued already.
  void Send(const cluster::v1::ToShelf& message);
  // Whether less than the limit is queued.
  bool HasRoom() const;
  // The next message, if there is one. The one before counts as handled then.
  std::optional<cluster::v1::FromShelf> TryNext();
  // Waits for one.
  absl::StatusOr<cluster::v1::FromShelf> Next();
  // Waits for a message, or for room.
  absl::Status AwaitRoom();
  // From now on, the lease cannot be cancelled.
  void IgnoreCancel() { cancelled_ = &never_; }
  // Waits for so long, but only until somebody urgently needs the stream, or the lease is cancelled or broken.
  void Pause(double seconds);
  // Closes the stream with the lease, because what follows in it cannot be understood.
  void Break() { broken_ = true; }
  bool broken() const { return broken_; }

 private:
  friend class ShelfStreams;

  ShelfLease(ShelfStreams* streams, std::shared_ptr<ShelfStreams::Stream> stream, const std::string& name,
             const std::atomic<bool>& cancelled)
      : streams_(streams), stream_(std::move(stream)), name_(name), cancelled_(&cancelled) {}

  absl::Status Await(bool for_room);

  static inline const std::atomic<bool> never_ = false;

  ShelfStreams* const streams_;
  const std::shared_ptr<ShelfStreams::Stream> stream_;
  const std::string name_;
  const std::atomic<bool>* cancelled_;
  bool unhandled_ = false;  // the message that was taken last has not been handled
  bool broken_ = false;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SHELVES_SHELF_STREAMS_H_
