// The public gRPC services: goldfinch.v1.Goldfinch over a Dispatcher, and goldfinch.v1.Contexts over a
// ContextDirectory.
#ifndef GOLDFINCH_COORDINATOR_GRPC_SERVICE_H_
#define GOLDFINCH_COORDINATOR_GRPC_SERVICE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "coordinator/front/front_options.h"

namespace grpc {
class Service;
}

namespace goldfinch {

class ContextDirectory;
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

// The dispatcher, the directory and the metrics outlive the services; these outlive the server that they are registered
// with. Without a directory, there is no service of contexts. They share their limits and threads.
// Thread-safe; no call blocks a thread of gRPC. The caller is identified by the headers before anything of a message is
// read. A line is logged at the end of every call that runs a model, and of every call that fails unless there are
// many.
std::vector<std::shared_ptr<grpc::Service>> MakePublicServices(Dispatcher* dispatcher, ContextDirectory* contexts,
                                                               Metrics* metrics, const ServiceOptions& options);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_SERVICE_H_
