// The public gRPC service, goldfinch.v1.Goldfinch, over a Dispatcher.
#ifndef GOLDFINCH_COORDINATOR_GRPC_SERVICE_H_
#define GOLDFINCH_COORDINATOR_GRPC_SERVICE_H_

#include <cstdint>
#include <memory>

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
  // The most bytes of a request, which ServerOptions must limit likewise, and of an answer that is not streamed. A
  // prompt of a million ids has 3 MB, a text of as many tokens 5 MB. At most 64 messages, and 1 GiB, are in memory at
  // once, an eighth of them from one client.
  int64_t message_bytes_max = int64_t{16} << 20;
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
