#include "worker/contexts_client.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/sync_stream.h"
#include "protos/cluster.grpc.pb.h"
#include "protos/cluster.pb.h"
#include "worker/shelf_session.h"

namespace goldfinch {
namespace {

using cluster::v1::FromShelf;
using cluster::v1::ToShelf;

constexpr double kPauseMinSeconds = 0.1, kPauseMaxSeconds = 2;  // between two streams

}  // namespace

ContextsClient::ContextsClient(std::shared_ptr<grpc::Channel> channel, ContextShelf& shelf, std::string token)
    : channel_(std::move(channel)), shelf_(shelf), token_(std::move(token)), thread_([this] { Run(); }) {}

ContextsClient::~ContextsClient() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    if (call_ != nullptr) call_->TryCancel();
    changed_.notify_all();
  }
  thread_.join();
}

void ContextsClient::Run() {
  double pause = kPauseMinSeconds;
  for (;;) {
    pause = RunStream() ? kPauseMinSeconds : std::min(2 * pause, kPauseMaxSeconds);
    std::unique_lock<std::mutex> lock(mutex_);
    if (changed_.wait_for(lock, std::chrono::duration<double>(pause), [this] { return stopping_; })) return;
  }
}

bool ContextsClient::RunStream() {
  const auto stub = cluster::v1::Cluster::NewStub(channel_);
  grpc::ClientContext context;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stopping_) return false;
    call_ = &context;
  }
  const auto stream = stub->Contexts(&context);
  bool answered = false;
  {
    const auto is_wanted = [this] {
      const std::lock_guard<std::mutex> lock(mutex_);
      return !stopping_;
    };
    ShelfSession session(
        shelf_, [&](const FromShelf& message) { return stream->Write(message); }, is_wanted);
    FromShelf hello;
    hello.set_token(token_);
    ToShelf message;
    if (stream->Write(hello)) {
      while (stream->Read(&message)) {
        answered = true;
        if (!session.Handle(message)) break;
      }
    }
  }
  context.TryCancel();  // where the coordinator has not ended it
  stream->Finish();
  const std::lock_guard<std::mutex> lock(mutex_);
  call_ = nullptr;
  return answered;
}

}  // namespace goldfinch
