// A fake server, and what the tests of the commands that talk to one share.
#ifndef GOLDFINCH_CLIENTS_CLI_REMOTE_REMOTE_TEST_UTIL_H_
#define GOLDFINCH_CLIENTS_CLI_REMOTE_REMOTE_TEST_UTIL_H_

#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "clients/cli/flags/options.h"
#include "clients/cli/terminal/terminal.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "grpcpp/server_context.h"
#include "gtest/gtest.h"
#include "protos/generate.grpc.pb.h"

namespace goldfinch {

using GenerateWriter = grpc::ServerWriter<v1::GenerateResponse>;

// A server of which each test says what it answers.
class FakeService final : public v1::Goldfinch::Service {
 public:
  std::function<grpc::Status(grpc::ServerContext*, const v1::GenerateRequest&, GenerateWriter*)> generate;
  grpc::Status model_status;
  v1::GetModelInfoResponse model;
  v1::GetClusterInfoResponse cluster;

  // The value of the metadata key "authorization" in the latest call; empty if there was none.
  std::string authorization() {
    std::lock_guard<std::mutex> lock(mutex_);
    return authorization_;
  }

 private:
  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        GenerateWriter* writer) override {
    See(*context);
    return generate(context, *request, writer);
  }

  // The tokens are bytes: id 1 is byte 0.
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

// What a command returned and printed.
struct CommandOutput {
  absl::Status status;
  std::string out;
  std::string err;
};

template <typename Options>
CommandOutput RunCommand(absl::Status (*command)(const Options&), const Options& options) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  CommandOutput output;
  output.status = command(options);
  EXPECT_TRUE(FlushOutput().ok());
  output.out = testing::internal::GetCapturedStdout();
  output.err = testing::internal::GetCapturedStderr();
  return output;
}

// Runs the commands against a FakeService on a port of its own.
class RemoteCommandsTest : public testing::Test {
 protected:
  void SetUp() override { Serve(grpc::InsecureServerCredentials()); }

  void Serve(const std::shared_ptr<grpc::ServerCredentials>& credentials) {
    if (server_) server_->Shutdown();
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", credentials, &port);
    builder.RegisterService(&service_);
    for (grpc::Service* service : more_services_) builder.RegisterService(service);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    remote_.server = "127.0.0.1:" + std::to_string(port);
    remote_.deadline_seconds = 60;  // a test that would hang fails
  }

  void TearDown() override { server_->Shutdown(); }

  // Options of `generate` for this server, with the prompt "Once" and the seed 7.
  GenerateOptions Generate() const {
    GenerateOptions options;
    options.remote = remote_;
    options.prompt = "Once";
    options.has_prompt = true;
    options.has_seed = true;
    options.seed = 7;
    return options;
  }

  // Writes a file and returns its path.
  std::string Write(const std::string& name, const std::string& content) {
    std::string path = testing::TempDir() + "/" + name;
    std::ofstream(path) << content;
    return path;
  }

  FakeService service_;
  std::vector<grpc::Service*> more_services_;  // as of the next Serve
  std::unique_ptr<grpc::Server> server_;
  RemoteOptions remote_;
};

// Responses to Generate.
inline v1::GenerateResponse Text(uint32_t index, const std::string& text) {
  v1::GenerateResponse response;
  response.set_index(index);
  response.set_text(text);
  for (const char c : text) response.add_tokens()->set_id(static_cast<unsigned char>(c) + 1);
  return response;
}

inline v1::GenerateResponse End(uint32_t index, v1::FinishReason reason) {
  v1::GenerateResponse response;
  response.set_index(index);
  response.set_finish_reason(reason);
  return response;
}

inline void WriteUsage(GenerateWriter* writer) {
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

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_REMOTE_REMOTE_TEST_UTIL_H_
