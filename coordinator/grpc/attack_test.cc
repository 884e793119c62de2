// Clients of sockets and bytes that mean harm to a server, and what other clients notice of them.
#include <malloc.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/front/h2_test_util.h"
#include "coordinator/front/raw_client.h"
#include "coordinator/grpc/peer.h"
#include "coordinator/grpc/server.h"
#include "gmock/gmock.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/impl/codegen/service_type.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "gtest/gtest.h"
#include "protos/generate.grpc.pb.h"

namespace goldfinch {
namespace {

using testing::HasSubstr;

constexpr char kPath[] = "/goldfinch.v1.Goldfinch/GetModelInfo";

// Answers GetModelInfo, and Generate for as long as it runs.
class Service final : public v1::Goldfinch::CallbackService {
 public:
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context, const v1::GetModelInfoRequest*,
                                         v1::GetModelInfoResponse* response) override {
    response->set_name(PeerHost(*context));
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(grpc::CallbackServerContext* context,
                                                           const v1::GenerateRequest*) override {
    class Reactor final : public grpc::ServerWriteReactor<v1::GenerateResponse> {
     public:
      Reactor(Service* service, grpc::CallbackServerContext* context) : service_(service), context_(context) {
        OnWriteDone(true);
      }
      void OnWriteDone(bool ok) override {
        if (!ok || service_->stop) return Finish(grpc::Status::OK);
        response_.set_text(PeerHost(*context_));
        StartWrite(&response_);
      }
      void OnDone() override { delete this; }

     private:
      Service* const service_;
      grpc::CallbackServerContext* const context_;
      v1::GenerateResponse response_;
    };
    return new Reactor(this, context);
  }

  std::atomic<bool> stop = false;
};

int64_t ResidentBytes() {
  malloc_trim(0);
  std::ifstream in("/proc/self/statm");
  int64_t size = 0, resident = 0;
  in >> size >> resident;
  return resident * getpagesize();
}

// Sends messages within the windows that the server allows, and never their last byte.
class Parker {
 public:
  explicit Parker(RawClient client) : client_(std::move(client)) {}

