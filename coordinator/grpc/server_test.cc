#include "coordinator/grpc/server.h"

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/credentials.h"
#include "base/test_certificates.h"
#include "coordinator/grpc/service_test_util.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/support/byte_buffer.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using testing::HasSubstr;

std::string Target(const Server& server) { return absl::StrCat("127.0.0.1:", server.port()); }

grpc::ByteBuffer ToBuffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

std::string FromBuffer(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  if (!buffer.Valid()) return "";
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

// One message there and one back, of any method: the services of gRPC itself have no headers.
grpc::Status CallRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                     const std::string& request, std::string* response) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareCall(&context, method, &queue);
  grpc::ByteBuffer buffer;
  grpc::Status status;
  void* tag = nullptr;
  bool ok = false;
  call->StartCall(nullptr);
  EXPECT_TRUE(queue.Next(&tag, &ok));
  call->WriteLast(ToBuffer(request), grpc::WriteOptions(), nullptr);
  EXPECT_TRUE(queue.Next(&tag, &ok));
  call->Read(&buffer, nullptr);
  EXPECT_TRUE(queue.Next(&tag, &ok));
  call->Finish(&status, nullptr);
  EXPECT_TRUE(queue.Next(&tag, &ok));
  *response = FromBuffer(buffer);
  return status;
}

// A protobuf field of bytes.
std::string Field(int number, const std::string& text) {
  return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(text.size())} + text;
}

// 1 is SERVING, 2 NOT_SERVING; -1 an unknown service.
int Health(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  std::string response;
  const grpc::Status status =
      CallRaw(channel, "/grpc.health.v1.Health/Check", service.empty() ? "" : Field(1, service), &response);
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) return -1;
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.size() == 2 && response[0] == 8 ? response[1] : 0;
}

class ServerTest : public testing::Test {
 protected:
  std::unique_ptr<Server> Start(const TlsFiles& files) {
    ServerOptions options;
    options.health_service = kPublicServiceName;
    options.front.tls = files;
    auto server = Server::Start(options, MakePublicServices(&dispatcher_, &dispatcher_, &metrics_, {}));
    EXPECT_TRUE(server.ok()) << server.status();
    return *std::move(server);
  }
  static std::shared_ptr<grpc::Channel> Connect(const Server& server, const TlsFiles& files) {
    return grpc::CreateChannel(Target(server), *MakeChannelCredentials(files));
  }
  // The status of a call over the channel.
  static grpc::Status Call(const std::shared_ptr<grpc::Channel>& channel) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    v1::GetModelInfoResponse response;
    return v1::Goldfinch::NewStub(channel)->GetModelInfo(&context, {}, &response);
  }

  FakeDispatcher dispatcher_;
  Metrics metrics_{"test"};
  const TestAuthority authority_{testing::TempDir(), "authority"};
  const TestAuthority stranger_{testing::TempDir(), "stranger"};
};

TEST_F(ServerTest, PlainTextByDefault) {
  const auto server = Start({});
  EXPECT_TRUE(Call(Connect(*server, {})).ok());
}

TEST_F(ServerTest, Tls) {
  const TlsFiles files = authority_.Issue("server");
  const auto server = Start({files.certificate, files.key, ""});
  EXPECT_TRUE(Call(Connect(*server, {"", "", authority_.roots()})).ok());
  // A server of another authority, and no TLS at all.
  EXPECT_EQ(Call(Connect(*server, {"", "", stranger_.roots()})).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Call(Connect(*server, {})).error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ServerTest, MutualTls) {
  const auto server = Start(authority_.Issue("server"));
  EXPECT_TRUE(Call(Connect(*server, authority_.Issue("client"))).ok());
  // Clients without a certificate, or with one of another authority, are refused.
  EXPECT_EQ(Call(Connect(*server, {"", "", authority_.roots()})).error_code(), grpc::StatusCode::UNAVAILABLE);
  TlsFiles strange = stranger_.Issue("strange");
  strange.roots = authority_.roots();
  EXPECT_EQ(Call(Connect(*server, strange)).error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ServerTest, HealthFollowsReadiness) {
  const auto server = Start({});
  const auto channel = Connect(*server, {});
  EXPECT_EQ(Health(channel, ""), 2);
  EXPECT_EQ(Health(channel, kPublicServiceName), 2);
  server->SetReady(true);
  EXPECT_EQ(Health(channel, kPublicServiceName), 1);
  EXPECT_EQ(Health(channel, ""), 1);
  server->SetReady(false);
  EXPECT_EQ(Health(channel, ""), 2);
  EXPECT_EQ(Health(channel, kPublicServiceName), 2);
  EXPECT_EQ(Health(channel, "other.Service"), -1);
}

TEST_F(ServerTest, ReflectionListsTheServices) {
  const auto server = Start({});
  std::string response;
  const grpc::Status status = CallRaw(
      Connect(*server, {}), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Field(7, "*"), &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(response, HasSubstr("goldfinch.v1.Goldfinch"));
  EXPECT_THAT(response, HasSubstr("goldfinch.v1.Contexts"));
  EXPECT_THAT(response, HasSubstr("grpc.reflection.v1alpha.ServerReflection"));
}

TEST_F(ServerTest, ReflectionCanBeTurnedOff) {
  auto server = Server::Start({.reflection = false}, MakePublicServices(&dispatcher_, &dispatcher_, &metrics_, {}));
  ASSERT_TRUE(server.ok()) << server.status();
  const auto channel = Connect(**server, {});
  std::string response;
  EXPECT_EQ(CallRaw(channel, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Field(7, "*"), &response)
                .error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_TRUE(Call(channel).ok());
}

TEST_F(ServerTest, MalformedRequestsAreRefused) {
  const auto server = Start({});
  std::string response;
  // Text that is not UTF-8, and bytes that are no message.
  for (const std::string& bytes : {Field(1, "\xff\xfe"), std::string("\xff\xff\xff\xff")}) {
    for (const std::string method : {"Generate", "Score", "Tokenize"}) {
      const grpc::Status status = CallRaw(Connect(*server, {}), "/goldfinch.v1.Goldfinch/" + method, bytes, &response);
      EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
      EXPECT_EQ(status.error_message(), "the request, of 4 bytes, is not a valid goldfinch.v1." + method +
                                            "Request message, or a text in it is not UTF-8");
    }
  }
  EXPECT_TRUE(Call(Connect(*server, {})).ok());
}

TEST_F(ServerTest, ATakenPortIsAnErrorThatNamesIt) {
  const auto server = Start({});
  ServerOptions options;
  options.front.port = server->port();
  const absl::Status status = Server::Start(options, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(std::string(status.message()), absl::StrCat("cannot listen on ", Target(*server), ": the port is taken"));
}

TEST_F(ServerTest, AHostThatIsNoneIsAnError) {
  ServerOptions options;
  options.front.hosts = {"256.0.0.1"};
  EXPECT_EQ(Server::Start(options, {}).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(ServerTest, ShutdownIsFinalAndMayBeRepeated) {
  const auto server = Start({});
  const auto channel = Connect(*server, {});
  EXPECT_TRUE(Call(channel).ok());
  server->Shutdown(0);
  server->Shutdown(0);
  EXPECT_EQ(Call(channel).error_code(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace goldfinch
