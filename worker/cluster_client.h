// A worker's stream to the coordinator, over gRPC.
#ifndef GOLDFINCH_WORKER_CLUSTER_CLIENT_H_
#define GOLDFINCH_WORKER_CLUSTER_CLIENT_H_

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "worker/worker.h"

namespace grpc {
class ChannelCredentials;
}  // namespace grpc

namespace goldfinch {

struct ClusterClientOptions {
  std::string coordinator = {};  // HOST:PORT
  std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr;
  // Lines for the log: streams that begin and end. May be null.
  std::function<void(const std::string& line)> log = nullptr;
};

// Dials from construction on, and again whenever the stream breaks or the coordinator is silent for longer than it
// said, for as long as it takes: after 0.1 s at first, then up to 2 s. Thread-safe.
class ClusterClient {
 public:
  // `node` must outlive the client, which makes all its calls of Connected, Received and Disconnected.
  ClusterClient(ClusterClientOptions options, Worker& node);
  // Stop(0).
  ~ClusterClient();

  // Tells the coordinator that this worker leaves, waits until it has ended the group, at most so long, and closes the
  // stream.
  void Stop(double drain_seconds);
  // Blocks until the client has ended: OK after Stop; FAILED_PRECONDITION with the reason if the coordinator refused
  // this worker.
  absl::Status Wait();

 private:
  class Stream;

  void Run();
  std::shared_ptr<Stream> Dial();
  // Until the stream has ended, or has to.
  void Follow(Stream& stream);
  void Drain(Stream& stream);
  // False: Stop was called.
  bool Pause(double seconds);
  bool stopping();
  void Log(const std::string& line) const;

  const ClusterClientOptions options_;
  Worker& node_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  double drain_seconds_ = 0;
  bool ended_ = false;
  absl::Status status_;

  std::thread thread_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_CLUSTER_CLIENT_H_
