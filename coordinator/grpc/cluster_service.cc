#include "coordinator/grpc/cluster_service.h"

#include <chrono>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "base/check.h"
#include "base/log_limiter.h"
#include "base/status.h"
#include "coordinator/grpc/peer.h"
#include "coordinator/grpc/wire.h"
#include "coordinator/grpc/worker_gate.h"
#include "coordinator/worker_link.h"
#include "coordinator/worker_messages.h"
#include "grpcpp/alarm.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/proto_buffer_reader.h"
#include "protos/cluster.grpc.pb.h"
#include "protos/cluster_protocol.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

using cluster::v1::FromWorker;
using cluster::v1::ToWorker;
// Contexts is not served yet: its callers get UNIMPLEMENTED, without a thread of gRPC for them.
using RawService = cluster::v1::Cluster::WithRawCallbackMethod_Work<
    cluster::v1::Cluster::WithCallbackMethod_Contexts<cluster::v1::Cluster::Service>>;

// The time in which a worker must take the last messages of a stream that the coordinator ends.
constexpr std::chrono::seconds kCloseTime(5);

// What goes to one worker and comes from it. The reactor and `incoming`, which it reads into, are used until Finish,
// which is called after Ended or Close.
class Link final : public WorkerLink, public std::enable_shared_from_this<Link> {
 public:
  Link(ByteReactor* reactor, grpc::ByteBuffer* incoming, grpc::CallbackServerContext* context,
       const ClusterServiceOptions& options)
      : queue_bytes_max_(options.queue_bytes_max),
        unhandled_messages_max_(options.unhandled_messages_max),
        unhandled_bytes_max_(options.unhandled_bytes_max),
        address_(PeerHostPort(*context)),
        reactor_(reactor),
        incoming_(incoming),
        context_(context) {}

  const std::string& address() const { return address_; }

  // The coordinator's thread calls it, and the stream for its last message.
  void Send(const ToWorker& message) override {
    grpc::ByteBuffer serialized;
    SerializeMessage(message, &serialized);
    const auto bytes = static_cast<int64_t>(serialized.Length());
    const std::lock_guard<std::mutex> lock(mutex_);
    if (finished_ || closing_) return;
    if (queued_bytes_ + bytes > queue_bytes_max_) return CutOff(bytes);
    queue_.push_back(std::move(serialized));
    queued_bytes_ += bytes;
    WriteNext();
  }

