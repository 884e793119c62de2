#include "coordinator/grpc/cluster_service.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/shared_key.h"
#include "coordinator/grpc/server.h"
#include "coordinator/membership/worker_link.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"
#include "gtest/gtest.h"
#include "protos/cluster.grpc.pb.h"
#include "protos/cluster_protocol.h"

namespace goldfinch {
namespace {

using cluster::v1::FromWorker;
using cluster::v1::ToWorker;
using testing::StartsWith;

// Keeps what it hears.
class Listener : public WorkerListener {
 public:
  struct Worker {
    std::shared_ptr<WorkerLink> link;
    std::string address;
    std::vector<FromWorker> received;
    size_t handled = 0;  // of those
    int disconnected = 0;
  };

  uint64_t Connected(std::shared_ptr<WorkerLink> link, const std::string& address) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    workers_.push_back({std::move(link), address, {}});
    changed_.notify_all();
    return workers_.size() - 1;
  }
  void Received(uint64_t worker, FromWorker message) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    EXPECT_EQ(workers_[worker].disconnected, 0);
    workers_[worker].received.push_back(std::move(message));
    unhandled_most_ = std::max(unhandled_most_, workers_[worker].received.size() - workers_[worker].handled);
    if (handles_) Handle(workers_[worker]);
    changed_.notify_all();
  }
  void Disconnected(uint64_t worker) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++workers_[worker].disconnected;
    changed_.notify_all();
  }

  // As it is once that holds.
  Worker Wait(uint64_t worker, const std::function<bool(const Worker&)>& condition) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return workers_.size() > worker && condition(workers_[worker]); });
    return workers_[worker];
  }
  Worker WaitConnected(uint64_t worker) {
    return Wait(worker, [](const Worker&) { return true; });
  }
  Worker WaitDisconnected(uint64_t worker) {
    return Wait(worker, [](const Worker& w) { return w.disconnected > 0; });
  }
  // Messages are not handled until HandleAll.
  void Postpone() {
    const std::lock_guard<std::mutex> lock(mutex_);
    handles_ = false;
  }
  void HandleAll() {
    const std::lock_guard<std::mutex> lock(mutex_);
    handles_ = true;
    for (Worker& worker : workers_) Handle(worker);
  }
  // The most messages of a worker that it had and had not handled.
  size_t unhandled_most() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return unhandled_most_;
  }
  Worker Get(uint64_t worker) { return WaitConnected(worker); }
  size_t count() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return workers_.size();
  }

 private:
  static void Handle(Worker& worker) {
    for (; worker.handled < worker.received.size(); ++worker.handled) worker.link->Handled();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::vector<Worker> workers_;
  bool handles_ = true;
  size_t unhandled_most_ = 0;
};

ToWorker Ping(uint64_t number) {
  ToWorker message;
  message.mutable_ping()->set_number(number);
  return message;
}

FromWorker Pong(uint64_t number) {
  FromWorker message;
  message.mutable_pong()->set_number(number);
  return message;
}

class ClusterServiceTest : public testing::Test {
 protected:
  explicit ClusterServiceTest(ClusterServiceOptions options = {}) {
    server_ = *Server::Start({}, {MakeClusterService(&listener_, options)});
    stub_ = cluster::v1::Cluster::NewStub(
        grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->port()), grpc::InsecureChannelCredentials()));
  }

  Listener listener_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<cluster::v1::Cluster::Stub> stub_;
};

