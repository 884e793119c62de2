// Keeps a worker connected to the coordinator by a gRPC stream.
#ifndef GOLDFINCH_WORKER_CLUSTER_CLIENT_H_
#define GOLDFINCH_WORKER_CLUSTER_CLIENT_H_

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "base/shared_key.h"
#include "worker/worker.h"

namespace grpc {
class Channel;
class ChannelCredentials;
}  // namespace grpc

namespace goldfinch {

struct ClusterClientOptions {
  std::string coordinator = {};  // address, as HOST:PORT; the name is resolved anew for every connection
  std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr;
  // Proves that this worker belongs to the cluster. The worker does not register with a coordinator that does not prove
  // that it has the key as well. Not set: neither side proves anything.
  std::optional<SharedKey> key = {};
  // Takes lines for the log, about streams that begin and end. Called on the client's thread. May be null.
  std::function<void(const std::string& line)> log = nullptr;
};

// Connects from construction on, and again whenever the stream breaks or the coordinator is silent for longer than its
// heartbeat timeout. It tries for as long as it takes, after a pause that grows from 0.1 s to 2 s, also while the name
// does not resolve. It never goes by a proxy. Thread-safe.
class ClusterClient {
 public:
  // `worker` must outlive the client, which is the only one to call its Connected, Received and Disconnected.
  ClusterClient(ClusterClientOptions options, Worker& worker);
  // Calls Stop(0).
  ~ClusterClient();

  // Tells the coordinator that this worker leaves, waits at most `drain_seconds` until the coordinator has ended the
  // generation, and closes the stream.
  void Stop(double drain_seconds);
  // Blocks until the client has ended. Returns OK after Stop, and FAILED_PRECONDITION with the reason if the
  // coordinator has refused this worker or its key.
  absl::Status Wait();

 private:
  class Stream;

  void Run();
  std::shared_ptr<grpc::Channel> MakeChannel() const;
  // Calls the coordinator. With a key, its challenge is empty for the first call.
  std::shared_ptr<Stream> Dial(const std::string& challenge);
  // Why the stream that has ended ends the client; OK if another one may do better.
  absl::Status Verdict(Stream& stream) const;
  // Watches the stream until it has ended, and ends it when it has to end.
  void Follow(Stream& stream);
  void Drain(Stream& stream);
  // Returns false if Stop is called before the pause is over.
  bool Pause(double seconds);
  bool stopping();
  void Log(const std::string& line) const;

  const ClusterClientOptions options_;
  Worker& worker_;

  std::shared_ptr<grpc::Channel> channel_;  // of the thread

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
