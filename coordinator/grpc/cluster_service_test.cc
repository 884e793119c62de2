#include "coordinator/grpc/cluster_service.h"

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/shared_key.h"
#include "coordinator/grpc/server.h"
#include "coordinator/worker_link.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
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
    int disconnected = 0;
  };

  uint64_t Connected(std::shared_ptr<WorkerLink> link, const std::string& address) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    workers_.push_back({std::move(link), address, {}, 0});
    changed_.notify_all();
    return workers_.size() - 1;
  }
  void Received(uint64_t worker, FromWorker message) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    EXPECT_EQ(workers_[worker].disconnected, 0);
    workers_[worker].received.push_back(std::move(message));
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
  Worker Get(uint64_t worker) { return WaitConnected(worker); }
  size_t count() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return workers_.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Worker> workers_;
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
  Refusal Refused(grpc::ClientContext* context) {
    const std::unique_ptr<Stream> stream = stub_->Work(context);
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

}  // namespace
}  // namespace goldfinch
