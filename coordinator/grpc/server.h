// A gRPC server with health checks, reflection, limits and an orderly shutdown.
#ifndef GOLDFINCH_COORDINATOR_GRPC_SERVER_H_
#define GOLDFINCH_COORDINATOR_GRPC_SERVER_H_

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/front/front_options.h"

namespace grpc {
class Server;
class Service;
}  // namespace grpc

namespace goldfinch {

class Front;
struct FrontConnection;

struct ServerOptions {
  // What to listen on, TLS, and what connections may do.
  FrontOptions front = {};
  bool reflection = true;  // whether clients may ask which services and messages there are
  // The service whose health SetReady sets, with that of "", the whole server. Empty: "" is SERVING until Shutdown.
  std::string health_service = {};
};

// Serves from Start to Shutdown. Thread-safe.
class Server {
 public:
  // UNAVAILABLE names host and port if the server cannot listen on them, also if another server has the port. Errors of
  // the files of TLS are those of MakeServerTls.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                       std::vector<std::shared_ptr<grpc::Service>> services);
  // Calls Shutdown(0).
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  int port() const;
  // Reads the files of TLS again, which happens by itself when they change. Connections keep what they have.
  void ReloadTls();
  // The server is not ready at first.
  void SetReady(bool ready);
  // Tells the watchers of its health, takes no more calls, waits for those under way, cancels the rest after
  // `timeout_seconds`, and returns when all have ended. A second call returns at once.
  void Shutdown(double timeout_seconds);

 private:
  // Gives a connection of the front to gRPC.
  void Take(const FrontConnection& connection);

  Server(ServerOptions options, std::vector<std::shared_ptr<grpc::Service>> services);

  const ServerOptions options_;
  const std::vector<std::shared_ptr<grpc::Service>> services_;
  std::unique_ptr<grpc::Server> server_;
  std::mutex mutex_;
  bool closing_ = false;          // guarded by mutex_
  std::unique_ptr<Front> front_;  // gives connections to server_
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_SERVER_H_
