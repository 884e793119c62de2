#include "worker/cluster_client.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/support/channel_arguments.h"
#include "grpcpp/support/client_callback.h"
#include "protos/cluster.grpc.pb.h"
#include "protos/cluster.pb.h"

namespace goldfinch {

using cluster::v1::FromWorker;
using cluster::v1::ToWorker;

namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr double kPauseMinSeconds = 0.1, kPauseMaxSeconds = 2;  // between two streams
constexpr double kHandshakeSeconds = 10;                        // within which the coordinator must have answered
constexpr auto kPollTime = std::chrono::milliseconds(100);      // how often the stream is checked for silence
constexpr int kReceiveBytesMax = 256 << 20;                     // far more than any Step has

double SecondsSince(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

}  // namespace

// One stream. Trap: the channel's destructor waits for gRPC's threads, so it must not run on one of them. Hence the
// owner keeps the stream until it is done, and no callback of gRPC releases it last.
class ClusterClient::Stream : public grpc::ClientBidiReactor<FromWorker, ToWorker> {
 public:
  Stream(const std::shared_ptr<grpc::Channel>& channel, Worker& worker)
      : stub_(cluster::v1::Cluster::NewStub(channel)), worker_(worker), started_(SteadyClock::now()) {}

  void Start(const std::shared_ptr<Stream>& self) {
    stub_->async()->Work(&context_, this);
    AddHold();  // because Send starts writes outside of gRPC's callbacks
    StartRead(&received_);
    worker_.Connected([self](const FromWorker& message) { self->Send(message); });
    StartCall();
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
  double age_seconds() const { return SecondsSince(started_); }
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
  const SteadyClock::time_point started_;
  grpc::ClientContext context_;
  ToWorker received_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<FromWorker> unsent_;  // the first is being written
  bool closing_ = false;
  bool closed_ = false;
  bool answered_ = false;  // the coordinator has sent a message
  bool done_ = false;
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
  while (!stopping() && worker_.refused().ok()) {
    const std::shared_ptr<Stream> stream = Dial();
    Follow(*stream);
    worker_.Disconnected();
    const grpc::Status status = stream->status();
    if (stream->answered()) {
      pause = kPauseMinSeconds;
      Log(absl::StrCat("the stream to ", options_.coordinator,
                       " has ended: ", status.ok() ? "closed" : status.error_message()));
    } else if (pause == kPauseMinSeconds) {  // logged once, not at every attempt
      Log(absl::StrCat("no coordinator at ", options_.coordinator, " yet: ", status.error_message()));
    }
    if (!worker_.refused().ok() || !Pause(pause * jitter(random))) break;
    pause = std::min(2 * pause, kPauseMaxSeconds);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!stopping_) status_ = worker_.refused();
  ended_ = true;
  changed_.notify_all();
}

std::shared_ptr<ClusterClient::Stream> ClusterClient::Dial() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kReceiveBytesMax);
  // Keeps connections alive in networks that drop quiet ones. Heartbeats, not this, detect a silent coordinator.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  // Makes each attempt a new connection, so that the pauses are ours and not gRPC's.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel(options_.coordinator, options_.credentials, arguments);
  auto stream = std::make_shared<Stream>(channel, worker_);
  stream->Start(stream);
  return stream;
}

void ClusterClient::Follow(Stream& stream) {
  bool draining = false;
  while (!stream.WaitDone(kPollTime)) {
    if (stopping() && !draining) {
      draining = true;
      Drain(stream);
    }
    const bool no_answer = !stream.answered() && stream.age_seconds() > kHandshakeSeconds;
    if (worker_.silent() || no_answer) stream.Cancel();
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
