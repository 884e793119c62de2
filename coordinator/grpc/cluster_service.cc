#include "coordinator/grpc/cluster_service.h"

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/log_limiter.h"
#include "base/status.h"
#include "coordinator/grpc/message_stream.h"
#include "coordinator/grpc/peer.h"
#include "coordinator/grpc/wire.h"
#include "coordinator/grpc/worker_gate.h"
#include "coordinator/membership/worker_link.h"
#include "coordinator/membership/worker_messages.h"
#include "coordinator/shelves/shelf_link.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/proto_buffer_reader.h"
#include "protos/cluster.grpc.pb.h"
#include "protos/cluster_protocol.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

using cluster::v1::FromShelf;
using cluster::v1::FromWorker;
using cluster::v1::ToShelf;
using cluster::v1::ToWorker;
using RawService = cluster::v1::Cluster::WithRawCallbackMethod_Work<
    cluster::v1::Cluster::WithRawCallbackMethod_Contexts<cluster::v1::Cluster::Service>>;

// A message of a Contexts stream has a piece and little beside it.
constexpr size_t kShelfMessageBytesMax = kPieceBytesMax + (16 << 10);
// The same as unhandled_messages_max and unhandled_bytes_max, for one Contexts stream.
constexpr int kUnhandledPiecesMax = 4;
constexpr int64_t kUnhandledPieceBytesMax = 2 * static_cast<int64_t>(kPieceBytesMax);

class Link final : public MessageStream, public WorkerLink {
 public:
  using MessageStream::MessageStream;

  // The coordinator's thread calls it, and the stream for its last message.
  void Send(const ToWorker& message) override { Write(message); }
  void Close() override { End(grpc::Status::OK); }
  void Handled() override { MessageHandled(); }
};

class ShelfStreamLink final : public MessageStream, public ShelfLink {
 public:
  using MessageStream::MessageStream;

  void Send(const ToShelf& message) override { Write(message); }
  void Close() override { Cancel(); }
  void Handled() override { MessageHandled(); }
};

// Which workers have a Work stream on a connection, and how many Contexts streams it has. Thread-safe.
class Connections {
 public:
  void AddWorker(uint64_t connection, uint64_t worker) {
    const std::lock_guard<std::mutex> lock(mutex_);
    connections_[connection].workers.insert(worker);
  }
  void RemoveWorker(uint64_t connection, uint64_t worker) {
    const std::lock_guard<std::mutex> lock(mutex_);
    connections_[connection].workers.erase(worker);
    Tidy(connection);
  }
  // A worker opens a stream when the one before has ended, which may not have come to its end here.
  bool AddShelf(uint64_t connection) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = connections_.find(connection);
    if (found == connections_.end() || found->second.shelves >= 2 * found->second.workers.size()) return false;
    ++found->second.shelves;
    return true;
  }
  void RemoveShelf(uint64_t connection) {
    const std::lock_guard<std::mutex> lock(mutex_);
    --connections_[connection].shelves;
    Tidy(connection);
  }
  bool Has(uint64_t connection, uint64_t worker) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = connections_.find(connection);
    return found != connections_.end() && found->second.workers.contains(worker);
  }

 private:
  struct Connection {
    std::set<uint64_t> workers;
    size_t shelves = 0;
  };

  void Tidy(uint64_t connection) {
    const auto found = connections_.find(connection);
    if (found->second.workers.empty() && found->second.shelves == 0) connections_.erase(found);
  }

  std::mutex mutex_;
  std::map<uint64_t, Connection> connections_;  // guarded by mutex_
};

template <class Message>
absl::Status ParseChecked(grpc::ByteBuffer* bytes, absl::Status (*check)(google::protobuf::io::ZeroCopyInputStream*),
                          Message* message) {
  {
    grpc::ProtoBufferReader reader(bytes);
    GF_RETURN_IF_ERROR(check(&reader));
  }
  const bool parsed = grpc::SerializationTraits<Message>::Deserialize(bytes, message).ok();
  return parsed ? absl::OkStatus() : absl::InvalidArgumentError("the bytes are not a valid message");
}

// Belongs to gRPC, and deletes itself when gRPC is done with it.
class WorkStream final : public ByteReactor {
 public:
  WorkStream(WorkerListener* listener, Connections* connections, grpc::CallbackServerContext* context,
             const MessageStreamLimits& limits)
      : listener_(listener),
        connections_(connections),
        connection_(PeerConnection(*context)),
        link_(std::make_shared<Link>(this, &bytes_, context, limits)) {
    worker_ = listener_->Connected(link_, link_->address());
    connections_->AddWorker(connection_, worker_);
    StartSendInitialMetadata();  // now, for the coordinator's proof is in it
    link_->ReadNext();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return link_->Ended();
    const auto bytes = static_cast<int64_t>(bytes_.Length());  // parsing takes them
    FromWorker message;
    if (const absl::Status status = ParseChecked(&bytes_, CheckWorkerBytes, &message); !status.ok()) {
      return Refuse(std::string(status.message()));
    }
    link_->Took(bytes);
    listener_->Received(worker_, std::move(message));
    link_->ReadNext();
  }

