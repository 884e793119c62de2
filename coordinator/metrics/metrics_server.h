// The HTTP port for machines that watch the server: /metrics for Prometheus, and probes for an orchestrator, which can
// neither speak TLS nor send an API key.
#ifndef GOLDFINCH_COORDINATOR_METRICS_METRICS_SERVER_H_
#define GOLDFINCH_COORDINATOR_METRICS_METRICS_SERVER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/metrics/metrics.h"

namespace goldfinch {

struct MetricsServerOptions {
  std::string host = "127.0.0.1";  // a name or an address; "::" listens on IPv4 too
  int port = 0;                    // 0 takes a free port
  // What the probes answer. Called on the server's thread; they must not block.
  std::function<bool()> started = [] { return true; };  // /startupz: the server has been ready once
  std::function<bool()> ready = [] { return true; };    // /readyz: it takes requests now
  // A connection that has not sent its request within this time, or not read the answer within as much again, is
  // closed, however busily it trickles.
  double timeout_seconds = 5;
  // Connections at a time. One more closes the oldest, so that idle ones never keep out a new one.
  int connections_max = 128;
};

// Answers GET and HEAD of /metrics, /livez, /readyz and /startupz for as long as it lives. A probe gets 200 for yes and
// 503 for no; /livez is 200 whenever it is answered. One thread serves all connections, none of which can block it, and
// each connection serves one request.
class MetricsServer {
 public:
  // UNAVAILABLE names host and port if listening there fails. `metrics` may be destroyed before the server, which keeps
  // their registry.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const MetricsServerOptions& options,
                                                              const Metrics& metrics);
  ~MetricsServer();
  MetricsServer(const MetricsServer&) = delete;
  MetricsServer& operator=(const MetricsServer&) = delete;

  int port() const;

 private:
  class Listener;

  explicit MetricsServer(std::unique_ptr<Listener> listener);

  std::unique_ptr<Listener> listener_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_METRICS_METRICS_SERVER_H_
