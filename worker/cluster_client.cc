#include "worker/cluster_client.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/safe_text.h"
#include "base/status.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/support/channel_arguments.h"
#include "grpcpp/support/client_callback.h"
#include "protos/cluster.grpc.pb.h"
#include "protos/cluster.pb.h"
#include "protos/cluster_protocol.h"
#include "worker/contexts_client.h"

namespace goldfinch {

using cluster::v1::FromWorker;
using cluster::v1::ToWorker;

namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr double kPauseMinSeconds = 0.1, kPauseMaxSeconds = 2;  // between two streams
constexpr double kHandshakeSeconds = 10;                        // within which the coordinator must have answered
constexpr double kProofSeconds = 1;  // within which a call ends that is answered by a challenge, not by a proof
constexpr auto kPollTime = std::chrono::milliseconds(100);  // how often the stream is checked for silence
constexpr int kReceiveBytesMax = 256 << 20;                 // far more than any Step has

double SecondsSince(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

}  // namespace

// One stream. Trap: the channel's destructor waits for gRPC's threads, so it must not run on one of them. Hence the
// owner keeps the stream until it is done, and no callback of gRPC releases it last.
class ClusterClient::Stream : public grpc::ClientBidiReactor<FromWorker, ToWorker> {
 public:
  // `key` may be null, and must outlive the stream.
  Stream(const std::shared_ptr<grpc::Channel>& channel, Worker& worker, const SharedKey* key, std::string challenge)
      : stub_(cluster::v1::Cluster::NewStub(channel)),
        worker_(worker),
        key_(key),
        nonce_(MakeNonce()),
        challenge_(std::move(challenge)),
        started_(SteadyClock::now()) {
    context_.AddMetadata(kProtocolMetadata, protocol_);
    if (key_ == nullptr) return;
    context_.AddMetadata(kNonceMetadata, nonce_);
    if (challenge_.empty()) return;
    context_.AddMetadata(kChallengeMetadata, challenge_);
    context_.AddMetadata(kProofMetadata, key_->Prove(kWorkerRole, {protocol_, nonce_, challenge_}));
  }

  void Start(const std::shared_ptr<Stream>& self) {
    stub_->async()->Work(&context_, this);
    AddHold();  // because Send starts writes outside of gRPC's callbacks
    if (key_ == nullptr) {
      Register(self);
    } else {
      self_ = self;
    }
    StartCall();
  }

  void OnReadInitialMetadataDone(bool ok) override {
    if (key_ == nullptr) return;
    const std::shared_ptr<Stream> self = self_.lock();
    const auto& metadata = context_.GetServerInitialMetadata();
    const auto proof = metadata.find(kProofMetadata);
    if (ok && self != nullptr && !challenge_.empty() && proof != metadata.end() &&
        key_->Accepts({proof->second.data(), proof->second.size()}, kCoordinatorRole,
                      {protocol_, nonce_, challenge_})) {
      return Register(self);
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      unproved_since_ = SteadyClock::now();
    }
    StopWriting();
  }

  // On any thread. Messages are dropped once the stream is closed.
  void Send(const FromWorker& message) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return;
    unsent_.push_back(message);
    if (unsent_.size() == 1) StartWrite(&unsent_.front());
  }

  // Closes the stream after all messages have been written.
  void Close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
    CloseIfSent();
  }
  void Cancel() { context_.TryCancel(); }

  // Waits at most `time` until the stream has ended, and returns whether it has.
  bool WaitDone(std::chrono::milliseconds time) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, time, [this] { return done_; });
  }
  bool answered() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return answered_;
  }
  // That of the Welcome; empty before it, and if there is none.
  std::string contexts_token() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return contexts_token_;
  }
  double age_seconds() const { return SecondsSince(started_); }
  // Whether the coordinator has taken the call without a proof that it has the key. A call that it ends with a
  // challenge ends at once.
  bool unproved() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return unproved_since_ && !done_ && SecondsSince(*unproved_since_) > kProofSeconds;
  }
  // Whether that was so when the stream ended.
  bool unproved_at_end() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return unproved_since_ && status_.error_code() == grpc::StatusCode::CANCELLED;
  }
  // The challenge that the coordinator has ended the call with; empty if there is none, or if one was answered already.
  // Valid once the stream has ended.
  std::string challenge() const {
    if (key_ == nullptr || !challenge_.empty()) return "";
    const auto& metadata = context_.GetServerTrailingMetadata();
    const auto found = metadata.find(kChallengeMetadata);
    return found == metadata.end() ? "" : std::string(found->second.data(), found->second.size());
  }
  // Valid once the stream has ended.
  grpc::Status status() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return status_;
  }

  void OnReadDone(bool ok) override {
    if (!ok) return StopWriting();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      answered_ = true;
      if (received_.has_welcome()) contexts_token_ = received_.welcome().contexts_token();
    }
    worker_.Received(std::move(received_));
    received_.Clear();
    StartRead(&received_);
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return StopWriting();
    const std::lock_guard<std::mutex> lock(mutex_);
    unsent_.pop_front();
    if (!unsent_.empty() && !closed_) StartWrite(&unsent_.front());
    CloseIfSent();
  }

  void OnDone(const grpc::Status& status) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    status_ = status;
    done_ = true;
    changed_.notify_all();
  }

 private:
  void Register(const std::shared_ptr<Stream>& self) {
    StartRead(&received_);
    worker_.Connected([self](const FromWorker& message) { self->Send(message); });
  }
  void CloseIfSent() {
    if (!closing_ || closed_ || !unsent_.empty()) return;
    closed_ = true;
    StartWritesDone();
    RemoveHold();
  }
  // The stream is broken, so nothing can be written any more.
  void StopWriting() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return;
    closed_ = true;
    RemoveHold();
  }

  const std::unique_ptr<cluster::v1::Cluster::Stub> stub_;
  Worker& worker_;
  const SharedKey* const key_;
  const std::string protocol_ = absl::StrCat(kClusterProtocol);
  const std::string nonce_;
  const std::string challenge_;
  std::weak_ptr<Stream> self_;
  const SteadyClock::time_point started_;
  grpc::ClientContext context_;
  ToWorker received_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<FromWorker> unsent_;  // the first is being written
  bool closing_ = false;
  bool closed_ = false;
  std::string contexts_token_;
  bool answered_ = false;  // the coordinator has sent a message
  bool done_ = false;
  std::optional<SteadyClock::time_point> unproved_since_;
  grpc::Status status_;
};