  // A stream that reads nothing for the moment does not hear of its end in any other way.
  void OnCancel() override { link_->Ended(); }

  void OnWriteDone(bool ok) override { link_->WriteDone(ok); }

  void OnDone() override {
    link_->Gone();
    connections_->RemoveWorker(connection_, worker_);
    listener_->Disconnected(worker_);
    delete this;
  }

 private:
  // Nothing more is read.
  void Refuse(const std::string& reason) {
    spdlog::warn("worker {} is dropped: its message is not valid: {}", link_->address(), reason);
    ToWorker refusal;
    refusal.set_refused("its message is not valid: " + reason);
    link_->Send(refusal);
    link_->Close();
  }

  WorkerListener* const listener_;
  Connections* const connections_;
  const uint64_t connection_;
  const std::shared_ptr<Link> link_;
  uint64_t worker_ = 0;
  grpc::ByteBuffer bytes_;
};

// Likewise. It belongs to nobody until its first message has told whose it is.
class ContextsStream final : public ByteReactor {
 public:
  ContextsStream(ShelfListener* listener, Connections* connections, grpc::CallbackServerContext* context,
                 const MessageStreamLimits& limits)
      : listener_(listener),
        connections_(connections),
        connection_(PeerConnection(*context)),
        link_(std::make_shared<ShelfStreamLink>(this, &bytes_, context, limits)) {
    link_->ReadNext();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return link_->Ended();
    const absl::Status status = Take();
    if (status.ok()) return link_->ReadNext();
    // Nothing more is read.
    spdlog::warn("the Contexts stream of a worker at {} ends: {}", link_->address(), std::string(status.message()));
    link_->End(ToGrpc(status));
  }

  void OnCancel() override { link_->Ended(); }

  void OnWriteDone(bool ok) override {
    const int64_t bytes = link_->WriteDone(ok);
    if (ok) listener_->Written(link_.get(), bytes);
  }

  void OnDone() override {
    link_->Gone();
    connections_->RemoveShelf(connection_);
    if (opened_) listener_->Closed(link_.get());
    delete this;
  }

 private:
  absl::Status Take() {
    const size_t bytes = bytes_.Length();
    if (bytes > kShelfMessageBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("a message has ", bytes, " bytes, the limit is ", kShelfMessageBytesMax));
    }
    FromShelf message;
    GF_RETURN_IF_ERROR(ParseChecked(&bytes_, CheckShelfBytes, &message));
    GF_RETURN_IF_ERROR(CheckShelfMessage(message));
    if (message.has_token() == opened_) {
      return absl::InvalidArgumentError("the first message must have the token, and only that");
    }
    if (opened_) {
      link_->Took(static_cast<int64_t>(bytes));
      listener_->Received(link_.get(), std::move(message));
      return absl::OkStatus();
    }
    const std::optional<uint64_t> worker = listener_->WorkerOf(message.token());
    if (!worker || !connections_->Has(connection_, *worker) || !listener_->Opened(*worker, link_)) {
      return absl::PermissionDeniedError("no worker of this connection has such a token");
    }
    opened_ = true;
    return absl::OkStatus();
  }

  ShelfListener* const listener_;
  Connections* const connections_;
  const uint64_t connection_;
  const std::shared_ptr<ShelfStreamLink> link_;
  bool opened_ = false;
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
    return new WorkStream(
        listener_, &connections_, context,
        {options_.queue_bytes_max, options_.unhandled_messages_max, options_.unhandled_bytes_max, "worker"});
  }

  // Whoever has no Work stream on the connection, which needs the key if there is one, is refused before anything is
  // read.
  ByteReactor* Contexts(grpc::CallbackServerContext* context) override {
    ShelfListener* const shelves = listener_->shelves();
    if (shelves == nullptr) return RefuseCall(absl::UnimplementedError("this coordinator keeps no contexts"));
    if (!connections_.AddShelf(PeerConnection(*context))) {
      return RefuseCall(absl::PermissionDeniedError(
          "a Contexts stream needs a Work stream on the same connection; at most two are allowed"));
    }
    return new ContextsStream(
        shelves, &connections_, context,
        {options_.queue_bytes_max, kUnhandledPiecesMax, kUnhandledPieceBytesMax, "the shelf of the worker"});
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
  const std::unique_ptr<WorkerGate> gate_;  // null without a key
  Connections connections_;
  LogLimiter log_{/*per_second=*/0.2, /*burst=*/1};  // strangers may cause these lines
};

}  // namespace

std::shared_ptr<grpc::Service> MakeClusterService(WorkerListener* listener, const ClusterServiceOptions& options) {
  return std::make_shared<ClusterService>(listener, options);
}

}  // namespace goldfinch
