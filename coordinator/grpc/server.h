// A gRPC server with what every server of ours has: health, reflection, limits, an orderly end.
#ifndef GOLDFINCH_COORDINATOR_GRPC_SERVER_H_
#define GOLDFINCH_COORDINATOR_GRPC_SERVER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace grpc {
class Server;
class ServerCredentials;
class Service;
}  // namespace grpc

namespace goldfinch {

struct ServerOptions {
  std::string host = "127.0.0.1";
  int port = 0;                                               // 0: a free one
  std::shared_ptr<grpc::ServerCredentials> credentials = {};  // null: plain text
  int64_t request_bytes_max = int64_t{64} << 20;              // of one message; longer ones: RESOURCE_EXHAUSTED
  // gRPC's own buffers, over all connections; beyond it gRPC reads less, and refuses calls. 0: no limit.
  int64_t buffer_bytes_max = int64_t{1} << 30;
  int streams_max = 4096;  // calls at a time of one connection
  // A peer that does not answer pings for 20 s (found after 20 s more at most) is gone, and its calls are cancelled.
  double keepalive_seconds = 20;
  // The service whose health SetReady tells, besides "", which serves from start to end.
  std::string health_service = {};
};

// Serves from Start to Shutdown. Thread-safe.
class Server {
 public:
  // UNAVAILABLE names host and port if they cannot be listened on; a port that another server has is an error.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                       std::vector<std::shared_ptr<grpc::Service>> services);
  // Shutdown(0).
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  int port() const { return port_; }
  // At first it is not.
  void SetReady(bool ready);
  // Takes no more calls, waits for those under way, cancels what is left after so long, and returns when all have
  // ended. Watchers of the health are told first. Again: returns at once.
  void Shutdown(double timeout_seconds);

 private:
  Server(ServerOptions options, std::vector<std::shared_ptr<grpc::Service>> services);

  const ServerOptions options_;
  const std::vector<std::shared_ptr<grpc::Service>> services_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_SERVER_H_
