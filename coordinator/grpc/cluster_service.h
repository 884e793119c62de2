// The gRPC service that workers dial, goldfinch.cluster.v1.Cluster. It hands their streams to a WorkerListener.
#ifndef GOLDFINCH_COORDINATOR_GRPC_CLUSTER_SERVICE_H_
#define GOLDFINCH_COORDINATOR_GRPC_CLUSTER_SERVICE_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "base/shared_key.h"

namespace grpc {
class Service;
}

namespace goldfinch {

class WorkerListener;

struct ClusterServiceOptions {
  // The most bytes of messages that wait for one worker; beyond it the worker's stream is closed. The step of a long
  // prompt's chunk takes about 20 KB, so only a worker that has been silent for long gets there.
  int64_t queue_bytes_max = int64_t{256} << 20;
  // The most messages, and bytes of them, that the listener has been given by one worker and has not handled
  // (WorkerLink::Handled); the last one may go beyond the bytes. Further ones stay with the worker, held up by flow
  // control. A worker's honest messages are handled within microseconds, so it never notices.
  int unhandled_messages_max = 64;
  int64_t unhandled_bytes_max = int64_t{16} << 20;
  // Workers must prove that they have it, and are shown that the coordinator has it. Until then nothing that they send
  // is read, and the listener does not hear of them. Not set: whoever calls is a worker, so the port must be one that
  // only workers reach, or one that asks for their certificates.
  std::optional<SharedKey> key = {};
};

// A worker proves itself on the connection that its challenge came by (protos/cluster_protocol.h).
//
// The listener must outlive the service, and the service the server that it is registered with. A link may be kept for
// as long as one likes: when its stream has ended, it does nothing. The listener's Disconnected is called exactly once
// for each Connected, after the last Received.
std::shared_ptr<grpc::Service> MakeClusterService(WorkerListener* listener, const ClusterServiceOptions& options);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_CLUSTER_SERVICE_H_
