// Rows from stage to stage of one group: ordered point-to-point channels between back ends.
#ifndef GOLDFINCH_WORKER_TRANSPORT_TRANSPORT_H_
#define GOLDFINCH_WORKER_TRANSPORT_TRANSPORT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/tensor.h"

namespace goldfinch {

// One generation's end of the channels. Any error is final: every later call fails too, and the group is rebuilt. Its
// peers then fail as well, as they do when it is destroyed, at the latest when their time is out; what they have not
// received yet is lost. Its memory is in nobody's use any more once it is destroyed.
//
// Rows are in the back end's memory and never empty: who has none to send does not call, and neither does the receiver.
// Both calls go by the queue of the back end's ops and are for the thread that calls these; status and Abort are for
// any.
class Transport {
 public:
  virtual ~Transport() = default;

  // Takes the rows that the ops queued so far have written; ops queued later may change them. Blocks while the receiver
  // is more than kAheadSends sends behind. UNAVAILABLE: the peer is lost, or Abort was called.
  virtual absl::Status Send(int stage, ConstTensor rows) = 0;
  // The next rows that `stage` sent, for the ops queued later; they must be of this tensor's size. May return before
  // they are here, and then a transfer that fails is told by status, and what ops made of the rows is worth nothing.
  // Errors as Send; INTERNAL if the sizes differ, where the transport can tell; others wait until the time is out.
  virtual absl::Status Recv(int stage, Tensor rows) = 0;
  // The error that ended it, if one has. It is known here before the ops that wait for rows go on without them, so that
  // a result is good if this is asked after the result was there.
  virtual absl::Status status() const = 0;
  // Ends the generation: unblocks callers, and the ops that wait for rows. Does not block.
  virtual void Abort() = 0;

  static constexpr int kAheadSends = 4;
};

// What a stage exchanges with another one.
struct StageTraffic {
  int64_t send_bytes_max = 0;     // of one Send to it; 0: it gets nothing
  int64_t receive_bytes_max = 0;  // of one Recv from it; 0: nothing comes

  explicit operator bool() const { return send_bytes_max > 0 || receive_bytes_max > 0; }
  bool operator==(const StageTraffic&) const = default;
};

// A stage's channels while the group forms: its addresses go to the peers, theirs come here.
class TransportSetup {
 public:
  virtual ~TransportSetup() = default;
  // [stages] where each other stage connects to this one; empty for this stage itself and for stages that exchange no
  // rows with it or need no address.
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
  virtual const char* kind() const = 0;  // "local", "gloo" or "nccl"
  // `edges` [stages]: what this stage exchanges with whom. `backend` must outlive the channels. RESOURCE_EXHAUSTED: no
  // memory for rows on their way.
  virtual absl::StatusOr<std::unique_ptr<TransportSetup>> Setup(uint64_t generation, int stage,
                                                                const std::vector<StageTraffic>& edges,
                                                                Backend& backend) = 0;
};

// Between stages of this process, whose back ends are of one kind: from device to device, and the host waits for
// nothing.
std::unique_ptr<TransportFactory> MakeLocalTransportFactory();

// Over TCP, by Gloo, which neither encrypts nor asks who connects: the network between workers must be trusted. Rows of
// a device go through the host's memory.
// `address`: of the interface that peers reach this machine at; a name or an IP address. INVALID_ARGUMENT names it.
// `timeout_seconds`: a Send or Recv that makes no progress for so long fails. Ignores SIGPIPE from then on.
absl::StatusOr<std::unique_ptr<TransportFactory>> MakeGlooTransportFactory(const std::string& address,
                                                                           double timeout_seconds);

// Between CUDA devices, one of each stage, by NCCL, which trusts the network as Gloo does. `timeout_seconds` as there.
// UNAVAILABLE, with what is missing, if the library cannot be found or is too old.
absl::StatusOr<std::unique_ptr<TransportFactory>> MakeNcclTransportFactory(double timeout_seconds);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_TRANSPORT_TRANSPORT_H_
