// The coordinator's end of a worker's Contexts stream (protos/cluster.proto), by whatever means the messages travel.
#ifndef GOLDFINCH_COORDINATOR_SHELVES_SHELF_LINK_H_
#define GOLDFINCH_COORDINATOR_SHELVES_SHELF_LINK_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace goldfinch {

namespace cluster::v1 {
class FromShelf;
class ToShelf;
}  // namespace cluster::v1

// Sends to one shelf. Thread-safe. No call blocks: messages are queued.
class ShelfLink {
 public:
  virtual ~ShelfLink() = default;
  // The listener's Written follows when the message is on its way.
  virtual void Send(const cluster::v1::ToShelf& message) = 0;
  // Ends the stream at once, whatever is on its way. The listener's Closed follows, perhaps during this call.
  virtual void Close() = 0;
  // Says that the listener has handled the oldest message that is not yet handled. To be called once for each message.
  virtual void Handled() = 0;
};

// Receives from the shelves of all workers. Thread-safe. No call blocks for long, and none sends or closes anything.
class ShelfListener {
 public:
  virtual ~ShelfListener() = default;
  // The worker that was given this token (Welcome.contexts_token) and is still there.
  virtual std::optional<uint64_t> WorkerOf(const std::string& token) const = 0;
  // This worker has opened a stream, which replaces an older one. False if the worker is gone: the stream ends, and
  // nothing else is called for it.
  virtual bool Opened(uint64_t worker, std::shared_ptr<ShelfLink> link) = 0;
  // The messages that follow, in their order. They keep the limits of coordinator/membership/worker_messages.h.
  virtual void Received(const ShelfLink* link, cluster::v1::FromShelf message) = 0;
  // This many bytes of the messages that were sent have left.
  virtual void Written(const ShelfLink* link, int64_t bytes) = 0;
  // Called last, once for each stream that was opened.
  virtual void Closed(const ShelfLink* link) = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SHELVES_SHELF_LINK_H_
