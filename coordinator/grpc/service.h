// The public gRPC service, goldfinch.v1.Goldfinch, over a Dispatcher.
#ifndef GOLDFINCH_COORDINATOR_GRPC_SERVICE_H_
#define GOLDFINCH_COORDINATOR_GRPC_SERVICE_H_

#include <cstdint>
#include <memory>

#include "coordinator/front/front_options.h"

namespace grpc {
class Service;
}

namespace goldfinch {

class Dispatcher;
class KeyRing;
class Metrics;

struct ServiceOptions {
  // A call whose client takes nothing or too little for so long (calls/call.h) ends with RESOURCE_EXHAUSTED. This is
  // long enough for a client that is busy, and short enough that one that hangs does not hold memory for long.
  double stall_timeout_seconds = 60;
  // The most bytes of a request, as the server's front limits it, and of an answer that is not streamed. At most 64
  // messages, and 1 GiB, are in memory at once, an eighth of them from one client.
  int64_t message_bytes_max = FrontLimits().message_bytes_max;
  std::shared_ptr<const KeyRing> api_keys = {};  // null: everybody may call
};

// The name that health checks ask for.
inline constexpr char kPublicServiceName[] = "goldfinch.v1.Goldfinch";

// The dispatcher and the metrics outlive the service; the service outlives the server that it is registered with.
// Thread-safe; no call blocks a thread of gRPC. The caller is identified by the headers before anything of a message is
// read. A line is logged at the end of every call of Generate and Score, and of every call that fails unless there are
// many.
std::shared_ptr<grpc::Service> MakePublicService(Dispatcher* dispatcher, Metrics* metrics,
                                                 const ServiceOptions& options);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_SERVICE_H_
