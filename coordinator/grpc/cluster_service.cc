#include "coordinator/grpc/cluster_service.h"

#include <deque>
#include <mutex>
#include <string>
#include <utility>

#include "coordinator/grpc/peer.h"
#include "coordinator/worker_link.h"
#include "grpcpp/server_context.h"
#include "protos/cluster.grpc.pb.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

using cluster::v1::FromWorker;
using cluster::v1::ToWorker;
using Reactor = grpc::ServerBidiReactor<FromWorker, ToWorker>;

// The queue of one stream. Its reactor is used until Finish, which is called after Ended or Close.
class Link final : public WorkerLink {
 public:
  Link(Reactor* reactor, grpc::CallbackServerContext* context, int64_t queue_bytes_max)
      : queue_bytes_max_(queue_bytes_max), address_(PeerHostPort(*context)), reactor_(reactor), context_(context) {}

  const std::string& address() const { return address_; }

  void Send(const ToWorker& message) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (finished_ || closing_) return;
    const auto bytes = static_cast<int64_t>(message.ByteSizeLong());
    if (queued_bytes_ + bytes > queue_bytes_max_) return CutOff(bytes);
    queue_.push_back(message);
    queued_bytes_ += bytes;
    WriteNext();
  }

  void Close() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
    WriteNext();
  }

  // The stream calls it.
  void WriteDone(bool ok) {
    const std::lock_guard<std::mutex> lock(mutex_);
    writing_ = false;
    queued_bytes_ -= static_cast<int64_t>(queue_.front().ByteSizeLong());
    queue_.pop_front();
    if (ok) return WriteNext();
    Drop();
    Finish();
  }

  // The stream calls it when nothing more comes from the worker.
  void Ended() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Drop();
    closing_ = true;
    WriteNext();
  }

  // The stream calls it when the context is about to be destroyed.
  void Gone() {
    const std::lock_guard<std::mutex> lock(mutex_);
    context_ = nullptr;
  }

 private:
  // All of these are called with mutex_ held.
  void WriteNext() {
    if (writing_ || finished_) return;
    if (queue_.empty()) {
      if (closing_) Finish();
      return;
    }
    writing_ = true;
    reactor_->StartWrite(&queue_.front());
  }

  // Drops the messages that wait, except the one that is being written.
  void Drop() {
    while (queue_.size() > (writing_ ? 1 : 0)) {
      queued_bytes_ -= static_cast<int64_t>(queue_.back().ByteSizeLong());
      queue_.pop_back();
    }
  }

  void Finish() {
    if (finished_) return;
    finished_ = true;
    reactor_->Finish(grpc::Status::OK);
  }

  void CutOff(int64_t bytes) {
    spdlog::warn("worker {} does not read: {} bytes wait and {} more came, the limit is {}: it is cut off", address_,
                 queued_bytes_, bytes, queue_bytes_max_);
    closing_ = true;
    Drop();
    // The read and the write under way then end with an error.
    if (context_ != nullptr) context_->TryCancel();
  }

  const int64_t queue_bytes_max_;
  const std::string address_;
  Reactor* const reactor_;

  std::mutex mutex_;
  // Guarded by mutex_.
  grpc::CallbackServerContext* context_;  // null once the stream has ended
  std::deque<ToWorker> queue_;            // the first is under way if `writing_`
  int64_t queued_bytes_ = 0;
  bool writing_ = false;
  bool closing_ = false;
  bool finished_ = false;
};

// Belongs to gRPC, and deletes itself when gRPC is done with it.
class WorkStream final : public Reactor {
 public:
  WorkStream(WorkerListener* listener, grpc::CallbackServerContext* context, int64_t queue_bytes_max)
      : listener_(listener), link_(std::make_shared<Link>(this, context, queue_bytes_max)) {
    worker_ = listener_->Connected(link_, link_->address());
    StartRead(&message_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) return link_->Ended();
    listener_->Received(worker_, std::move(message_));
    message_.Clear();
    StartRead(&message_);
  }

  void OnWriteDone(bool ok) override { link_->WriteDone(ok); }

  void OnDone() override {
    link_->Gone();
    listener_->Disconnected(worker_);
    delete this;
  }

 private:
  WorkerListener* const listener_;
  const std::shared_ptr<Link> link_;
  uint64_t worker_ = 0;
  FromWorker message_;
};

class ClusterService final : public cluster::v1::Cluster::CallbackService {
 public:
  ClusterService(WorkerListener* listener, const ClusterServiceOptions& options)
      : listener_(listener), options_(options) {}

  Reactor* Work(grpc::CallbackServerContext* context) override {
    return new WorkStream(listener_, context, options_.queue_bytes_max);
  }

 private:
  WorkerListener* const listener_;
  const ClusterServiceOptions options_;
};

}  // namespace

std::shared_ptr<grpc::Service> MakeClusterService(WorkerListener* listener, const ClusterServiceOptions& options) {
  return std::make_shared<ClusterService>(listener, options);
}

}  // namespace goldfinch