TEST_F(ClusterServiceTest, MessagesKeepTheirOrderBothWays) {
  grpc::ClientContext context;
  const auto stream = stub_->Work(&context);
  const Listener::Worker worker = listener_.WaitConnected(0);
  EXPECT_THAT(worker.address, StartsWith("127.0.0.1:"));
  constexpr uint64_t kMessages = 500;
  for (uint64_t i = 0; i < kMessages; ++i) {
    worker.link->Send(Ping(i));
    ASSERT_TRUE(stream->Write(Pong(i)));
  }
  for (uint64_t i = 0; i < kMessages; ++i) {
    ToWorker message;
    ASSERT_TRUE(stream->Read(&message));
    ASSERT_EQ(message.ping().number(), i);
  }
  const auto received =
      listener_.Wait(0, [](const Listener::Worker& w) { return w.received.size() == kMessages; }).received;
  for (uint64_t i = 0; i < kMessages; ++i) EXPECT_EQ(received[i].pong().number(), i);

  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(listener_.WaitDisconnected(0).disconnected, 1);
}

TEST_F(ClusterServiceTest, CloseEndsTheStreamAfterWhatWasSent) {
  grpc::ClientContext context;
  const auto stream = stub_->Work(&context);
  const auto link = listener_.WaitConnected(0).link;
  for (uint64_t i = 0; i < 100; ++i) link->Send(Ping(i));
  link->Close();
  link->Send(Ping(100));  // too late
  link->Close();
  uint64_t count = 0;
  for (ToWorker message; stream->Read(&message); ++count) EXPECT_EQ(message.ping().number(), count);
  EXPECT_EQ(count, 100u);
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(listener_.WaitDisconnected(0).disconnected, 1);
  // A link that outlives its stream does nothing.
  link->Send(Ping(1));
  link->Close();
  EXPECT_EQ(listener_.Get(0).disconnected, 1);
}

TEST_F(ClusterServiceTest, AWorkerThatBreaksOffIsDisconnectedOnce) {
  for (uint64_t i = 0; i < 20; ++i) {
    grpc::ClientContext context;
    const auto stream = stub_->Work(&context);
    const auto link = listener_.WaitConnected(i).link;
    for (uint64_t n = 0; n < i; ++n) link->Send(Ping(n));
    context.TryCancel();
    EXPECT_FALSE(stream->Finish().ok());
    EXPECT_EQ(listener_.WaitDisconnected(i).disconnected, 1);
    link->Send(Ping(0));
  }
  server_->Shutdown(0);
  for (uint64_t i = 0; i < 20; ++i) EXPECT_EQ(listener_.Get(i).disconnected, 1);
}

TEST_F(ClusterServiceTest, ShutdownDisconnectsAll) {
  grpc::ClientContext context;
  const auto stream = stub_->Work(&context);
  listener_.WaitConnected(0);
  server_->Shutdown(0);
  EXPECT_EQ(listener_.Get(0).disconnected, 1) << "Shutdown returned before the stream had ended";
  EXPECT_FALSE(stream->Finish().ok());
}

