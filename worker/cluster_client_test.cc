// The client against a gRPC server in which the test plays the coordinator.
#include "worker/cluster_client.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/shared_key.h"
#include "gmock/gmock.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/sync_stream.h"
#include "gtest/gtest.h"
#include "protos/cluster.grpc.pb.h"
#include "protos/cluster.pb.h"
#include "protos/cluster_protocol.h"
#include "worker/model/random_model.h"

namespace goldfinch {
namespace {

using cluster::v1::FromWorker;
using cluster::v1::ToWorker;
using ::testing::HasSubstr;

constexpr auto kPatience = std::chrono::seconds(60);

// Serves one worker at a time.
class Coordinator : public cluster::v1::Cluster::Service {
 public:
  using Stream = grpc::ServerReaderWriter<ToWorker, FromWorker>;

  // Port 0 stands for any free port.
  explicit Coordinator(int port = 0) {
    grpc::ServerBuilder builder;
    // Makes it an error if the port is taken.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddListeningPort(absl::StrCat("127.0.0.1:", port), grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    EXPECT_NE(server_, nullptr);
  }
  ~Coordinator() override {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }

  int port() const { return port_; }

  // Asks workers for the key, as protos/cluster_protocol.h says. Unless `proves`, it cannot answer itself.
  void Ask(const SharedKey& key, bool proves = true) {
    key_ = std::make_unique<SharedKey>(key);
    proves_ = proves;
  }

  grpc::Status Work(grpc::ServerContext* context, Stream* stream) override {
    if (key_ != nullptr) {
      const auto value = [&](const char* name) {
        const auto found = context->client_metadata().find(name);
        return found == context->client_metadata().end() ? std::string_view()
                                                         : std::string_view(found->second.data(), found->second.size());
      };
      const auto parts = {value(kProtocolMetadata), value(kNonceMetadata), std::string_view("challenge")};
      if (value(kChallengeMetadata) != "challenge") {
        context->AddTrailingMetadata(kChallengeMetadata, "challenge");
        return {grpc::StatusCode::UNAUTHENTICATED, "it asks for the key"};
      }
      if (!key_->Accepts(value(kProofMetadata), kWorkerRole, parts)) {
        return {grpc::StatusCode::PERMISSION_DENIED, "another\x1bkey"};
      }
      context->AddInitialMetadata(kProofMetadata, key_->Prove(proves_ ? kCoordinatorRole : kWorkerRole, parts));
    }
    stream->SendInitialMetadata();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stream_ = stream;
      ++streams_;
    }
    FromWorker message;
    while (stream->Read(&message)) {
      const std::lock_guard<std::mutex> lock(mutex_);
      messages_.push_back(message);
      arrived_.notify_all();
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    stream_ = nullptr;
    arrived_.notify_all();
    return grpc::Status::OK;
  }

