// Clients of one server: some take all they can, some do not read, and one asks for little. Over sockets, with a model.
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/grpc/server.h"
#include "coordinator/grpc/service.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "gtest/gtest.h"
#include "protos/generate.grpc.pb.h"
#include "tests/cluster/local_cluster.h"

namespace goldfinch {
namespace {

constexpr char kDemoModel[] = "tests/demo_model/model.pth";

// Passes requests on. The part of a request's id before the dash names its client.
class NamingDispatcher : public Dispatcher {
 public:
  explicit NamingDispatcher(Dispatcher& to) : to_(to) {}

  std::shared_ptr<const ServedModel> model() const override { return to_.model(); }
  bool ready() const override { return to_.ready(); }
  void FillClusterInfo(v1::GetClusterInfoResponse* info) const override { to_.FillClusterInfo(info); }
  absl::StatusOr<uint64_t> Submit(Request request, std::shared_ptr<RequestSink> sink) override {
    request.client = std::make_shared<Client>(Client{request.id.substr(0, request.id.find('-')), {}});
    return to_.Submit(std::move(request), std::move(sink));
  }
  void Cancel(uint64_t number, absl::Status status) override { to_.Cancel(number, std::move(status)); }
  void Resume(uint64_t number) override { to_.Resume(number); }

 private:
  Dispatcher& to_;
};

// A call of Generate.
struct ClientCall {
  v1::GenerateRequest request;
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader;
  std::vector<uint32_t> ids;
  std::string text;

  bool Read() {
    v1::GenerateResponse response;
    if (!reader->Read(&response)) return false;
    for (const v1::Token& token : response.tokens()) ids.push_back(token.id());
    text += response.text();
    return true;
  }
  grpc::Status Finish() {
    while (Read()) {
    }
    return reader->Finish();
  }
};

class FairnessTest : public testing::Test {
 protected:
  // A server whose model runs so many sequences at once.
  explicit FairnessTest(int slots = 4)
      : cluster_(kDemoModel, 1,
                 [slots](CoordinatorOptions* options) { options->membership.partition.max_sequences = slots; }),
        dispatcher_(cluster_.coordinator()),
        metrics_("test") {
    cluster_.AwaitReady();
    auto server = Server::Start({}, MakePublicServices(&dispatcher_, nullptr, &metrics_, {}));
    GF_CHECK(server.ok()) << server.status();
    server_ = *std::move(server);
    // The least that gRPC can be made to buffer.
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1 << 16);
    stub_ = v1::Goldfinch::NewStub(grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", server_->port()),
                                                             grpc::InsecureChannelCredentials(), arguments));
  }

  std::unique_ptr<ClientCall> Start(const std::string& id, int tokens, int seed, bool logprobs = false) {
    auto call = std::make_unique<ClientCall>();
    call->request.set_request_id(id);
    call->request.set_text(absl::StrCat("And it came to pass in the days of king ", seed, " that "));
    call->request.set_max_tokens(tokens);
    call->request.set_seed(seed);
    call->request.set_ignore_eos(true);
    if (logprobs) call->request.set_logprobs(20);  // long messages
    call->reader = stub_->Generate(&call->context, call->request);
    return call;
  }

  // Waits until the condition holds.
  template <typename Condition>
  void Await(const char* what, Condition condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (!condition(cluster_.Info())) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << what << "\n" << cluster_.Info().ShortDebugString();
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

  // The call gets what it would have got if it had been the only one.
  void ExpectAsAlone(const ClientCall& call) {
    const auto alone = std::make_unique<ClientCall>();
    alone->request = call.request;
    alone->request.set_max_tokens(static_cast<uint32_t>(call.ids.size()));
    alone->reader = stub_->Generate(&alone->context, alone->request);
    EXPECT_TRUE(alone->Finish().ok());
    EXPECT_EQ(call.ids, alone->ids);
    EXPECT_EQ(call.text.substr(0, alone->text.size()), alone->text.substr(0, call.text.size()));
  }

  LocalCluster cluster_;
  NamingDispatcher dispatcher_;
  Metrics metrics_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::Goldfinch::Stub> stub_;
};

TEST_F(FairnessTest, AShortRequestIsServedBesideManyLongStreams) {
  std::vector<std::unique_ptr<ClientCall>> streams;
  for (int i = 0; i < 4; ++i) streams.push_back(Start(absl::StrCat("greedy-", i), 3000, i));
  Await("the first ones run", [](const v1::GetClusterInfoResponse& info) { return info.requests_running() == 4; });
  for (int i = 4; i < 64; ++i) streams.push_back(Start(absl::StrCat("greedy-", i), 3000, i));
  Await("all of them have come", [](const v1::GetClusterInfoResponse& info) {
    return info.requests_running() + info.requests_waiting() == 64 && info.requests_running() == 4;
  });
  // Whoever came first would be served after nearly all of the others.
  for (int i = 0; i < 3; ++i) {
    const auto brief = Start(absl::StrCat("modest-", i), 5, 100 + i);
    EXPECT_TRUE(brief->Finish().ok());
    EXPECT_EQ(brief->ids.size(), 5U);
    EXPECT_GE(cluster_.Info().requests_running() + cluster_.Info().requests_waiting(), 50U);
  }
  // Those that had begun go on.
  const std::vector<size_t> began = {0, 1, 2, 3};
  for (const size_t i : began) {
    while (streams[i]->ids.size() < 400 && streams[i]->Read()) {
    }
    EXPECT_GE(streams[i]->ids.size(), 400U);
  }
  for (const auto& stream : streams) stream->context.TryCancel();
  for (const auto& stream : streams) stream->reader->Finish();
  Await("they are gone",
        [](const v1::GetClusterInfoResponse& info) { return info.requests_running() + info.requests_waiting() == 0; });
  for (const size_t i : began) ExpectAsAlone(*streams[i]);
  cluster_.ExpectNothingHeld();
}

TEST_F(FairnessTest, StreamsThatNobodyReadsGiveUpTheirSlotsAndComeWholeWhenTheyAreRead) {
  std::vector<std::unique_ptr<ClientCall>> mute;
  for (int i = 0; i < 4; ++i) mute.push_back(Start(absl::StrCat("mute-", i), 700, i, /*logprobs=*/true));
  uint64_t made = 0;
  Await("they are paused", [&](const v1::GetClusterInfoResponse& info) {
    const uint64_t before = std::exchange(made, info.completion_tokens());
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    return info.requests_running() == 4 && made > 0 && made == before;
  });
  // They hold all slots, and yet everybody else is served, also their own client's next request.
  for (const char* name : {"modest-", "mute-also-"}) {
    for (int i = 0; i < 4; ++i) {
      const auto brief = Start(absl::StrCat(name, i), 5, 100 + i);
      EXPECT_TRUE(brief->Finish().ok());
      EXPECT_EQ(brief->ids.size(), 5U);
    }
  }
  EXPECT_GE(cluster_.Info().requests_waiting(), 1U) << "nobody had to be parked";
  for (const auto& call : mute) {
    const grpc::Status status = call->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(call->ids.size(), 700U);
    ExpectAsAlone(*call);
  }
  cluster_.ExpectNothingHeld();
}

}  // namespace
}  // namespace goldfinch