class SmallQueueTest : public ClusterServiceTest {
 protected:
  SmallQueueTest() : ClusterServiceTest({.queue_bytes_max = 100'000}) {}
};

TEST_F(SmallQueueTest, AWorkerThatDoesNotReadIsCutOff) {
  grpc::ClientContext context;
  const auto stream = stub_->Work(&context);
  const auto link = listener_.WaitConnected(0).link;
  ToWorker message;
  message.set_refused(std::string(10'000, 'x'));
  // The transport takes some; what waits is bounded.
  for (int i = 0; i < 10'000 && listener_.Get(0).disconnected == 0; ++i) link->Send(message);
  EXPECT_EQ(listener_.WaitDisconnected(0).disconnected, 1);
  int read = 0;
  while (stream->Read(&message)) ++read;
  EXPECT_LT(read, 10'000);
  EXPECT_FALSE(stream->Finish().ok());
}

TEST_F(SmallQueueTest, AWorkerThatReadsMayGetAnyAmount) {
  grpc::ClientContext context;
  const auto stream = stub_->Work(&context);
  const auto link = listener_.WaitConnected(0).link;
  ToWorker message;
  message.set_refused(std::string(10'000, 'x'));
  for (int i = 0; i < 200; ++i) {
    link->Send(message);
    ToWorker received;
    ASSERT_TRUE(stream->Read(&received)) << i;
  }
  context.TryCancel();
  listener_.WaitDisconnected(0);
}

TEST_F(ClusterServiceTest, AMessageOfTooManyEntriesIsNotParsed) {
  grpc::ClientContext context;
  const auto stream = stub_->Work(&context);
  listener_.WaitConnected(0);
  FromWorker message;
  for (int i = 0; i < 1 << 20; ++i) message.mutable_joined()->add_addresses();
  ASSERT_TRUE(stream->Write(message));
  ToWorker refusal;
  ASSERT_TRUE(stream->Read(&refusal));
  EXPECT_EQ(refusal.refused(), "its message is not valid: it has more than 262144 entries");
  EXPECT_FALSE(stream->Read(&refusal));
  EXPECT_TRUE(listener_.WaitDisconnected(0).received.empty());
  stream->Finish();
}

class BackPressureTest : public ClusterServiceTest {
 protected:
  BackPressureTest() : ClusterServiceTest({.unhandled_messages_max = 8, .unhandled_bytes_max = 100'000}) {
    listener_.Postpone();
  }

  // Waits until so many messages have come of a worker that sends messages of `bytes` bytes until it is cut off.
  std::thread Flood(grpc::ClientReaderWriter<FromWorker, ToWorker>* stream, size_t bytes, size_t received) {
    std::thread sender([stream, bytes] {
      FromWorker message;
      message.mutable_end_generation()->set_reason(std::string(bytes, 'x'));
      for (int i = 0; i < 2'000 && stream->Write(message); ++i) continue;
      stream->WritesDone();
    });
    listener_.Wait(0, [received](const Listener::Worker& w) { return w.received.size() == received; });
    return sender;
  }
};

TEST_F(BackPressureTest, AWorkerSendsOnlySoManyMessagesAhead) {
  grpc::ClientContext context;
  const auto stream = stub_->Work(&context);
  listener_.WaitConnected(0);
  std::thread sender = Flood(stream.get(), 1'000, 8);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(listener_.Get(0).received.size(), 8U);
  listener_.HandleAll();
  sender.join();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(listener_.WaitDisconnected(0).received.size(), 2'000U);
  EXPECT_LE(listener_.unhandled_most(), 8U);
}

TEST_F(BackPressureTest, AndOnlySoManyBytes) {
  grpc::ClientContext context;
  const auto stream = stub_->Work(&context);
  listener_.WaitConnected(0);
  std::thread sender = Flood(stream.get(), 40'000, 3);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(listener_.Get(0).received.size(), 3U) << "two have 80,000 bytes, so a third may come";
  // A worker that is held up and breaks off is heard of all the same.
  context.TryCancel();
  sender.join();
  EXPECT_EQ(listener_.WaitDisconnected(0).received.size(), 3U);
  listener_.HandleAll();
  EXPECT_FALSE(stream->Finish().ok());
}

TEST_F(BackPressureTest, AWorkerThatIsHeldUpCanBeClosed) {
  for (uint64_t i = 0; i < 2; ++i) {
    grpc::ClientContext context;
    const auto stream = stub_->Work(&context);
    const auto link = listener_.WaitConnected(i).link;
    for (int message = 0; message < 8; ++message) ASSERT_TRUE(stream->Write(Pong(message)));
    listener_.Wait(i, [](const Listener::Worker& w) { return w.received.size() == 8; });
    if (i == 0) {
      link->Close();
    } else {
      server_->Shutdown(0);
    }
    EXPECT_EQ(listener_.WaitDisconnected(i).disconnected, 1);
    link->Handled();  // too late
    stream->Finish();
  }
}

const SharedKey kKey(std::string(32, 'k'));

class ClusterServiceKeyTest : public ClusterServiceTest {
 protected:
  ClusterServiceKeyTest() : ClusterServiceTest({.key = kKey}) {}

  using Stream = grpc::ClientReaderWriterInterface<FromWorker, ToWorker>;

  // How the call of someone who sends this metadata ends.
  struct Refusal {
    grpc::Status status;
    std::string challenge;
  };
  Refusal Refused(grpc::ClientContext* context) { return Refused(context, stub_.get()); }
  static Refusal Refused(grpc::ClientContext* context, cluster::v1::Cluster::Stub* stub) {
    const std::unique_ptr<Stream> stream = stub->Work(context);
    // Whatever he says, it is not read.
    FromWorker message;
    message.mutable_register_()->set_name(std::string(1 << 20, 'x'));
    stream->Write(message);
    Refusal refusal{stream->Finish(), ""};
    const auto& metadata = context->GetServerTrailingMetadata();
    const auto found = metadata.find(kChallengeMetadata);
    if (found != metadata.end()) refusal.challenge.assign(found->second.data(), found->second.size());
    return refusal;
  }
  std::string Challenge() {
    grpc::ClientContext context;
    context.AddMetadata(kNonceMetadata, nonce);
    return Refused(&context).challenge;
  }
  void Answer(grpc::ClientContext* context, const std::string& challenge, const SharedKey& key) const {
    context->AddMetadata(kProtocolMetadata, protocol);
    context->AddMetadata(kNonceMetadata, nonce);
    context->AddMetadata(kChallengeMetadata, challenge);
    context->AddMetadata(kProofMetadata, key.Prove(kWorkerRole, {protocol, nonce, challenge}));
  }

  const std::string protocol = absl::StrCat(kClusterProtocol);
  const std::string nonce = MakeNonce();
};

TEST_F(ClusterServiceKeyTest, StrangersAreNotHeard) {
  for (int i = 0; i < 20; ++i) {
    grpc::ClientContext context;
    const Refusal refusal = Refused(&context);
    EXPECT_EQ(refusal.status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
    EXPECT_FALSE(refusal.challenge.empty());
  }
  grpc::ClientContext context;
  Answer(&context, Challenge(), SharedKey("another key"));
  EXPECT_EQ(Refused(&context).status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(listener_.count(), 0U) << "the coordinator has heard of nobody";
}

TEST_F(ClusterServiceKeyTest, AWorkerWithTheKeyIsShownThatTheCoordinatorHasIt) {
  const std::string challenge = Challenge();
  grpc::ClientContext context, again;
  Answer(&context, challenge, kKey);
  const std::unique_ptr<Stream> stream = stub_->Work(&context);
  stream->WaitForInitialMetadata();
  const auto& metadata = context.GetServerInitialMetadata();
  const auto proof = metadata.find(kProofMetadata);
  ASSERT_NE(proof, metadata.end());
  EXPECT_TRUE(
      kKey.Accepts({proof->second.data(), proof->second.size()}, kCoordinatorRole, {protocol, nonce, challenge}));
  ASSERT_TRUE(stream->Write(Pong(7)));
  listener_.Wait(0, [](const Listener::Worker& w) { return w.received.size() == 1; });

  Answer(&again, challenge, kKey);
  EXPECT_EQ(Refused(&again).status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << "a repeated call";
  EXPECT_EQ(listener_.count(), 1U);
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(ClusterServiceKeyTest, AProofIsWorthNothingOnAnotherConnection) {
  const std::string challenge = Challenge();
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto other = cluster::v1::Cluster::NewStub(grpc::CreateCustomChannel(
      absl::StrCat("127.0.0.1:", server_->port()), grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext stolen, own;
  Answer(&stolen, challenge, kKey);
  const Refusal refusal = Refused(&stolen, other.get());
  EXPECT_EQ(refusal.status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_FALSE(refusal.challenge.empty()) << "it may prove itself anew";
  EXPECT_EQ(listener_.count(), 0U);

  Answer(&own, challenge, kKey);
  const std::unique_ptr<Stream> stream = stub_->Work(&own);
  listener_.WaitConnected(0);
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

}  // namespace
}  // namespace goldfinch
