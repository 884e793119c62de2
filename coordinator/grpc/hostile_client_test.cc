// Clients that hold messages back, send too many, compress them, guess keys, or do not read what they asked for.
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/calls/key_ring.h"
#include "coordinator/grpc/raw_call_client.h"
#include "coordinator/grpc/service_test_util.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "gtest/gtest.h"
#include "spdlog/sinks/base_sink.h"
#include "spdlog/spdlog.h"
#include "zlib.h"

namespace goldfinch {
namespace {

constexpr char kKey[] = "0123456789abcdef";
constexpr char kOther[] = "another-key-of-mine";
constexpr int64_t kFirstWindow = 65535;  // what every stream may send before it is asked for more

RawCallClient::Headers Bearer(const std::string& key) { return {{"authorization", "Bearer " + key}}; }

int64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  int64_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * 4096;
}

class HostileClientTest : public testing::Test {
 protected:
  static std::shared_ptr<const KeyRing> Keys(const std::string& text) {
    const std::string path = testing::TempDir() + "/hostile_keys.txt";
    std::ofstream(path) << text;
    return *KeyRing::Open(path);
  }
  static std::shared_ptr<const KeyRing> Keys() { return Keys(absl::StrCat(kKey, "\n", kOther, "\n")); }
  // A whole call of Tokenize.
  static grpc::Status Tokenize(ServiceHarness& harness, const std::string& key, int bytes = 5) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + key);
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    v1::TokenizeRequest request;
    request.set_text(std::string(bytes, 'x'));
    v1::TokenizeResponse response;
    return harness.stub().Tokenize(&context, request, &response);
  }
};

