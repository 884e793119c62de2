// The coordinator's end of the connection to a worker, whatever carries the messages.
#ifndef GOLDFINCH_COORDINATOR_MEMBERSHIP_WORKER_LINK_H_
#define GOLDFINCH_COORDINATOR_MEMBERSHIP_WORKER_LINK_H_

#include <cstdint>
#include <memory>
#include <string>

namespace goldfinch {

namespace cluster::v1 {
class FromWorker;
class ToWorker;
}  // namespace cluster::v1

class ShelfListener;

// The way to one worker. Thread-safe. No call blocks: messages are queued.
class WorkerLink {
 public:
  virtual ~WorkerLink() = default;
  virtual void Send(const cluster::v1::ToWorker& message) = 0;
  // Ends the connection after the messages that have been sent. The listener's Disconnected follows, unless it has been
  // called before.
  virtual void Close() = 0;
  // The listener has handled the oldest message that it has not said this of; to be called once for each, on any
  // thread. A link to another process lets the worker send only so much ahead of it.
  virtual void Handled() {}
};

// Hears from all workers. Thread-safe. No call blocks for long or sends anything.
class WorkerListener {
 public:
  virtual ~WorkerListener() = default;
  // Returns the number of this connection, which is never used again. `address` is for people: "10.0.0.7:41233".
  virtual uint64_t Connected(std::shared_ptr<WorkerLink> link, const std::string& address) = 0;
  // Call it in the order in which the worker sent the messages.
  virtual void Received(uint64_t worker, cluster::v1::FromWorker message) = 0;
  virtual void Disconnected(uint64_t worker) = 0;
  // Who hears from the workers' Contexts streams; null: nobody does.
  virtual ShelfListener* shelves() { return nullptr; }
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_MEMBERSHIP_WORKER_LINK_H_
