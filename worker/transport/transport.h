// Transports carry rows between the stages of one group: ordered channels from back end to back end, each in one
// direction between two stages.
//
// How a group connects: every stage calls TransportFactory::Setup, the coordinator passes each stage's addresses on to
// its peers, and every stage calls TransportSetup::Connect with the addresses of its peers. The Transport that this
// returns lives for one generation.
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

// One stage's ends of the channels in one generation.
//
// Threads: Send and Recv are for the thread that runs the back end's ops; status and Abort are for any thread.
// Ownership: rows are in the back end's memory. The transport uses no memory of anyone once it is destroyed.
// Failure: any error is final. All later calls fail too, and a new generation has to form. The peers of a transport
// that has failed or is destroyed fail as well, at the latest when their timeout ends; rows that they have not received
// yet are lost.
class Transport {
 public:
  virtual ~Transport() = default;

  // Sends rows as the ops that have been queued so far leave them; ops that are queued later may change them. The rows
  // must not be empty: a stage that has none to send makes no call, and neither does the receiver. Blocks while the
  // receiver is more than kAheadSends sends behind. UNAVAILABLE: the peer is lost, or Abort was called.
  virtual absl::Status Send(int stage, ConstTensor rows) = 0;
  // Receives the next rows that `stage` has sent, for ops that are queued later. The tensor must have exactly their
  // size. May return before the rows have arrived. If the transfer fails after that, only status says so, and what ops
  // compute from the rows is meaningless. Errors are as for Send; if the sizes differ, the error is INTERNAL where the
  // transport can tell; otherwise the call fails at the timeout.
  virtual absl::Status Recv(int stage, Tensor rows) = 0;
  // The error that has ended the transport, else OK. It is set before ops that wait for rows are released without them,
  // so if status is still OK once the result is available, the result is valid.
  virtual absl::Status status() const = 0;
  // Ends the transport: unblocks callers, and releases the ops that wait for rows. Does not block.
  virtual void Abort() = 0;

  static constexpr int kAheadSends = 4;
};

// What a stage exchanges with another one.
struct StageTraffic {
  int64_t send_bytes_max = 0;     // the largest Send to it; 0: nothing is sent to it
  int64_t receive_bytes_max = 0;  // the largest Recv from it; 0: nothing comes from it

  explicit operator bool() const { return send_bytes_max > 0 || receive_bytes_max > 0; }
  bool operator==(const StageTraffic&) const = default;
};

// One stage's ends of the channels while its group forms.
class TransportSetup {
 public:
  virtual ~TransportSetup() = default;
  // [stages] Where each other stage connects to this one: bytes that only the transport reads. Empty for this stage
  // itself, and for stages that exchange no rows with it or need no address.
  virtual const std::vector<std::string>& addresses() const = 0;
  // Connects to the other stages. `addresses` [stages] has what addresses() of each of them says for this stage. Blocks
  // until all channels are up, at most for `timeout_seconds`. To be called once.
  virtual absl::StatusOr<std::unique_ptr<Transport>> Connect(const std::vector<std::string>& addresses,
                                                             double timeout_seconds) = 0;
  // Makes Connect fail, now or when it is called. For any thread.
  virtual void Abort() = 0;
};

// Makes the channels of one kind of transport. Thread-safe.
class TransportFactory {
 public:
  virtual ~TransportFactory() = default;
  virtual const char* kind() const = 0;  // a name of base/transports.h
  // From the next Setup on, peers reach this stage at its own address on the route to `host`, an IP address, or, if
  // that is empty, where the factory was told. Transports that have no addresses of their own ignore it. UNAVAILABLE
  // if there is no such route. Must not be called while Setup runs.
  virtual absl::Status Reach(const std::string& /*host*/) { return absl::OkStatus(); }
  // `key` is a secret of the stages of one generation, by which they recognize each other; strangers that connect are
  // refused. `traffic` [stages] is what stage `stage` exchanges with each stage. `backend` must outlive the setup and
  // the transport. RESOURCE_EXHAUSTED: there is no memory for rows on their way. UNAVAILABLE: it cannot listen.
  virtual absl::StatusOr<std::unique_ptr<TransportSetup>> Setup(const std::string& key, int stage,
                                                                const std::vector<StageTraffic>& traffic,
                                                                Backend& backend) = 0;
};

// ---- The kinds of transports ----

// Between stages in this process, whose back ends must be of one kind. Rows are copied from device to device without
// waiting on the host, between two devices by queues of their own, so that the ops of neither wait for the link.
std::unique_ptr<TransportFactory> MakeLocalTransportFactory();

// Over TCP, on connections whose ends have proved to each other that they have the key of the generation. Rows are not
// encrypted, so nobody on the way between the workers may be able to read or change them. Rows of a device pass through
// host memory. `address` is a name or IP address of this machine's interface that peers can reach; INVALID_ARGUMENT
// names it if it is not an address of this machine. A Send or Recv that makes no progress for `timeout_seconds` fails.
absl::StatusOr<std::unique_ptr<TransportFactory>> MakeTcpTransportFactory(const std::string& address,
                                                                          double timeout_seconds);

// Between CUDA devices, by NCCL, which needs a device for each stage. NCCL neither encrypts nor authenticates, so
// nobody else may reach the workers' network. A transfer that makes no progress for `timeout_seconds` fails. The first
// form opens the NCCL library: UNAVAILABLE names what is missing if there is none or if it is too old.
absl::StatusOr<std::unique_ptr<TransportFactory>> MakeNcclTransportFactory(double timeout_seconds);
struct NcclApi;  // worker/transport/nccl_api.h
std::unique_ptr<TransportFactory> MakeNcclTransportFactory(const NcclApi& api, double timeout_seconds);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_TRANSPORT_TRANSPORT_H_
