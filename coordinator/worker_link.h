// The coordinator's end of a worker's stream, and what it wants to hear of it.
#ifndef GOLDFINCH_COORDINATOR_WORKER_LINK_H_
#define GOLDFINCH_COORDINATOR_WORKER_LINK_H_

#include <cstdint>
#include <memory>
#include <string>

namespace goldfinch {

namespace cluster::v1 {
class FromWorker;
class ToWorker;
}  // namespace cluster::v1

// Thread-safe. Nothing blocks: messages are queued.
class WorkerLink {
 public:
  virtual ~WorkerLink() = default;
  virtual void Send(const cluster::v1::ToWorker& message) = 0;
  // Ends the stream after what has been sent. The listener's Disconnected follows, if it has not been called.
  virtual void Close() = 0;
};

// Thread-safe; no call blocks on work or calls the link back.
class WorkerListener {
 public:
  virtual ~WorkerListener() = default;
  // Returns the number of this connection, never used again. `address` is for people: "10.0.0.7:41233".
  virtual uint64_t Connected(std::shared_ptr<WorkerLink> link, const std::string& address) = 0;
  // In the stream's order.
  virtual void Received(uint64_t worker, cluster::v1::FromWorker message) = 0;
  virtual void Disconnected(uint64_t worker) = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_WORKER_LINK_H_
