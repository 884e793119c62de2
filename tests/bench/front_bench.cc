// What the front costs: calls and messages through it, against a gRPC server that listens itself, on loopback.
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/credentials.h"
#include "base/test_certificates.h"
#include "coordinator/grpc/server.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "protos/generate.grpc.pb.h"
#include "tests/bench/harness.h"

namespace goldfinch {
namespace {

constexpr int kCalls = 2000;
constexpr int kMessages = 20000;
constexpr int kRounds = 5;

// Answers Generate with max_tokens messages of the size of a token's.
class Service final : public v1::Goldfinch::CallbackService {
 public:
  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(grpc::CallbackServerContext*,
                                                           const v1::GenerateRequest* request) override {
    class Reactor final : public grpc::ServerWriteReactor<v1::GenerateResponse> {
     public:
      explicit Reactor(int messages) : left_(messages) {
        response_.set_text("token");
        response_.add_tokens()->set_id(12345);
        Next();
      }
      void OnWriteDone(bool ok) override { ok ? Next() : Finish(grpc::Status::OK); }
      void OnDone() override { delete this; }

     private:
      void Next() {
        if (left_-- > 0) {
          StartWrite(&response_);
        } else {
          Finish(grpc::Status::OK);
        }
      }

      int left_;
      v1::GenerateResponse response_;
    };
    return new Reactor(static_cast<int>(request->max_tokens()));
  }
};

// Seconds that one call with as many messages takes.
double CallSeconds(v1::Goldfinch::Stub& stub, int messages) {
  v1::GenerateRequest request;
  request.set_max_tokens(messages);
  grpc::ClientContext context;
  const double start = Now();
  const auto reader = stub.Generate(&context, request);
  int count = 0;
  for (v1::GenerateResponse response; reader->Read(&response);) ++count;
  const grpc::Status status = reader->Finish();
  GF_CHECK(status.ok() && count == messages) << status.error_message();
  return Now() - start;
}

std::string ReadText(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

class Client {
 public:
  Client(int port, const std::shared_ptr<grpc::ChannelCredentials>& credentials)
      : stub_(v1::Goldfinch::NewStub(grpc::CreateChannel(absl::StrCat("localhost:", port), credentials))) {
    CallSeconds(*stub_, 1);
  }
  double CallMicroseconds() {
    double seconds = 0;
    for (int i = 0; i < kCalls; ++i) seconds += CallSeconds(*stub_, 1);
    return seconds / kCalls * 1e6;
  }
  double MessageMicroseconds() { return CallSeconds(*stub_, kMessages) / kMessages * 1e6; }

 private:
  const std::unique_ptr<v1::Goldfinch::Stub> stub_;
};

// In turn, for other work of the machine to hit both alike.
void Compare(const char* name, Client& direct, Client& front) {
  std::vector<double> calls[2], messages[2];
  for (int round = 0; round < kRounds; ++round) {
    for (Client* client : {&direct, &front}) {
      calls[client == &front].push_back(client->CallMicroseconds());
      messages[client == &front].push_back(client->MessageMicroseconds());
    }
  }
  for (const auto& [what, times] : {std::pair{"call", calls}, std::pair{"message", messages}}) {
    const double before = Median(times[0]), after = Median(times[1]);
    absl::PrintF(
        "%s, one %s: %.1f us with gRPC alone, %.1f us through the front (%+.1f us, ratio %.2f): %.0f a second\n", name,
        what, before, after, after - before, after / before, 1e6 / after);
  }
}

void Run() {
  const TestAuthority authority("/tmp", "front_bench");
  const TlsFiles files = authority.Issue("front_bench_server");
  const TlsFiles server_files = {files.certificate, files.key, ""};
  const auto service = std::make_shared<Service>();
  for (const bool tls : {false, true}) {
    Service own;
    grpc::ServerBuilder builder;
    int port = 0;
    std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials();
    if (tls) {
      grpc::SslServerCredentialsOptions options;
      options.pem_key_cert_pairs = {{.private_key = ReadText(files.key), .cert_chain = ReadText(files.certificate)}};
      credentials = grpc::SslServerCredentials(options);
    }
    builder.AddListeningPort("127.0.0.1:0", credentials, &port);
    builder.RegisterService(&own);
    const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
    GF_CHECK(server != nullptr);
    ServerOptions options;
    if (tls) options.front.tls = server_files;
    auto fronted = Server::Start(options, {service});
    GF_CHECK(fronted.ok()) << fronted.status();
    const auto channel = *MakeChannelCredentials({"", "", tls ? authority.roots() : ""});
    Client direct(port, channel), front((*fronted)->port(), channel);
    Compare(tls ? "TLS" : "plain text", direct, front);
    (*fronted)->Shutdown(1);
    server->Shutdown();
  }
}

}  // namespace
}  // namespace goldfinch

int main() { goldfinch::Run(); }
