// The commands that talk to a server, against one that answers as each test says.
#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/credentials.h"
#include "base/test_certificates.h"
#include "clients/cli/commands.h"
#include "clients/cli/options.h"
#include "clients/cli/terminal.h"
#include "gmock/gmock.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "grpcpp/server_context.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "protos/generate.grpc.pb.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

using Writer = grpc::ServerWriter<v1::GenerateResponse>;

class FakeService final : public v1::Goldfinch::Service {
 public:
  std::function<grpc::Status(grpc::ServerContext*, const v1::GenerateRequest&, Writer*)> generate;
  grpc::Status model_status;
  v1::GetModelInfoResponse model;
  v1::GetClusterInfoResponse cluster;

  std::string authorization() {
    std::lock_guard<std::mutex> lock(mutex_);
    return authorization_;
  }

 private:
  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request, Writer* writer) override {
    See(*context);
    return generate(context, *request, writer);
  }

  // Byte tokens.
  grpc::Status Detokenize(grpc::ServerContext* context, const v1::DetokenizeRequest* request,
                          v1::DetokenizeResponse* response) override {
    See(*context);
    for (const uint32_t id : request->ids()) response->mutable_raw()->push_back(static_cast<char>(id - 1));
    return grpc::Status::OK;
  }

  grpc::Status GetModelInfo(grpc::ServerContext* context, const v1::GetModelInfoRequest*,
                            v1::GetModelInfoResponse* response) override {
    See(*context);
    *response = model;
    return model_status;
  }

  grpc::Status GetClusterInfo(grpc::ServerContext* context, const v1::GetClusterInfoRequest*,
                              v1::GetClusterInfoResponse* response) override {
    See(*context);
    *response = cluster;
    return grpc::Status::OK;
  }

  void See(const grpc::ServerContext& context) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = context.client_metadata().find("authorization");
    authorization_ =
        found == context.client_metadata().end() ? "" : std::string(found->second.data(), found->second.size());
  }

  std::mutex mutex_;
  std::string authorization_;
};

struct Output {
  absl::Status status;
  std::string out;
  std::string err;
};

template <typename Options>
Output RunCommand(absl::Status (*command)(const Options&), const Options& options) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Output output;
  output.status = command(options);
  EXPECT_TRUE(FlushOutput().ok());
  output.out = testing::internal::GetCapturedStdout();
  output.err = testing::internal::GetCapturedStderr();
  return output;
}

class RemoteCommandsTest : public testing::Test {
 protected:
  void SetUp() override { Serve(grpc::InsecureServerCredentials()); }

  void Serve(const std::shared_ptr<grpc::ServerCredentials>& credentials) {
    if (server_) server_->Shutdown();
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", credentials, &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    remote_.server = "127.0.0.1:" + std::to_string(port);
    remote_.deadline_seconds = 60;  // of what would hang
  }

  void TearDown() override { server_->Shutdown(); }

  GenerateOptions Generate() const {
    GenerateOptions options;
    options.remote = remote_;
    options.prompt = "Once";
    options.has_prompt = true;
    options.has_seed = true;
    options.seed = 7;
    return options;
  }

  std::string Write(const std::string& name, const std::string& content) {
    std::string path = testing::TempDir() + "/" + name;
    std::ofstream(path) << content;
    return path;
  }

  FakeService service_;
  std::unique_ptr<grpc::Server> server_;
  RemoteOptions remote_;
};

v1::GenerateResponse Text(uint32_t index, const std::string& text) {
  v1::GenerateResponse response;
  response.set_index(index);
  response.set_text(text);
  for (const char c : text) response.add_tokens()->set_id(static_cast<unsigned char>(c) + 1);
  return response;
}

v1::GenerateResponse End(uint32_t index, v1::FinishReason reason) {
  v1::GenerateResponse response;
  response.set_index(index);
  response.set_finish_reason(reason);
  return response;
}