  grpc::Status Contexts(grpc::ServerContext* /*context*/,
                        grpc::ServerReaderWriter<cluster::v1::ToShelf, cluster::v1::FromShelf>* stream) override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      contexts_ = stream;
      contexts_end_ = false;
    }
    cluster::v1::FromShelf message;
    while (stream->Read(&message)) {
      const std::lock_guard<std::mutex> lock(mutex_);
      shelf_messages_.push_back(message);
      arrived_.notify_all();
      if (contexts_end_) break;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    contexts_ = nullptr;
    arrived_.notify_all();
    return grpc::Status::OK;
  }
  cluster::v1::FromShelf AwaitShelf() {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!arrived_.wait_for(lock, kPatience, [this] { return !shelf_messages_.empty(); })) {
      ADD_FAILURE() << "no message of the shelf";
      return {};
    }
    cluster::v1::FromShelf message = std::move(shelf_messages_.front());
    shelf_messages_.pop_front();
    return message;
  }
  // With `end`, the stream ends once the answer has come.
  void SendShelf(const cluster::v1::ToShelf& message, bool end) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ASSERT_NE(contexts_, nullptr);
    contexts_end_ = end;
    EXPECT_TRUE(contexts_->Write(message));
  }
  bool AwaitContextsEnd() {
    std::unique_lock<std::mutex> lock(mutex_);
    return arrived_.wait_for(lock, kPatience, [this] { return contexts_ == nullptr; });
  }

  FromWorker Await(FromWorker::MessageCase kind) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      if (!arrived_.wait_for(lock, kPatience, [this] { return !messages_.empty(); })) {
        ADD_FAILURE() << "no message of kind " << kind;
        return {};
      }
      FromWorker message = std::move(messages_.front());
      messages_.pop_front();
      if (message.message_case() == kind) return message;
    }
  }
  bool AwaitEnd() {
    std::unique_lock<std::mutex> lock(mutex_);
    return arrived_.wait_for(lock, kPatience, [this] { return stream_ == nullptr; });
  }
  void Send(const ToWorker& message) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ASSERT_NE(stream_, nullptr);
    EXPECT_TRUE(stream_->Write(message));
  }
  int streams() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return streams_;
  }
  // Whether no message has come that was not awaited.
  bool silent() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return messages_.empty();
  }

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::mutex mutex_;
  grpc::ServerReaderWriter<cluster::v1::ToShelf, cluster::v1::FromShelf>* contexts_ = nullptr;
  bool contexts_end_ = false;
  std::deque<cluster::v1::FromShelf> shelf_messages_;
  std::condition_variable arrived_;
  std::unique_ptr<const SharedKey> key_;
  bool proves_ = true;
  Stream* stream_ = nullptr;
  int streams_ = 0;
  std::deque<FromWorker> messages_;
};

class ClusterClientTest : public testing::Test {
 public:
  ClusterClientTest() : path(testing::TempDir() + "/model.safetensors") {
    EXPECT_TRUE(WriteSafetensors(path, RandomModel({.layers = {"finch", "finch"}})).ok());
    worker = std::make_unique<Worker>(WorkerOptions{.name = "w", .shelf_bytes = 1 << 20}, MakeCpuBackend(1),
                                      MakeLocalTransportFactory());
  }

  void Start(int port, std::optional<SharedKey> key = {}) { Start(absl::StrCat("127.0.0.1:", port), std::move(key)); }
  void Start(const std::string& address, std::optional<SharedKey> key = {}) {
    client =
        std::make_unique<ClusterClient>(ClusterClientOptions{.coordinator = address,
                                                             .credentials = grpc::InsecureChannelCredentials(),
                                                             .key = std::move(key),
                                                             .log = [this](const std::string& line) { Log(line); }},
                                        *worker);
  }
  void Log(const std::string& line) {
    const std::lock_guard<std::mutex> lock(mutex);
    lines.push_back(line);
    logged.notify_all();
  }
  // Waits for a line of the log that has the text in it.
  bool AwaitLine(const std::string& text) {
    std::unique_lock<std::mutex> lock(mutex);
    return logged.wait_for(lock, kPatience, [&] {
      return std::any_of(lines.begin(), lines.end(),
                         [&](const std::string& line) { return line.find(text) != std::string::npos; });
    });
  }
  ToWorker Welcome(double heartbeat_timeout_seconds) const {
    ToWorker message;
    message.mutable_welcome()->set_model(path);
    message.mutable_welcome()->set_verify("none");
    message.mutable_welcome()->set_cache_dtype("bf16");
    message.mutable_welcome()->set_heartbeat_timeout_seconds(heartbeat_timeout_seconds);
    return message;
  }
  static ToWorker Form() {
    ToWorker message;
    cluster::v1::Form& form = *message.mutable_form();
    form.set_generation(1);
    form.add_first_layers(0);
    form.set_max_sequences(2);
    form.set_max_sequence_tokens(100);
    form.set_cache_tokens(200);
    form.set_max_step_tokens(50);
    form.set_max_logit_rows(2);
    form.set_transport_key(std::string(32, 'k'));
    form.set_sampleable(std::string(5, '\xFF'));
    form.set_repeats_freely(std::string(5, '\0'));
    return message;
  }

  const std::string path;
  std::mutex mutex;
  std::condition_variable logged;
  std::vector<std::string> lines;
  std::unique_ptr<Worker> worker;
  std::unique_ptr<ClusterClient> client;
};