TEST_F(HostileClientTest, WithoutAKeyNothingOfTheMessageIsAskedFor) {
  ServiceHarness harness({.api_keys = Keys()});
  for (const char* method : {"Generate", "Score", "Tokenize", "Detokenize", "GetModelInfo", "GetClusterInfo"}) {
    RawCallClient client(harness.server().port());
    client.Begin(1, method);
    client.Send(1, RawCallClient::Prefix(10 << 20) + std::string(60'000, 'x'));
    EXPECT_EQ(client.WaitStatus(), grpc::StatusCode::UNAUTHENTICATED) << method;
    EXPECT_FALSE(client.WaitWindow(1, kFirstWindow + 1, 0.1)) << method;
  }
  EXPECT_EQ(harness.Counted("request_failure_total", "UNAUTHENTICATED"), 6);
}

TEST_F(HostileClientTest, CompressedMessagesAreRefusedBeforeTheyAreInflated) {
  ServiceHarness harness;
  // 60 MB of zeros in less than the first window.
  std::string zipped(kFirstWindow, '\0');
  const std::string zeros(60'000'000, '\0');
  z_stream stream = {};
  ASSERT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, 31, 9, Z_DEFAULT_STRATEGY), Z_OK);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(zeros.data()));
  stream.avail_in = zeros.size();
  stream.next_out = reinterpret_cast<Bytef*>(zipped.data());
  stream.avail_out = zipped.size();
  ASSERT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  zipped.resize(stream.total_out);
  deflateEnd(&stream);
  const int64_t before = ResidentBytes();
  for (const char* method : {"Generate", "Tokenize"}) {
    for (const char* encoding : {"gzip", "deflate"}) {
      RawCallClient client(harness.server().port());
      client.Begin(1, method, {{"grpc-encoding", encoding}});
      client.Send(1, RawCallClient::Prefix(zipped.size(), true) + zipped, true);
      EXPECT_EQ(client.WaitStatus(), grpc::StatusCode::UNIMPLEMENTED);
    }
  }
  EXPECT_LT(ResidentBytes(), before + (32 << 20));
  // A message may say that it is compressed although its call did not.
  RawCallClient liar(harness.server().port());
  liar.Begin(1, "Tokenize");
  liar.Send(1, RawCallClient::Prefix(zipped.size(), true) + zipped, true);
  EXPECT_EQ(liar.WaitStatus(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_LT(ResidentBytes(), before + (32 << 20));
}

TEST_F(HostileClientTest, AMessageThatDoesNotComeIsNotWaitedForForEver) {
  ServiceHarness harness({.stall_timeout_seconds = 0.5});
  RawCallClient silent(harness.server().port());
  silent.Begin(1, "Generate");
  RawCallClient partial(harness.server().port());
  partial.Begin(1, "Tokenize");
  partial.Send(1, RawCallClient::Prefix(1'000'000) + "some");
  EXPECT_EQ(silent.WaitStatus(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(partial.WaitStatus(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(HostileClientTest, ACallWithoutAMessageIsRefused) {
  ServiceHarness harness;
  for (const char* method : {"Score", "Detokenize"}) {
    RawCallClient client(harness.server().port());
    client.Begin(1, method);
    client.Send(1, "", true);
    EXPECT_EQ(client.WaitStatus(), grpc::StatusCode::INVALID_ARGUMENT);
  }
}

TEST_F(HostileClientTest, WhatFollowsTheMessageIsNotRead) {
  ServiceHarness harness;
  RawCallClient client(harness.server().port());
  client.Begin(1, "Generate");
  const std::string message = Simple().SerializeAsString();
  client.Send(1, RawCallClient::Prefix(message.size()) + message);
  const uint64_t number = harness.dispatcher().Next();
  client.Send(1, RawCallClient::Prefix(10 << 20) + std::string(60'000, 'x'));
  EXPECT_FALSE(client.WaitWindow(1, 3 * kFirstWindow, 0.3)) << "a message that is read gets a megabyte at a time";
  harness.dispatcher().SampleDone(number, 0, Finish::kLength);
  harness.dispatcher().Done(number, absl::OkStatus());
  EXPECT_EQ(client.WaitStatus(), grpc::StatusCode::OK);
}

TEST_F(HostileClientTest, ParkedMessagesOfOneClientEndNobodyElsesCalls) {
  ServiceHarness harness({.api_keys = Keys()});
  grpc::ClientContext context;
  context.AddMetadata("authorization", absl::StrCat("Bearer ", kOther));
  const auto reader = harness.stub().Generate(&context, Simple());
  const uint64_t number = harness.dispatcher().Next();

  // Eight connections with 100 unfinished messages each. Those that have no place get no more than the first window.
  std::vector<std::unique_ptr<RawCallClient>> clients;
  for (int i = 0; i < 8; ++i) {
    clients.push_back(std::make_unique<RawCallClient>(harness.server().port()));
    for (uint32_t stream = 1; stream < 200; stream += 2) {
      clients.back()->Begin(stream, "Tokenize", Bearer(kKey));
      clients.back()->Send(stream, RawCallClient::Prefix(15 << 20) + "x");
    }
  }
  int admitted = 0;
  for (const auto& client : clients) {
    client->WaitWindow(1, int64_t{1} << 40, 0.2);  // reads what there is
    for (uint32_t stream = 1; stream < 200; stream += 2) admitted += client->window(stream) > kFirstWindow;
  }
  // The gate has eight places for a client. The front may let fewer come at once: their bytes must fit its pool.
  EXPECT_LE(admitted, 8) << "an eighth of all places";
  EXPECT_GT(admitted, 0);

  harness.dispatcher().Tokens(number, 0, Ids("still here"));
  harness.dispatcher().SampleDone(number, 0, Finish::kLength);
  harness.dispatcher().Done(number, absl::OkStatus());
  const Answer answer = ReadAll(reader.get());
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text(), "still here");
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(Tokenize(harness, kOther, 1 << 20).ok());
}

TEST_F(HostileClientTest, AnAnswerThatNobodyReadsIsGivenUp) {
  ServiceHarness harness({.stall_timeout_seconds = 0.3});
  RawCallClient client(harness.server().port());
  v1::TokenizeRequest request;
  request.set_text(std::string(200'000, 'x'));  // the answer has twice as many bytes, the client's window is 64 KiB
  const std::string message = request.SerializeAsString();
  client.Begin(1, "Tokenize");
  ASSERT_TRUE(client.WaitWindow(0, 10, 10));
  client.Send(1, (RawCallClient::Prefix(message.size()) + message).substr(0, 60'000));
  ASSERT_TRUE(client.WaitWindow(1, static_cast<int64_t>(message.size()) + 5, 10));
  client.Send(1, (RawCallClient::Prefix(message.size()) + message).substr(60'000), true);
  EXPECT_EQ(client.WaitStatus(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(harness.Counted("request_failure_total", "RESOURCE_EXHAUSTED"), 1);
}

TEST_F(HostileClientTest, EntriesThatMultiplyAreCountedFirst) {
  ServiceHarness harness;
  std::string empty_continuations;
  for (int i = 0; i < 7'000'000; ++i) empty_continuations.append("\x1a\0", 2);
  v1::ScoreRequest parsed;
  const int64_t before = ResidentBytes();
  RawCallClient client(harness.server().port());
  client.Begin(1, "Score");
  client.Send(1, RawCallClient::Prefix(empty_continuations.size()));
  ASSERT_TRUE(client.WaitWindow(1, 1 << 20, 10));
  size_t sent = 0;
  while (sent < empty_continuations.size()) {
    const int64_t allowed = client.window(1) - 5;
    const std::string part = empty_continuations.substr(sent, allowed - sent);
    client.Send(1, part);
    sent += part.size();
    ASSERT_TRUE(sent == empty_continuations.size() || client.WaitWindow(1, static_cast<int64_t>(sent) + 6, 10));
  }
  EXPECT_EQ(client.WaitStatus(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_LT(ResidentBytes(), before + (100 << 20)) << "14 MB; parsed, it is 500 MB";
}

// Keeps the lines that are logged while it lives.
class LineCounter : public spdlog::sinks::base_sink<std::mutex> {
 public:
  std::vector<std::string> lines() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return lines_;
  }

 private:
  // Under mutex_, which is the base's.
  void sink_it_(const spdlog::details::log_msg& message) override {
    lines_.emplace_back(message.payload.data(), message.payload.size());
  }
  void flush_() override {}

  std::vector<std::string> lines_;
};

TEST_F(HostileClientTest, WrongKeysLeaveATraceThatDoesNotFillTheLog) {
  const auto log = std::make_shared<LineCounter>();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", log));
  ServiceHarness harness({.api_keys = Keys()});
  int unauthenticated = 0, exhausted = 0;
  for (int i = 0; i < 600; ++i) {
    const grpc::StatusCode code = Tokenize(harness, absl::StrCat("guess-number-", i)).error_code();
    unauthenticated += code == grpc::StatusCode::UNAUTHENTICATED;
    exhausted += code == grpc::StatusCode::RESOURCE_EXHAUSTED;
  }
  EXPECT_TRUE(Tokenize(harness, kKey).ok()) << "who has a key may share the address";
  EXPECT_EQ(unauthenticated + exhausted, 600);
  EXPECT_GE(unauthenticated, 20);
  EXPECT_GE(exhausted, 500);
  EXPECT_EQ(harness.Counted("request_failure_total", "UNAUTHENTICATED"), unauthenticated);
  EXPECT_EQ(harness.Counted("request_failure_total", "Tokenize"), 600);
  const std::vector<std::string> lines = log->lines();
  EXPECT_THAT(lines, testing::Contains(testing::HasSubstr(
                         "method=Tokenize code=UNAUTHENTICATED peer=127.0.0.1 message=\"the API key is not known\"")));
  EXPECT_THAT(lines, testing::Contains(testing::HasSubstr("too many wrong API keys from 127.0.0.1: try again in ")));
  EXPECT_LT(lines.size(), 200u);
  for (const std::string& line : lines) EXPECT_THAT(line, testing::Not(testing::HasSubstr("guess")));
}

TEST_F(HostileClientTest, ClusterInfoIsForOperatorsOnceThereAreRoles) {
  ServiceHarness harness({.api_keys = Keys(absl::StrCat("keys:\n- name: ops\n  roles: [operator]\n  key: ", kKey,
                                                        "\n- name: user\n  key: ", kOther, "\n"))});
  const auto call = [&](const std::string& key) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + key);
    v1::GetClusterInfoResponse response;
    return harness.stub().GetClusterInfo(&context, {}, &response);
  };
  EXPECT_TRUE(call(kKey).ok());
  EXPECT_EQ(call(kOther).error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(call(kOther).error_message(), "GetClusterInfo is for API keys with the role operator");
  EXPECT_TRUE(Tokenize(harness, kOther).ok());
  EXPECT_EQ(harness.Counted("request_failure_total", "PERMISSION_DENIED"), 2);
}

TEST_F(HostileClientTest, RequestsCarryTheirClient) {
  ServiceHarness harness({.api_keys = Keys()});
  grpc::ClientContext context;
  context.AddMetadata("authorization", absl::StrCat("Bearer ", kOther));
  const auto reader = harness.stub().Generate(&context, Simple());
  const uint64_t number = harness.dispatcher().Next();
  ASSERT_NE(harness.dispatcher().RequestOf(number).client, nullptr);
  EXPECT_EQ(harness.dispatcher().RequestOf(number).client->name, "key-2");
  EXPECT_EQ(harness.dispatcher().RequestOf(number).client->limits.max_priority, 100);
  harness.dispatcher().Done(number, absl::InternalError("over"));
  ReadAll(reader.get());
}

}  // namespace
}  // namespace goldfinch