  // False once the connection has ended.
  bool Park(uint32_t stream, uint32_t bytes) {
    int64_t stream_window = 65'535;
    if (!client_.Send(OpenStream(stream, kPath) + Data(stream, Prefix(bytes), false))) return false;
    connection_window_ -= 5;
    stream_window -= 5;
    for (int64_t left = bytes - 1; left > 0;) {
      const int64_t part = std::min({left, stream_window, connection_window_, int64_t{16'384}});
      if (part > 0) {
        if (!client_.Send(Data(stream, std::string(part, 'x'), false))) break;
        left -= part;
        stream_window -= part;
        connection_window_ -= part;
        continue;
      }
      const std::string more = client_.Read(1);
      if (more.empty()) return false;
      answers_ += more;
      for (const TestFrame& frame : FramesOf(answers_)) {
        if (frame.type == h2::kGoAway) return false;
        answers_.erase(0, 9 + frame.payload.size());
        if (frame.type != h2::kWindowUpdate) continue;
        (frame.stream == 0 ? connection_window_ : stream_window) += h2::ReadNumber(frame.payload);
      }
    }
    return true;
  }
  const std::string& answers() {
    bool ended = false;
    answers_ += client_.ReadToEnd(&ended, 5);
    return answers_;
  }

 private:
  RawClient client_;
  int64_t connection_window_ = 65'535;
  std::string answers_;
};

class AttackTest : public testing::Test {
 protected:
  void Start(ServerOptions options = {}) {
    service_ = std::make_shared<Service>();
    auto server = Server::Start(options, {service_});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    ExpectServed();
  }

  std::unique_ptr<v1::Goldfinch::Stub> NewStub(const std::string& host = "127.0.0.1") const {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return v1::Goldfinch::NewStub(grpc::CreateCustomChannel(absl::StrCat(host, ":", server_->port()),
                                                            grpc::InsecureChannelCredentials(), arguments));
  }
  // A new client gets its answer.
  void ExpectServed() const {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    v1::GetModelInfoResponse response;
    const grpc::Status status = NewStub()->GetModelInfo(&context, {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.name(), "127.0.0.1");
  }
  RawClient Connect() const {
    RawClient client(server_->port());
    EXPECT_TRUE(client.Send(Opening()));
    return client;
  }

  std::shared_ptr<Service> service_;
  std::unique_ptr<Server> server_;
};

TEST_F(AttackTest, TheServersSettingsAreWhatTheGuardExpects) {
  Start();
  RawClient client = Connect();
  const std::string settings = client.Read(9 + 24);
  const std::vector<TestFrame> frames = FramesOf(settings);
  ASSERT_GE(frames.size(), 1U);
  EXPECT_EQ(frames[0].type, h2::kSettings);
  bool has_window = false;
  for (size_t i = 0; i + 6 <= frames[0].payload.size(); i += 6) {
    const uint32_t id = h2::ReadNumber(frames[0].payload.substr(i, 2));
    const uint32_t value = h2::ReadNumber(frames[0].payload.substr(i + 2, 4));
    EXPECT_NE(id, 5U) << "larger frames: " << value;
    if (id != 4) continue;
    has_window = true;
    EXPECT_EQ(value, 65535U);
  }
  EXPECT_TRUE(has_window);
}

TEST_F(AttackTest, AHeaderBlockOfTwoGigabytes) {
  Start();
  const int64_t before = ResidentBytes();
  std::vector<RawClient> clients;
  for (int i = 0; i < 4; ++i) {
    clients.push_back(Connect());
    // A header whose value is said to have 2 GB.
    EXPECT_TRUE(
        clients.back().Send(MakeFrame(h2::kHeaders, 0, 1, std::string("\x00\x01x\x7f\x81\xff\xff\xff\x07", 9))));
    const std::string part = MakeFrame(h2::kContinuation, 0, 1, std::string(16'384, 'a'));
    for (int part_number = 0; part_number < 4'000; ++part_number) {
      if (!clients.back().Send(part)) break;
    }
    bool ended = false;
    EXPECT_THAT(clients.back().ReadToEnd(&ended), HasSubstr("a header block of 65545 bytes, the limit is 65536"));
    EXPECT_TRUE(ended);
    ExpectServed();
  }
  EXPECT_LT(ResidentBytes() - before, 50'000'000);
}

TEST_F(AttackTest, HeadersThatExpand) {
  Start();
  const int64_t before = ResidentBytes();
  // An entry of 4 KB in the table, and 60,000 references to it in each block.
  const std::string entry = std::string("\x40\x01x\x7f\x91\x1e", 6) + std::string(4'000, 'a');
  RawClient client = Connect();
  for (uint32_t id = 1; id < 20; id += 2) {
    std::string bytes = MakeFrame(h2::kHeaders, 0, id, entry + std::string(12'000, '\xbe'));
    bytes += MakeFrame(h2::kContinuation, 0, id, std::string(16'000, '\xbe'));
    bytes += MakeFrame(h2::kContinuation, h2::kEndHeaders, id, std::string(16'000, '\xbe'));
    client.Send(bytes);
  }
  ExpectServed();
  EXPECT_LT(ResidentBytes() - before, 100'000'000);
}

TEST_F(AttackTest, RapidResets) {
  Start();
  RawClient client = Connect();
  for (uint32_t id = 1; id < 40'000; id += 2) {
    if (!client.Send(OpenStream(id, kPath) + MakeFrame(h2::kReset, 0, id, Number(h2::kCancel, 4)))) break;
  }
  bool ended = false;
  EXPECT_THAT(client.ReadToEnd(&ended), HasSubstr("too many RST_STREAM frames"));
  EXPECT_TRUE(ended);
  ExpectServed();
}

TEST_F(AttackTest, UnfinishedMessagesHarmNobodyElse) {
  ServerOptions options;
  options.front.limits.message_bytes_max = int64_t{64} << 20;
  // Room for all four: this machine's clients have one address, which may have half.
  options.front.limits.total_bytes_max = int64_t{512} << 20;
  Start(options);
  const int64_t before = ResidentBytes();
  const auto stub = NewStub();
  grpc::ClientContext context;
  const auto stream = stub->Generate(&context, {});
  v1::GenerateResponse response;
  ASSERT_TRUE(stream->Read(&response));

  // Four of 60 MB on a connection each, all but the last byte.
  std::vector<Parker> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back(Connect());
    EXPECT_TRUE(clients.back().Park(1, 60'000'000));
    for (int reads = 0; reads < 100; ++reads) ASSERT_TRUE(stream->Read(&response));
  }
  // And up to two thousand short ones.
  Parker many(Connect());
  uint32_t id = 1;
  while (id < 4'000 && many.Park(id, 60'000)) id += 2;
  EXPECT_LT(id, 4'000U);
  EXPECT_THAT(many.answers(), HasSubstr("bytes of requests that are not complete, the limit is 67174399"));
  for (int reads = 0; reads < 1'000; ++reads) ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.text(), "127.0.0.1");
  for (int i = 0; i < 20; ++i) ExpectServed();
  service_->stop = true;
  while (stream->Read(&response)) continue;
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_LT(ResidentBytes() - before, 700'000'000);
}

TEST_F(AttackTest, ASlowMessageIsReset) {
  ServerOptions options;
  options.front.limits.body_seconds = 0.5;
  Start(options);
  RawClient client = Connect();
  EXPECT_TRUE(client.Send(OpenStream(1, kPath) + Data(1, Prefix(10) + "12345", false)));
  std::string bytes;
  while (bytes.find("less than 16384 bytes of the message came in 0.5 s") == std::string::npos) {
    const std::string part = client.Read(1);
    ASSERT_NE(part, "") << "the connection has ended";
    bytes += part;
  }
  // The connection goes on.
  EXPECT_TRUE(client.Send(OpenStream(3, kPath) + Data(3, Prefix(0), true)));
  while (bytes.find("127.0.0.1") == std::string::npos) {
    const std::string part = client.Read(1);
    ASSERT_NE(part, "") << "the connection has ended";
    bytes += part;
  }
}

TEST_F(AttackTest, LongMessagesWithinTheLimitArrive) {
  ServerOptions options;
  options.front.limits.message_bytes_max = int64_t{32} << 20;
  Start(options);
  v1::GetModelInfoRequest request;
  v1::GenerateRequest message;
  message.set_text(std::string(30'000'000, 'x'));
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      grpc::ClientContext context;
      const auto stub = NewStub();
      const auto stream = stub->Generate(&context, message);
      v1::GenerateResponse response;
      EXPECT_TRUE(stream->Read(&response));
      context.TryCancel();
      stream->Finish();
    });
  }
  for (std::thread& thread : threads) thread.join();
  message.set_text(std::string(33 << 20, 'x'));
  grpc::ClientContext context;
  const auto stub = NewStub();
  const auto stream = stub->Generate(&context, message);
  v1::GenerateResponse response;
  EXPECT_FALSE(stream->Read(&response));
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("bytes, the limit is 33554432"));
}

TEST_F(AttackTest, ADescriptorsNumberIsNotReusedWhileACallLives) {
  Start();
  // Many clients that come and go, from another address, while streams of this one see themselves cut off.
  for (int round = 0; round < 10; ++round) {
    const auto stub = NewStub();
    grpc::ClientContext context;
    const auto stream = stub->Generate(&context, {});
    v1::GenerateResponse response;
    for (int i = 0; i < 10; ++i) {
      ASSERT_TRUE(stream->Read(&response));
      EXPECT_EQ(response.text(), "127.0.0.1");
      ExpectServed();
    }
    context.TryCancel();
    stream->Finish();
  }
}

TEST_F(AttackTest, Ipv6Peers) {
  ServerOptions options;
  options.front.hosts = {"::"};
  Start(options);
  grpc::ClientContext context;
  v1::GetModelInfoResponse response;
  ASSERT_TRUE(NewStub("[::1]")->GetModelInfo(&context, {}, &response).ok());
  EXPECT_EQ(response.name(), "::1");
}

TEST_F(AttackTest, StreamsEndAtShutdown) {
  Start();
  const auto stub = NewStub();
  grpc::ClientContext context;
  const auto stream = stub->Generate(&context, {});
  v1::GenerateResponse response;
  ASSERT_TRUE(stream->Read(&response));
  std::vector<RawClient> idle;
  for (int i = 0; i < 10; ++i) idle.push_back(Connect());
  std::thread stopper([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    service_->stop = true;
  });
  std::thread reader([&] {
    while (stream->Read(&response)) continue;
    EXPECT_TRUE(stream->Finish().ok()) << "the stream may end by itself";
  });
  // gRPC waits for the clients' answers to its last ping, which some of these never give.
  server_->Shutdown(2);
  stopper.join();
  reader.join();
  for (RawClient& client : idle) {
    bool ended = false;
    client.ReadToEnd(&ended);
    EXPECT_TRUE(ended);
  }
}

}  // namespace
}  // namespace goldfinch