TEST_F(ClusterClientTest, AWorkersLife) {
  Coordinator coordinator;
  Start(coordinator.port());
  EXPECT_EQ(coordinator.Await(FromWorker::kRegister).register_().name(), "w");
  coordinator.Send(Welcome(60));
  EXPECT_EQ(coordinator.Await(FromWorker::kDescribed).described().layers_size(), 2);
  coordinator.Send(Form());
  EXPECT_EQ(coordinator.Await(FromWorker::kJoined).joined().generation(), 1u);
  ToWorker message;
  message.mutable_connect()->set_generation(1);
  message.mutable_connect()->add_addresses("");
  coordinator.Send(message);
  coordinator.Await(FromWorker::kReady);
  message.mutable_step()->set_generation(1);
  for (uint64_t id = 1; id <= 20; ++id) {
    message.mutable_step()->set_id(id);
    coordinator.Send(message);
  }
  for (uint64_t id = 1; id <= 20; ++id) EXPECT_EQ(coordinator.Await(FromWorker::kStepDone).step_done().id(), id);
  message.mutable_ping()->set_number(5);
  coordinator.Send(message);
  EXPECT_EQ(coordinator.Await(FromWorker::kPong).pong().number(), 5u);

  // The client ends once the generation has ended.
  std::thread stop([this] { client->Stop(60); });
  EXPECT_TRUE(coordinator.Await(FromWorker::kLeaving).leaving());
  EXPECT_TRUE(worker->in_group());
  message.mutable_end_generation()->set_generation(1);
  coordinator.Send(message);
  stop.join();
  EXPECT_TRUE(client->Wait().ok());
  EXPECT_TRUE(coordinator.AwaitEnd());
  EXPECT_EQ(coordinator.streams(), 1);
}

// The coordinator reads and fills the shelf over a second stream, which comes again if it breaks.
TEST_F(ClusterClientTest, TheContextsStreamLivesBesideTheOther) {
  Coordinator coordinator;
  Start(coordinator.port());
  EXPECT_EQ(coordinator.Await(FromWorker::kRegister).register_().shelf_bytes(), 1u << 20);
  ToWorker welcome = Welcome(60);
  welcome.mutable_welcome()->set_contexts_token("a token");
  coordinator.Send(welcome);
  coordinator.Await(FromWorker::kDescribed);
  cluster::v1::ToShelf put, fetch;
  put.mutable_put()->mutable_part()->set_kind("wkv");
  put.mutable_put()->set_dtype("f32");
  fetch.mutable_fetch()->set_number(7);
  fetch.mutable_fetch()->set_segment(3);
  for (int stream = 0; stream < 2; ++stream) {
    EXPECT_EQ(coordinator.AwaitShelf().token(), "a token");
    coordinator.SendShelf(put, /*end=*/false);
    EXPECT_EQ(coordinator.AwaitShelf().put_done().error(), "wkv of layer 0 is no part of this stage");
    coordinator.SendShelf(fetch, /*end=*/true);
    const cluster::v1::FromShelf answer = coordinator.AwaitShelf();
    EXPECT_EQ(answer.fetch_done().number(), 7u);
    EXPECT_EQ(answer.fetch_done().error(), "segment 3 is not on the shelf");
    EXPECT_TRUE(coordinator.AwaitContextsEnd());
  }
  EXPECT_EQ(coordinator.AwaitShelf().token(), "a token");
  EXPECT_EQ(coordinator.streams(), 1) << "steps go on";
  client->Stop(0);
  EXPECT_TRUE(coordinator.AwaitContextsEnd());
}

TEST_F(ClusterClientTest, StopDoesNotWaitForAGenerationThatDoesNotEnd) {
  Coordinator coordinator;
  Start(coordinator.port());
  coordinator.Await(FromWorker::kRegister);
  coordinator.Send(Welcome(60));
  coordinator.Send(Form());
  coordinator.Await(FromWorker::kJoined);
  client->Stop(0.2);
  EXPECT_TRUE(coordinator.Await(FromWorker::kLeaving).leaving());
  EXPECT_TRUE(coordinator.AwaitEnd());
}