void WriteUsage(Writer* writer) {
  v1::GenerateResponse response;
  v1::Usage& usage = *response.mutable_usage();
  usage.set_prompt_tokens(1234);
  usage.set_prefill_seconds(2);
  usage.set_decode_seconds(0.5);
  usage.set_cache_bytes(20'000);
  usage.set_transformer_cache_bytes(4'000'000);
  usage.set_recoveries(3);
  writer->Write(response);
}

TEST_F(RemoteCommandsTest, GenerateSendsWhatTheFlagsSay) {
  v1::GenerateRequest seen;
  service_.generate = [&](grpc::ServerContext*, const v1::GenerateRequest& request, Writer*) {
    seen = request;
    return grpc::Status::OK;
  };
  GenerateOptions options = Generate();
  options.max_tokens = 9;
  options.samples = 3;
  options.priority = -5;
  options.temperature = 0.5;
  options.top_p = 0.25;
  options.top_k = 4;
  options.min_p = 0.125;
  options.presence_penalty = 1;
  options.frequency_penalty = 2;
  options.penalty_decay = 0.75;
  options.logit_bias = {"3=1.5", "4=-2"};
  options.ban = {5, 6};
  options.stop = {"x", "y"};
  options.ignore_eos = true;
  options.logprobs = 0;
  ASSERT_TRUE(RunCommand(RunRemoteGenerate, options).status.ok());
  EXPECT_EQ(seen.text(), "Once");
  EXPECT_EQ(seen.max_tokens(), 9u);
  EXPECT_EQ(seen.n(), 3u);
  EXPECT_EQ(seen.seed(), 7u);
  EXPECT_EQ(seen.priority(), -5);
  EXPECT_EQ(seen.sampling().temperature(), 0.5);
  EXPECT_EQ(seen.sampling().top_p(), 0.25);
  EXPECT_EQ(seen.sampling().top_k(), 4u);
  EXPECT_EQ(seen.sampling().min_p(), 0.125);
  EXPECT_EQ(seen.sampling().presence_penalty(), 1);
  EXPECT_EQ(seen.sampling().frequency_penalty(), 2);
  EXPECT_EQ(seen.sampling().penalty_decay(), 0.75);
  EXPECT_EQ(seen.sampling().logit_bias().at(3), 1.5);
  EXPECT_EQ(seen.sampling().logit_bias().at(4), -2);
  EXPECT_THAT(seen.sampling().banned_tokens(), ElementsAre(5, 6));
  EXPECT_THAT(seen.stop(), ElementsAre("x", "y"));
  EXPECT_TRUE(seen.ignore_eos());
  EXPECT_TRUE(seen.has_logprobs());
  EXPECT_EQ(seen.logprobs(), 0u);
  EXPECT_TRUE(seen.progress());
  options.logprobs = -1;
  options.chat = true;
  ASSERT_TRUE(RunCommand(RunRemoteGenerate, options).status.ok());
  EXPECT_FALSE(seen.has_logprobs());
  EXPECT_EQ(seen.text(), "User: Once\n\nAssistant:");
  EXPECT_THAT(seen.stop(), ElementsAre("x", "y", "\n\n"));
}

TEST_F(RemoteCommandsTest, GeneratePrintsTextAndASummary) {
  service_.generate = [](grpc::ServerContext*, const v1::GenerateRequest&, Writer* writer) {
    v1::GenerateResponse first;
    first.set_request_id("r1");
    first.set_seed(99);
    first.mutable_progress()->set_prompt_tokens(1234);
    writer->Write(first);
    writer->Write(Text(0, "upon a "));
    writer->Write(Text(0, "time"));
    writer->Write(End(0, v1::STOP));
    WriteUsage(writer);
    return grpc::Status::OK;
  };
  const Output output = RunCommand(RunRemoteGenerate, Generate());
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_EQ(output.out, "upon a time\n");
  EXPECT_EQ(output.err,
            "prompt    1,234 tokens in 2.00 s, 617 tokens/s\n"
            "output    11 tokens in 0.50 s, 20 tokens/s; ended by stop; seed 99\n"
            "cache     20 kB; a transformer of this shape would have kept 4 MB\n");
}

TEST_F(RemoteCommandsTest, GeneratePrintsSamplesOneAfterAnother) {
  service_.generate = [](grpc::ServerContext*, const v1::GenerateRequest&, Writer* writer) {
    writer->Write(Text(2, "c"));
    writer->Write(Text(1, "b"));
    writer->Write(End(2, v1::LENGTH));
    writer->Write(Text(0, "a"));
    writer->Write(Text(1, "B"));
    writer->Write(End(0, v1::END_OF_TEXT));
    writer->Write(Text(1, "!"));
    writer->Write(End(1, v1::STOP));
    WriteUsage(writer);
    return grpc::Status::OK;
  };
  GenerateOptions options = Generate();
  options.samples = 3;
  const Output output = RunCommand(RunRemoteGenerate, options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_EQ(output.out, "--- sample 1 of 3 ---\na\n--- sample 2 of 3 ---\nbB!\n--- sample 3 of 3 ---\nc\n");
  EXPECT_THAT(output.err, HasSubstr("ended by end of text, stop, length;"));
}

TEST_F(RemoteCommandsTest, GenerateJsonHasTokensWithTexts) {
  service_.generate = [](grpc::ServerContext*, const v1::GenerateRequest&, Writer* writer) {
    v1::GenerateResponse response = Text(0, "hi");
    response.set_request_id("r1");
    response.set_seed(99);
    response.mutable_tokens(1)->set_logprob(-0.5);
    v1::TokenLogprob* top = response.mutable_tokens(1)->add_top();
    top->set_id('o' + 1);
    top->set_logprob(-0.25);
    writer->Write(response);
    writer->Write(End(0, v1::END_OF_TEXT));
    WriteUsage(writer);
    return grpc::Status::OK;
  };
  GenerateOptions options = Generate();
  options.json = true;
  options.logprobs = 1;
  const Output output = RunCommand(RunRemoteGenerate, options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_EQ(output.err, "");
  const nlohmann::json json = nlohmann::json::parse(output.out);
  EXPECT_EQ(json["text"], "hi");
  EXPECT_EQ(json["finish_reason"], "end of text");
  EXPECT_EQ(json["seed"], 99);
  EXPECT_EQ(json["prompt_tokens"], 1234);
  EXPECT_EQ(json["recoveries"], 3);
  EXPECT_EQ(json["request_id"], "r1");
  EXPECT_EQ(json["tokens"][0]["id"], 'h' + 1);
  EXPECT_EQ(json["tokens"][0]["text"], "h");
  EXPECT_EQ(json["tokens"][1]["logprob"], -0.5);
  EXPECT_EQ(json["tokens"][1]["top"][0]["text"], "o");
}

TEST_F(RemoteCommandsTest, ErrorsNameTheFlagOrTheServer) {
  grpc::Status answer;
  service_.generate = [&](grpc::ServerContext*, const v1::GenerateRequest&, Writer*) { return answer; };
  const struct {
    grpc::StatusCode code;
    const char* message;
    std::string says;
    int exit_code;
  } cases[] = {
      {grpc::StatusCode::INVALID_ARGUMENT, "sampling.top_p is 2, the limit is 1", "--top-p is 2, the limit is 1", 2},
      {grpc::StatusCode::INVALID_ARGUMENT, "banned_tokens[0] is 300", "--ban[0] is 300", 2},
      {grpc::StatusCode::INVALID_ARGUMENT, "stop_ids has 2", remote_.server + ": INVALID_ARGUMENT: stop_ids has 2", 2},
      {grpc::StatusCode::INVALID_ARGUMENT, "prompt is long", remote_.server + ": INVALID_ARGUMENT: prompt is long", 2},
      {grpc::StatusCode::UNAUTHENTICATED, "no key", remote_.server + ": UNAUTHENTICATED: no key", 1},
      {grpc::StatusCode::RESOURCE_EXHAUSTED, "full", remote_.server + ": RESOURCE_EXHAUSTED: full", 1},
  };
  for (const auto& wrong : cases) {
    answer = grpc::Status(wrong.code, wrong.message);
    const Output output = RunCommand(RunRemoteGenerate, Generate());
    EXPECT_EQ(output.status.message(), wrong.says);
    EXPECT_EQ(ExitCode(output.status), wrong.exit_code) << wrong.says;
    EXPECT_EQ(output.out, "");
  }
}

TEST_F(RemoteCommandsTest, GenerateFailsAfterSomeText) {
  service_.generate = [](grpc::ServerContext*, const v1::GenerateRequest&, Writer* writer) {
    writer->Write(Text(0, "upon"));
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "no group");
  };
  const Output output = RunCommand(RunRemoteGenerate, Generate());
  EXPECT_EQ(output.status.message(), remote_.server + ": UNAVAILABLE: no group");
  EXPECT_EQ(output.out, "upon");
}

TEST_F(RemoteCommandsTest, GenerateRefusesASampleThatWasNotAskedFor) {
  service_.generate = [](grpc::ServerContext*, const v1::GenerateRequest&, Writer* writer) {
    writer->Write(Text(4'000'000'000u, "a"));
    return grpc::Status::OK;
  };
  const Output output = RunCommand(RunRemoteGenerate, Generate());
  EXPECT_TRUE(absl::IsInternal(output.status)) << output.status;
  EXPECT_THAT(std::string(output.status.message()), HasSubstr("sample 4000000000 of 1"));
}

TEST_F(RemoteCommandsTest, DeadlineReachesTheServer) {
  std::mutex mutex;
  bool cancelled = false;
  service_.generate = [&](grpc::ServerContext* context, const v1::GenerateRequest&, Writer* writer) {
    // Writes until the call is over.
    while (writer->Write(Text(0, "a")) && !context->IsCancelled()) {
    }
    std::lock_guard<std::mutex> lock(mutex);
    cancelled = true;
    return grpc::Status::OK;
  };
  GenerateOptions options = Generate();
  options.remote.deadline_seconds = 0.05;
  const Output output = RunCommand(RunRemoteGenerate, options);
  EXPECT_TRUE(absl::IsDeadlineExceeded(output.status)) << output.status;
  server_->Shutdown();  // waits for the handler
  std::lock_guard<std::mutex> lock(mutex);
  EXPECT_TRUE(cancelled);
}

TEST_F(RemoteCommandsTest, ApiKey) {
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
  options.remote.api_key_file = testing::TempDir() + "/none";
  EXPECT_TRUE(absl::IsNotFound(RunCommand(RunStatus, options).status));
}

TEST_F(RemoteCommandsTest, Tls) {
  const TestAuthority authority(testing::TempDir(), "ours"), stranger(testing::TempDir(), "stranger");
  const auto credentials = MakeServerCredentials(authority.Issue("server"));
  ASSERT_TRUE(credentials.ok()) << credentials.status();
  Serve(*credentials);
  const TlsFiles client = authority.Issue("client");
  StatusOptions options;
  options.remote = remote_;
  options.remote.root_cert = authority.roots();
  options.remote.client_cert = client.certificate;
  options.remote.client_key = client.key;
  EXPECT_TRUE(RunCommand(RunStatus, options).status.ok());
  const auto unavailable = [&](const char* what) {
    const Output output = RunCommand(RunStatus, options);
    EXPECT_TRUE(absl::IsUnavailable(output.status)) << what << output.status;
    EXPECT_EQ(output.err, "") << what;  // no lines of the library's
  };
  options.remote.root_cert = stranger.roots();
  unavailable("a root that did not sign the server's certificate");
  options.remote.root_cert = authority.roots();
  options.remote.client_cert.clear();
  EXPECT_EQ(ExitCode(RunCommand(RunStatus, options).status), 2);
  options.remote.client_key.clear();
  unavailable("no certificate, where the server asks for one");
}

TEST_F(RemoteCommandsTest, Status) {
  service_.model.set_name("demo");
  service_.model.set_max_model_len(1 << 20);
  service_.cluster.set_requests_running(3);
  service_.cluster.set_prompt_tokens(uint64_t{1} << 60);
  v1::GroupInfo& group = *service_.cluster.add_groups();
  group.set_state(v1::READY);
  group.add_stages()->set_worker("w1");
  StatusOptions options;
  options.remote = remote_;
  Output output = RunCommand(RunStatus, options);
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

TEST_F(RemoteCommandsTest, StatusBeforeTheModelIsKnown) {
  service_.model_status = grpc::Status(grpc::StatusCode::UNAVAILABLE, "no worker");
  StatusOptions options;
  options.remote = remote_;
  Output output = RunCommand(RunStatus, options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_THAT(output.out, StartsWith("model     not known yet"));
  service_.model_status = grpc::Status(grpc::StatusCode::UNAUTHENTICATED, "no key");
  EXPECT_TRUE(absl::IsUnauthenticated(RunCommand(RunStatus, options).status));
}

LoadTestOptions LoadTest(const RemoteOptions& remote) {
  LoadTestOptions options;
  options.remote = remote;
  options.rate = 2000;
  options.requests = 40;
  options.prompt_tokens = "uniform:3:5";
  options.output_tokens = "fixed:6";
  options.json = true;
  return options;
}

TEST_F(RemoteCommandsTest, LoadTestSendsThePlanAndCounts) {
  service_.model.set_vocab_size(257);
  std::mutex mutex;
  std::vector<v1::GenerateRequest> seen;
  service_.generate = [&](grpc::ServerContext*, const v1::GenerateRequest& request, Writer* writer) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      seen.push_back(request);
    }
    writer->Write(Text(0, "a"));
    writer->Write(Text(0, "bcdef"));
    WriteUsage(writer);
    return grpc::Status::OK;
  };
  LoadTestOptions options = LoadTest(remote_);
  options.csv = testing::TempDir() + "/load.csv";
  const Output output = RunCommand(RunLoadTest, options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  const nlohmann::json json = nlohmann::json::parse(output.out);
  EXPECT_EQ(json["requests"], 40);
  EXPECT_EQ(json["completed"], 40);
  EXPECT_EQ(json["held"], 0);
  EXPECT_EQ(json["prompt_tokens"], 40 * 1234);
  EXPECT_EQ(json["output_tokens"], 40 * 6);
  EXPECT_EQ(json["time_to_first_token_seconds"]["count"], 40);
  EXPECT_EQ(json["inter_token_seconds"]["count"], 40 * 5);
  EXPECT_GT(json["end_to_end_seconds"]["p50"], 0);
  ASSERT_EQ(seen.size(), 40u);
  for (const v1::GenerateRequest& request : seen) {
    EXPECT_GE(request.ids().ids_size(), 3);
    EXPECT_LE(request.ids().ids_size(), 5);
    EXPECT_EQ(request.max_tokens(), 6u);
    EXPECT_TRUE(request.ignore_eos());
    for (const uint32_t id : request.ids().ids()) EXPECT_TRUE(id >= 1 && id < 257) << id;
  }
  std::ifstream csv(options.csv);
  std::vector<std::string> lines;
  for (std::string line; std::getline(csv, line);) lines.push_back(line);
  ASSERT_EQ(lines.size(), 41u);
  EXPECT_THAT(lines[0], StartsWith("request,"));
  EXPECT_THAT(lines[1], MatchesRegex("[0-9]+,[0-9.]+,[0-9.]+,[0-9.]+,[0-9.]+,1234,6,OK"));
}

TEST_F(RemoteCommandsTest, LoadTestDoesNotWaitForAnswers) {
  service_.model.set_vocab_size(257);
  std::mutex mutex;
  std::condition_variable changed;
  int arrived = 0;
  // No request is answered before all have come.
  service_.generate = [&](grpc::ServerContext*, const v1::GenerateRequest&, Writer* writer) {
    std::unique_lock<std::mutex> lock(mutex);
    ++arrived;
    changed.notify_all();
    changed.wait(lock, [&] { return arrived == 16; });
    writer->Write(Text(0, "a"));
    return grpc::Status::OK;
  };
  LoadTestOptions options = LoadTest(remote_);
  options.requests = 16;
  const Output output = RunCommand(RunLoadTest, options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_EQ(nlohmann::json::parse(output.out)["completed"], 16);
}

TEST_F(RemoteCommandsTest, LoadTestTellsOfTheSafetyLimit) {
  service_.model.set_vocab_size(257);
  std::mutex mutex;
  int under_way = 0, under_way_max = 0;
  service_.generate = [&](grpc::ServerContext*, const v1::GenerateRequest&, Writer* writer) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      under_way_max = std::max(under_way_max, ++under_way);
    }
    writer->Write(Text(0, "a"));
    std::lock_guard<std::mutex> lock(mutex);
    --under_way;
    return grpc::Status::OK;
  };
  LoadTestOptions options = LoadTest(remote_);
  options.rate = 1e6;
  options.max_concurrency = 1;
  options.json = false;
  const Output output = RunCommand(RunLoadTest, options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_THAT(output.out, HasSubstr("waited for one of --max-concurrency 1:"));
  EXPECT_EQ(under_way_max, 1);
}

TEST_F(RemoteCommandsTest, LoadTestCountsErrorsByCode) {
  service_.model.set_vocab_size(257);
  std::mutex mutex;
  int calls = 0;
  service_.generate = [&](grpc::ServerContext*, const v1::GenerateRequest&, Writer* writer) {
    std::lock_guard<std::mutex> lock(mutex);
    if (++calls % 4 == 0) return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "queue is full");
    writer->Write(Text(0, "a"));
    return grpc::Status::OK;
  };
  Output output = RunCommand(RunLoadTest, LoadTest(remote_));
  ASSERT_TRUE(output.status.ok()) << output.status;
  const nlohmann::json json = nlohmann::json::parse(output.out);
  EXPECT_EQ(json["completed"], 30);
  EXPECT_EQ(json["errors"]["RESOURCE_EXHAUSTED"]["count"], 10);
  EXPECT_THAT(std::string(json["errors"]["RESOURCE_EXHAUSTED"]["message"]), HasSubstr("queue is full"));
  service_.generate = [](grpc::ServerContext*, const v1::GenerateRequest&, Writer*) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "no group");
  };
  output = RunCommand(RunLoadTest, LoadTest(remote_));
  EXPECT_TRUE(absl::IsUnavailable(output.status)) << output.status;
  EXPECT_EQ(nlohmann::json::parse(output.out)["failed"], 40);
}

TEST_F(RemoteCommandsTest, LoadTestWithAPromptFile) {
  service_.model.set_vocab_size(257);
  std::mutex mutex;
  std::set<std::string> seen;
  service_.generate = [&](grpc::ServerContext*, const v1::GenerateRequest& request, Writer*) {
    std::lock_guard<std::mutex> lock(mutex);
    seen.insert(request.text());
    return grpc::Status::OK;
  };
  LoadTestOptions options = LoadTest(remote_);
  options.prompt_file = Write("prompts", "one\n\n  \ntwo\n");
  ASSERT_TRUE(RunCommand(RunLoadTest, options).status.ok());
  EXPECT_THAT(seen, ElementsAre("one", "two"));
  options.prompt_file = Write("none", "\n \n");
  EXPECT_TRUE(absl::IsInvalidArgument(RunCommand(RunLoadTest, options).status));
}

}  // namespace
}  // namespace goldfinch
