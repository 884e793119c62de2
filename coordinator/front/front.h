// Where clients connect: listens, limits connections, ends TLS, watches the frames, and hands every connection on as a
// local descriptor.
#ifndef GOLDFINCH_COORDINATOR_FRONT_FRONT_H_
#define GOLDFINCH_COORDINATOR_FRONT_FRONT_H_

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/front/front_options.h"
#include "coordinator/front/listener.h"

namespace goldfinch {

class FrontLoop;
struct FrontShared;

// A client whose TLS and first HTTP/2 frames were good.
struct FrontConnection {
  int fd = -1;  // a stream socket without encryption, which the callee owns; it does not block
  PeerAddress peer;
};

// Serves from Start to Shutdown. Thread-safe. It has one thread for a few cores, and none for a connection; one turn of
// a thread does a bounded piece of work for each connection.
class Front {
 public:
  // Called on a thread of the front, which must not be held up.
  using OnConnection = std::function<void(const FrontConnection&)>;

  // Raises the process's limit of descriptors to what it may have. Errors are those of Listener::Open and
  // MakeServerTls.
  static absl::StatusOr<std::unique_ptr<Front>> Start(FrontOptions options, OnConnection on_connection);
  // Calls Shutdown(0).
  ~Front();
  Front(const Front&) = delete;
  Front& operator=(const Front&) = delete;

  int port() const { return port_; }

  // Reads the files of TLS again, though they may look the same.
  void ReloadTls();
  // Closes the listening sockets, and connections that have not been handed on. The others go on.
  void StopListening();
  // Stops listening, waits at most `seconds` until the others have closed the descriptors and the clients have got what
  // was sent, closes what is left, and ends the threads. A second call returns at once.
  void Shutdown(double seconds);

 private:
  explicit Front(std::unique_ptr<FrontShared> shared);

  const std::unique_ptr<FrontShared> shared_;
  std::vector<std::unique_ptr<FrontLoop>> loops_;
  int port_ = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_FRONT_FRONT_H_
