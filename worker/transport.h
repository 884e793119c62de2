// Rows from stage to stage of one group: ordered point-to-point channels.
#ifndef GOLDFINCH_WORKER_TRANSPORT_H_
#define GOLDFINCH_WORKER_TRANSPORT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace goldfinch {

// One generation's end of the channels. Any error is final: every later call fails too, and the group is rebuilt. Its
// peers then fail as well, as they do when it is destroyed; what they have not received yet is lost.
// Rows are in host memory and never empty: who has none to send does not call, and neither does the receiver. Send and
// Recv are for one thread at a time; Abort is for any.
class Transport {
 public:
  virtual ~Transport() = default;

  // Takes the rows: they may be changed once it returns. Blocks while the receiver is more than kAheadSends sends
  // behind. UNAVAILABLE: the peer is lost, or Abort was called.
  virtual absl::Status Send(int stage, ConstTensor rows) = 0;
  // The next rows that `stage` sent, which must be of this tensor's size. Blocks until they are here. Errors as Send;
  // INTERNAL if the sizes differ, where the transport can tell; others wait until the time is out.
  virtual absl::Status Recv(int stage, Tensor rows) = 0;
  // Ends the generation: unblocks callers.
  virtual void Abort() = 0;

  static constexpr int kAheadSends = 4;
};

// A stage's channels while the group forms: its addresses go to the peers, theirs come here.
class TransportSetup {
 public:
  virtual ~TransportSetup() = default;
  // [stages] where each other stage connects to this one; empty for this stage itself and for stages that exchange no
  // rows with it.
  virtual const std::vector<std::string>& addresses() const = 0;
  // Connects to the peers' `addresses` [stages], each from its addresses()[this stage]. Blocks until all channels are
  // up, at most `timeout_seconds`. Once.
  virtual absl::StatusOr<std::unique_ptr<Transport>> Connect(const std::vector<std::string>& addresses,
                                                             double timeout_seconds) = 0;
  // Any thread: a Connect under way, or to come, fails.
  virtual void Abort() = 0;
};

// Makes the channels of one kind. Thread-safe.
class TransportFactory {
 public:
  virtual ~TransportFactory() = default;
  virtual const char* kind() const = 0;  // "local" or "gloo"
  // `peers` [stages]: with whom this stage exchanges rows. `message_bytes_max`: of one Send.
  virtual absl::StatusOr<std::unique_ptr<TransportSetup>> Setup(uint64_t generation, int stage,
                                                                const std::vector<bool>& peers,
                                                                int64_t message_bytes_max) = 0;
};

// Between stages of this process.
std::unique_ptr<TransportFactory> MakeLocalTransportFactory();

// Over TCP, by Gloo, which neither encrypts nor asks who connects: the network between workers must be trusted.
// `address`: of the interface that peers reach this machine at; a name or an IP address. INVALID_ARGUMENT names it.
// `timeout_seconds`: a Send or Recv that makes no progress for so long fails. Ignores SIGPIPE from then on.
absl::StatusOr<std::unique_ptr<TransportFactory>> MakeGlooTransportFactory(const std::string& address,
                                                                           double timeout_seconds);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_TRANSPORT_H_
