// goldfinch status, and how all commands connect to a server, against a fake one.
#include "absl/status/status.h"

#include <array>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "base/credentials.h"
#include "base/test_certificates.h"
#include "clients/cli/remote/remote_commands.h"
#include "clients/cli/remote/remote_test_util.h"
#include "clients/cli/terminal/terminal.h"
#include "gmock/gmock.h"
#include "grpcpp/security/server_credentials.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

using StatusTest = RemoteCommandsTest;

std::string Read(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

TEST_F(StatusTest, ApiKey) {
  StatusOptions options;
  options.remote = remote_;
  ASSERT_TRUE(RunCommand(RunStatus, options).status.ok());
  EXPECT_EQ(service_.authorization(), "");
  options.remote.api_key_file = Write("key", "  abc-123\n");
  ASSERT_TRUE(RunCommand(RunStatus, options).status.ok());
  EXPECT_EQ(service_.authorization(), "Bearer abc-123");
  for (const auto& [name, content, says] : std::vector<std::array<std::string, 3>>{
           {"empty", "\n", "no API key"}, {"two", "a\nb\n", "one line"}, {"control", "a\x01", "one line"}}) {
    options.remote.api_key_file = Write(name, content);
    EXPECT_THAT(std::string(RunCommand(RunStatus, options).status.message()), HasSubstr(says));
  }
  options.remote.api_key_file = testing::TempDir() + "/no-such-key";
  EXPECT_TRUE(absl::IsNotFound(RunCommand(RunStatus, options).status));
}

TEST_F(StatusTest, Tls) {
  const TestAuthority authority(testing::TempDir(), "ours"), stranger(testing::TempDir(), "stranger");
  const TlsFiles files = authority.Issue("server");
  grpc::SslServerCredentialsOptions server(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  server.pem_root_certs = Read(files.roots);
  server.pem_key_cert_pairs = {{.private_key = Read(files.key), .cert_chain = Read(files.certificate)}};
  Serve(grpc::SslServerCredentials(server));
  const TlsFiles client = authority.Issue("client");
  StatusOptions options;
  options.remote = remote_;
  options.remote.root_cert = authority.roots();
  options.remote.client_cert = client.certificate;
  options.remote.client_key = client.key;
  EXPECT_TRUE(RunCommand(RunStatus, options).status.ok());
  const auto unavailable = [&](const char* what) {
    const CommandOutput output = RunCommand(RunStatus, options);
    EXPECT_TRUE(absl::IsUnavailable(output.status)) << what << output.status;
    EXPECT_EQ(output.err, "") << what;  // gRPC logs nothing of its own
  };
  options.remote.root_cert = stranger.roots();
  unavailable("a root that did not sign the server's certificate");
  options.remote.root_cert = authority.roots();
  options.remote.client_cert.clear();
  EXPECT_EQ(ExitCode(RunCommand(RunStatus, options).status), 2);
  options.remote.client_key.clear();
  unavailable("no certificate, where the server asks for one");
}

TEST_F(StatusTest, Status) {
  service_.model.set_name("demo");
  service_.model.set_max_model_len(1 << 20);
  service_.cluster.set_requests_running(3);
  service_.cluster.set_prompt_tokens(uint64_t{1} << 60);
  v1::GroupInfo& group = *service_.cluster.add_groups();
  group.set_state(v1::READY);
  group.add_stages()->set_worker("w1");
  StatusOptions options;
  options.remote = remote_;
  CommandOutput output = RunCommand(RunStatus, options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_THAT(output.out, StartsWith("model     demo, "));
  EXPECT_THAT(output.out, HasSubstr("3 running"));
  options.json = true;
  output = RunCommand(RunStatus, options);
  const nlohmann::json json = nlohmann::json::parse(output.out);
  EXPECT_EQ(json["model"]["max_model_len"], 1 << 20);
  EXPECT_EQ(json["cluster"]["prompt_tokens"], uint64_t{1} << 60);
  EXPECT_EQ(json["cluster"]["groups"][0]["state"], "READY");
  EXPECT_EQ(json["cluster"]["groups"][0]["stages"][0]["worker"], "w1");
}

TEST_F(StatusTest, NamesCannotSteerTheTerminal) {
  const std::string hostile = "\x1b[2J\u009b31m\u202e\u2066\x7f\n";
  service_.model.set_name(hostile);
  service_.model.set_vocabulary(hostile);
  service_.cluster.add_spare_workers(hostile);
  v1::GroupInfo& group = *service_.cluster.add_groups();
  group.set_message(hostile);
  v1::StageInfo& stage = *group.add_stages();
  stage.set_worker(hostile);
  stage.set_address(hostile);
  stage.set_device(hostile);
  v1::MemoryPart& part = *stage.add_memory();
  part.set_name(hostile);
  part.set_bytes(1);
  StatusOptions options;
  options.remote = remote_;
  for (const bool json : {false, true}) {
    options.json = json;
    const CommandOutput output = RunCommand(RunStatus, options);
    ASSERT_TRUE(output.status.ok()) << output.status;
    for (const char* raw : {"\x1b", "\u009b", "\u202e", "\u2066", "\x7f"}) EXPECT_THAT(output.out, Not(HasSubstr(raw)));
    EXPECT_THAT(output.out, HasSubstr(json ? "\\u001b[2J\\u009b31m\\u202e\\u2066\\u007f\\n"
                                           : "\\x1b[2J\\u009b31m\\u202e\\u2066\\x7f\\x0a"));
  }
}

TEST_F(StatusTest, StatusBeforeTheModelIsKnown) {
  service_.model_status = grpc::Status(grpc::StatusCode::UNAVAILABLE, "no worker");
  StatusOptions options;
  options.remote = remote_;
  CommandOutput output = RunCommand(RunStatus, options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_THAT(output.out, StartsWith("model     not known yet"));
  service_.model_status = grpc::Status(grpc::StatusCode::UNAUTHENTICATED, "no key");
  EXPECT_TRUE(absl::IsUnauthenticated(RunCommand(RunStatus, options).status));
}

}  // namespace
}  // namespace goldfinch
