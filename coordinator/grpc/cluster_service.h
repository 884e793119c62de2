// goldfinch.cluster.v1.Cluster: workers' streams, handed to a WorkerListener.
#ifndef GOLDFINCH_COORDINATOR_GRPC_CLUSTER_SERVICE_H_
#define GOLDFINCH_COORDINATOR_GRPC_CLUSTER_SERVICE_H_

#include <cstdint>
#include <memory>

namespace grpc {
class Service;
}

namespace goldfinch {

class WorkerListener;

struct ClusterServiceOptions {
  // Messages that wait for one worker; a worker that lets more pile up is cut off. A Step of a long prompt's chunk is
  // some 20 KB, so that only a worker that has long been silent gets there.
  int64_t queue_bytes_max = int64_t{256} << 20;
};

// The listener outlives the service; the service outlives the server that it is registered with. Links may be kept for
// as long as one likes: of a stream that has ended they do nothing. The listener's Disconnected comes exactly once for
// each Connected, after the last Received.
std::shared_ptr<grpc::Service> MakeClusterService(WorkerListener* listener, const ClusterServiceOptions& options);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_CLUSTER_SERVICE_H_
