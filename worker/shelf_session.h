// The worker's end of a Contexts stream of protos/cluster.proto, by whatever means its messages travel.
#ifndef GOLDFINCH_WORKER_SHELF_SESSION_H_
#define GOLDFINCH_WORKER_SHELF_SESSION_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <tuple>

#include "worker/context_shelf.h"

namespace goldfinch {

namespace cluster::v1 {
class Fetch;
class FromShelf;
class Piece;
class ToShelf;
}  // namespace cluster::v1

// Not thread-safe. A shelf has at most one session at a time.
class ShelfSession {
 public:
  // Sends a message, and returns false once the stream is broken. May block until there is room for it.
  using Send = std::function<bool(const cluster::v1::FromShelf& message)>;
  // Whether the stream is still wanted, as far as its owner can tell while it waits for the device: over gRPC, until
  // the worker stops.
  using IsWanted = std::function<bool()>;

  // `shelf` must outlive the session.
  ShelfSession(ContextShelf& shelf, Send send, IsWanted is_wanted);
  // Drops an unfinished part.
  ~ShelfSession();
  ShelfSession(const ShelfSession&) = delete;
  ShelfSession& operator=(const ShelfSession&) = delete;

  // Takes a message from the coordinator and sends all answers; an error in the message is answered, too. Returns false
  // once the stream is broken.
  bool Handle(const cluster::v1::ToShelf& message);

 private:
  bool HandlePut(const cluster::v1::Piece& message);
  bool HandleFetch(const cluster::v1::Fetch& message);
  bool SendPart(uint64_t number, const SavedSegment& segment, const SavedPart& part);

  ContextShelf& shelf_;
  const Send send_;
  const IsWanted is_wanted_;
  // Segment, layer and kind of the last part that was refused before its end: what is still on its way is ignored.
  std::optional<std::tuple<uint64_t, uint32_t, std::string>> refused_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_SHELF_SESSION_H_