ClusterClient::ClusterClient(ClusterClientOptions options, Worker& worker)
    : options_(std::move(options)), worker_(worker), thread_([this] { Run(); }) {}

ClusterClient::~ClusterClient() {
  Stop(0);
  thread_.join();
}

void ClusterClient::Stop(double drain_seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!stopping_) drain_seconds_ = drain_seconds;
  stopping_ = true;
  changed_.notify_all();
  changed_.wait(lock, [this] { return ended_; });
}

absl::Status ClusterClient::Wait() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return ended_; });
  return status_;
}

void ClusterClient::Log(const std::string& line) const {
  if (options_.log) options_.log(line);
}

bool ClusterClient::stopping() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return stopping_;
}

bool ClusterClient::Pause(double seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  return !changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return stopping_; });
}

void ClusterClient::Run() {
  std::minstd_rand random(std::random_device{}());
  std::uniform_real_distribution<double> jitter(0.5, 1);
  double pause = kPauseMinSeconds;
  std::string challenge;
  absl::Status verdict;
  while (!stopping() && verdict.ok()) {
    const std::shared_ptr<Stream> stream = Dial(challenge);
    Follow(*stream);
    worker_.Disconnected();
    challenge = stream->challenge();
    if (!challenge.empty()) continue;
    const grpc::Status status = stream->status();
    verdict = Verdict(*stream);
    const std::string reason = SafeText(status.error_message(), kClusterTextBytesMax);
    if (stream->answered()) {
      pause = kPauseMinSeconds;
      Log(absl::StrCat("the stream to ", options_.coordinator, " has ended: ", status.ok() ? "closed" : reason));
    } else if (pause == kPauseMinSeconds) {  // logged once, not at every attempt
      Log(stream->unproved_at_end()
              ? absl::StrCat("the coordinator at ", options_.coordinator,
                             " does not prove that it has the key of the cluster: it must be started with the same "
                             "cluster_key_file")
              : absl::StrCat("no coordinator at ", options_.coordinator, " yet: ", reason));
    }
    if (!verdict.ok() || !Pause(pause * jitter(random))) break;
    pause = std::min(2 * pause, kPauseMaxSeconds);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!stopping_) status_ = verdict;
  ended_ = true;
  changed_.notify_all();
}

absl::Status ClusterClient::Verdict(Stream& stream) const {
  GF_RETURN_IF_ERROR(worker_.refused());
  const grpc::Status status = stream.status();
  // What a coordinator says of the key: another attempt would end in the same way.
  const bool about_key = status.error_code() == grpc::StatusCode::PERMISSION_DENIED ||
                         status.error_code() == grpc::StatusCode::FAILED_PRECONDITION ||
                         (status.error_code() == grpc::StatusCode::UNAUTHENTICATED && !options_.key);
  if (stream.answered() || !about_key) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the coordinator at ", options_.coordinator,
                   " refused this worker: ", SafeText(status.error_message(), kClusterTextBytesMax)));
}

std::shared_ptr<ClusterClient::Stream> ClusterClient::Dial(const std::string& challenge) {
  // A challenge is answered over the connection that it came by.
  if (challenge.empty() || channel_ == nullptr) channel_ = MakeChannel();
  auto stream = std::make_shared<Stream>(channel_, worker_, options_.key ? &*options_.key : nullptr, challenge);
  stream->Start(stream);
  return stream;
}

std::shared_ptr<grpc::Channel> ClusterClient::MakeChannel() const {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kReceiveBytesMax);
  // Keeps connections alive in networks that drop quiet ones. Heartbeats, not this, detect a silent coordinator.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  // Makes each attempt a new connection, so that the pauses are ours and not gRPC's.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // The cluster's network is its own, whatever http_proxy says.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel("dns:///" + options_.coordinator, options_.credentials, arguments);
}

void ClusterClient::Follow(Stream& stream) {
  bool draining = false;
  std::unique_ptr<ContextsClient> contexts;
  while (!stream.WaitDone(kPollTime)) {
    if (contexts == nullptr && !stream.contexts_token().empty()) {
      contexts = std::make_unique<ContextsClient>(channel_, worker_.shelf(), stream.contexts_token());
    }
    if (stopping() && !draining) {
      draining = true;
      Drain(stream);
    }
    const bool no_answer = !stream.answered() && stream.age_seconds() > kHandshakeSeconds;
    if (worker_.silent() || no_answer || stream.unproved()) stream.Cancel();
    if (!worker_.refused().ok()) stream.Close();
  }
}

void ClusterClient::Drain(Stream& stream) {
  worker_.Leave();
  double drain_seconds = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    drain_seconds = drain_seconds_;
  }
  const SteadyClock::time_point start = SteadyClock::now();
  while (worker_.in_group() && SecondsSince(start) < drain_seconds && !stream.WaitDone(kPollTime)) {
  }
  stream.Close();
  // The coordinator should close its side; if it does not, the stream ends anyway.
  if (!stream.WaitDone(std::chrono::seconds(1))) stream.Cancel();
}

}  // namespace goldfinch