TEST_F(ClusterClientTest, DialsUntilACoordinatorIsThereAndAgainWhenItComesBack) {
  auto coordinator = std::make_unique<Coordinator>();
  const int port = coordinator->port();
  coordinator.reset();
  Start(port);
  for (int life = 0; life < 3; ++life) {
    coordinator = std::make_unique<Coordinator>(port);
    coordinator->Await(FromWorker::kRegister);
    coordinator->Send(Welcome(60));
    EXPECT_EQ(coordinator->Await(FromWorker::kDescribed).described().error(), "");
    coordinator->Send(Form());
    coordinator->Await(FromWorker::kJoined);
    EXPECT_TRUE(worker->in_group());
    coordinator.reset();
  }
}

TEST_F(ClusterClientTest, LeavesASilentCoordinatorAndDialsAgain) {
  Coordinator coordinator;
  Start(coordinator.port());
  coordinator.Await(FromWorker::kRegister);
  coordinator.Send(Welcome(0.05));
  coordinator.Await(FromWorker::kRegister);
  EXPECT_EQ(coordinator.streams(), 2);
}

TEST_F(ClusterClientTest, RefusalIsFinal) {
  Coordinator coordinator;
  Start(coordinator.port());
  coordinator.Await(FromWorker::kRegister);
  ToWorker message;
  message.set_refused("protocol 1, expected 2");
  coordinator.Send(message);
  const absl::Status status = client->Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("expected 2"));
  EXPECT_TRUE(coordinator.AwaitEnd());
  EXPECT_EQ(coordinator.streams(), 1);
}

const SharedKey kKey(std::string(32, 'k')), kOther(std::string(32, 'o'));

TEST_F(ClusterClientTest, BothSidesProveThatTheyHaveTheKey) {
  Coordinator coordinator;
  coordinator.Ask(kKey);
  Start(coordinator.port(), kKey);
  EXPECT_EQ(coordinator.Await(FromWorker::kRegister).register_().name(), "w");
  coordinator.Send(Welcome(60));
  EXPECT_EQ(coordinator.Await(FromWorker::kDescribed).described().layers_size(), 2);
  EXPECT_EQ(coordinator.streams(), 1);
}

TEST_F(ClusterClientTest, AnotherKeyEndsTheClient) {
  Coordinator coordinator;
  coordinator.Ask(kKey);
  Start(coordinator.port(), kOther);
  const absl::Status status = client->Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("refused this worker: another\\x1bkey"));
  EXPECT_EQ(coordinator.streams(), 0);
}

TEST_F(ClusterClientTest, WithoutTheKeyTheClientSaysSo) {
  Coordinator coordinator;
  coordinator.Ask(kKey);
  Start(coordinator.port());
  EXPECT_THAT(std::string(client->Wait().message()), HasSubstr("it asks for the key"));
}

// An impostor learns nothing of the worker, and the worker goes on looking for its coordinator.
TEST_F(ClusterClientTest, ACoordinatorThatDoesNotProveItselfIsNotRegisteredWith) {
  for (const bool asks : {true, false}) {
    Coordinator impostor;
    if (asks) impostor.Ask(kKey, /*proves=*/false);
    Start(impostor.port(), kKey);
    EXPECT_TRUE(AwaitLine("does not prove that it has the key of the cluster"));
    client.reset();
    EXPECT_TRUE(impostor.AwaitEnd());
    EXPECT_TRUE(impostor.silent()) << "no message of the worker";
    const std::lock_guard<std::mutex> lock(mutex);
    lines.clear();
  }
}

TEST_F(ClusterClientTest, ANameThatDoesNotResolveYetIsTriedAgain) {
  Start("no-such-host.invalid:50052");
  EXPECT_TRUE(AwaitLine("no coordinator at no-such-host.invalid:50052 yet"));
  client->Stop(0);
  EXPECT_TRUE(client->Wait().ok()) << "it has not ended by itself";
}

TEST_F(ClusterClientTest, NoProxyIsUsed) {
  setenv("http_proxy", "http://127.0.0.1:9", 1);
  unsetenv("no_proxy");
  Coordinator coordinator;
  Start(coordinator.port());
  EXPECT_EQ(coordinator.Await(FromWorker::kRegister).register_().name(), "w");
  unsetenv("http_proxy");
}

}  // namespace
}  // namespace goldfinch
