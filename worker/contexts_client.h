// Keeps a worker's Contexts stream to the coordinator open.
#ifndef GOLDFINCH_WORKER_CONTEXTS_CLIENT_H_
#define GOLDFINCH_WORKER_CONTEXTS_CLIENT_H_

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "worker/context_shelf.h"

namespace grpc {
class Channel;
class ClientContext;
}  // namespace grpc

namespace goldfinch {

// Calls from construction on, and again whenever the stream ends, after a pause that grows from 0.1 s to 2 s. Pieces
// wait for each other on a thread of its own, so the worker's other stream never waits for them.
class ContextsClient {
 public:
  // `token` is Welcome.contexts_token. `shelf` must outlive the client, of which there is one at a time.
  ContextsClient(std::shared_ptr<grpc::Channel> channel, ContextShelf& shelf, std::string token);
  // Ends the stream; it does not wait for the device.
  ~ContextsClient();
  ContextsClient(const ContextsClient&) = delete;
  ContextsClient& operator=(const ContextsClient&) = delete;

 private:
  void Run();
  // Returns whether the coordinator has said anything.
  bool RunStream();

  const std::shared_ptr<grpc::Channel> channel_;
  ContextShelf& shelf_;
  const std::string token_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  grpc::ClientContext* call_ = nullptr;  // that runs, if any

  std::thread thread_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_CONTEXTS_CLIENT_H_