  void Close() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    CloseSoon();
  }

  void Handled() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    GF_CHECK(!unhandled_.empty());
    unhandled_bytes_ -= unhandled_.front();
    unhandled_.pop_front();
    if (paused_) Read();
  }

  // The stream calls it for each message before the listener gets it, and Read afterwards.
  void Took(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    unhandled_.push_back(bytes);
    unhandled_bytes_ += bytes;
  }

  // Reads the next message, at once or when few enough are unhandled.
  void ReadNext() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Read();
  }

  // The stream calls it.
  void WriteDone(bool ok) {
    const std::lock_guard<std::mutex> lock(mutex_);
    writing_ = false;
    queued_bytes_ -= static_cast<int64_t>(queue_.front().Length());
    queue_.pop_front();
    if (ok) return WriteNext();
    Drop();
    Finish();
  }

  // The stream calls it when nothing more comes from the worker.
  void Ended() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Drop();
    CloseSoon();
  }

  // The stream calls it when the context is about to be destroyed.
  void Gone() {
    const std::lock_guard<std::mutex> lock(mutex_);
    context_ = nullptr;
  }

 private:
  void Cancel() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (context_ != nullptr && !finished_) context_->TryCancel();
  }

  // All of these are called with mutex_ held.
  void Read() {
    paused_ =
        static_cast<int>(unhandled_.size()) >= unhandled_messages_max_ || unhandled_bytes_ >= unhandled_bytes_max_;
    // The reactor lives at least until Finish.
    if (!paused_ && !finished_) reactor_->StartRead(incoming_);
  }

  void WriteNext() {
    if (writing_ || finished_) return;
    if (queue_.empty()) {
      if (closing_) Finish();
      return;
    }
    writing_ = true;
    reactor_->StartWrite(&queue_.front());
  }

  // Ends the stream after the messages that wait. A worker that does not read them must not keep them.
  void CloseSoon() {
    if (finished_ || closing_) return;
    closing_ = true;
    WriteNext();
    if (finished_) return;
    close_by_.Set(std::chrono::system_clock::now() + kCloseTime, [weak = weak_from_this()](bool) {
      if (const std::shared_ptr<Link> link = weak.lock()) link->Cancel();
    });
  }

  // Drops the messages that wait, except the one that is being written.
  void Drop() {
    while (queue_.size() > (writing_ ? 1 : 0)) {
      queued_bytes_ -= static_cast<int64_t>(queue_.back().Length());
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
  const int unhandled_messages_max_;
  const int64_t unhandled_bytes_max_;
  const std::string address_;
  ByteReactor* const reactor_;
  grpc::ByteBuffer* const incoming_;

  std::mutex mutex_;
  // Guarded by mutex_.
  grpc::CallbackServerContext* context_;  // null once the stream has ended
  std::deque<grpc::ByteBuffer> queue_;    // the first is under way if `writing_`
  int64_t queued_bytes_ = 0;
  bool writing_ = false;
  bool closing_ = false;
  bool finished_ = false;
  std::deque<int64_t> unhandled_;  // the bytes of the messages that the listener has not handled, oldest first
  int64_t unhandled_bytes_ = 0;
  bool paused_ = false;  // nothing is read until some of them have been handled
  grpc::Alarm close_by_;
};

// Belongs to gRPC, and deletes itself when gRPC is done with it.
class WorkStream final : public ByteReactor {
 public:
  WorkStream(WorkerListener* listener, grpc::CallbackServerContext* context, const ClusterServiceOptions& options)
      : listener_(listener), link_(std::make_shared<Link>(this, &bytes_, context, options)) {
    worker_ = listener_->Connected(link_, link_->address());
    StartSendInitialMetadata();  // now, for the coordinator's proof is in it
    link_->ReadNext();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return link_->Ended();
    const auto bytes = static_cast<int64_t>(bytes_.Length());  // parsing takes them
    FromWorker message;
    if (const absl::Status status = Parse(&message); !status.ok()) return Refuse(std::string(status.message()));
    link_->Took(bytes);
    listener_->Received(worker_, std::move(message));
    link_->ReadNext();
  }

  // A stream that reads nothing for the moment does not hear of its end in any other way.
  void OnCancel() override { link_->Ended(); }

  void OnWriteDone(bool ok) override { link_->WriteDone(ok); }

  void OnDone() override {
    link_->Gone();
    listener_->Disconnected(worker_);
    delete this;
  }

 private:
  absl::Status Parse(FromWorker* message) {
    {
      grpc::ProtoBufferReader reader(&bytes_);
      GF_RETURN_IF_ERROR(CheckWorkerBytes(&reader));
    }
    const bool parsed = grpc::SerializationTraits<FromWorker>::Deserialize(&bytes_, message).ok();
    return parsed ? absl::OkStatus() : absl::InvalidArgumentError("the bytes are no message");
  }

  // Nothing more is read.
  void Refuse(const std::string& reason) {
    spdlog::warn("worker {} is dropped: its message is not valid: {}", link_->address(), reason);
    ToWorker refusal;
    refusal.set_refused("its message is not valid: " + reason);
    link_->Send(refusal);
    link_->Close();
  }

  WorkerListener* const listener_;
  const std::shared_ptr<Link> link_;
  uint64_t worker_ = 0;
  grpc::ByteBuffer bytes_;
};

WorkerCredentials CredentialsOf(const grpc::CallbackServerContext& context) {
  const auto value = [&](const char* key) {
    const auto found = context.client_metadata().find(key);
    return found == context.client_metadata().end() ? std::string_view()
                                                    : std::string_view(found->second.data(), found->second.size());
  };
  return {value(kProtocolMetadata), value(kNonceMetadata), value(kChallengeMetadata), value(kProofMetadata)};
}

class ClusterService final : public RawService {
 public:
  ClusterService(WorkerListener* listener, const ClusterServiceOptions& options)
      : listener_(listener),
        options_(options),
        gate_(options.key ? std::make_unique<WorkerGate>(*options.key) : nullptr) {}

  ByteReactor* Work(grpc::CallbackServerContext* context) override {
    if (gate_ != nullptr) {
      const double now = SteadySeconds();
      const absl::StatusOr<std::string> proof = gate_->Admit(CredentialsOf(*context), PeerConnection(*context), now);
      if (!proof.ok()) return Refuse(context, proof.status(), now);
      context->AddInitialMetadata(kProofMetadata, *proof);
    }
    return new WorkStream(listener_, context, options_);
  }

 private:
  ByteReactor* Refuse(grpc::CallbackServerContext* context, const absl::Status& status, double now) {
    const WorkerCredentials worker = CredentialsOf(*context);
    const bool begins = !worker.nonce.empty() && worker.challenge.empty();  // as every worker with a key does
    if (absl::IsUnauthenticated(status)) {
      context->AddTrailingMetadata(kChallengeMetadata, gate_->MakeChallenge(PeerConnection(*context), now));
      if (begins) return RefuseCall(status);
    }
    if (const std::optional<std::string> more = log_.Take(now)) {
      spdlog::warn("refused a worker at {}: {}{}", PeerHostPort(*context), std::string(status.message()), *more);
    }
    return RefuseCall(status);
  }

  WorkerListener* const listener_;
  const ClusterServiceOptions options_;
  const std::unique_ptr<WorkerGate> gate_;           // null without a key
  LogLimiter log_{/*per_second=*/0.2, /*burst=*/1};  // strangers may cause these lines
};

}  // namespace

std::shared_ptr<grpc::Service> MakeClusterService(WorkerListener* listener, const ClusterServiceOptions& options) {
  return std::make_shared<ClusterService>(listener, options);
}

}  // namespace goldfinch
