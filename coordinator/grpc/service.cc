#include "coordinator/grpc/service.h"

#include <chrono>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/status.h"
#include "coordinator/calls/call.h"
#include "coordinator/calls/generate_call.h"
#include "coordinator/calls/score_call.h"
#include "coordinator/calls/validation.h"
#include "coordinator/dispatcher.h"
#include "coordinator/grpc/auth.h"
#include "coordinator/grpc/reactor_stream.h"
#include "coordinator/grpc/wire.h"
#include "coordinator/metrics.h"
#include "grpcpp/server_context.h"
#include "protos/generate.grpc.pb.h"
#include "tokenizer/tokenizer.h"

namespace goldfinch {
namespace {

// A larger request is handled on a thread of CallEnvironment::tokenizing, for it would take some milliseconds of one of
// gRPC's few threads. The tokenizer handles more than 100 MB a second.
constexpr size_t kInlineBytes = size_t{256} << 10;

template <template <class> class... Methods>
struct Raw;
template <template <class> class First, template <class> class... Rest>
struct Raw<First, Rest...> {
  using Type = First<typename Raw<Rest...>::Type>;
};
template <>
struct Raw<> {
  using Type = v1::Goldfinch::Service;
};

using Base =
    Raw<v1::Goldfinch::WithRawCallbackMethod_Generate, v1::Goldfinch::WithRawCallbackMethod_Score,
        v1::Goldfinch::WithRawCallbackMethod_Tokenize, v1::Goldfinch::WithRawCallbackMethod_Detokenize,
        v1::Goldfinch::WithRawCallbackMethod_GetModelInfo, v1::Goldfinch::WithRawCallbackMethod_GetClusterInfo>::Type;
using Context = grpc::CallbackServerContext;
using grpc::ByteBuffer;
using StreamReactor = grpc::ServerWriteReactor<ByteBuffer>;

std::optional<std::chrono::system_clock::time_point> DeadlineOf(const Context& context) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return std::nullopt;
  return deadline;
}

class PublicService final : public Base {
 public:
  PublicService(Dispatcher* dispatcher, Metrics* metrics, const ServiceOptions& options)
      : bytes_max_(options.message_bytes_max), api_keys_(options.api_keys) {
    environment_.dispatcher = dispatcher;
    environment_.metrics = metrics;
    environment_.stall_timeout_seconds = options.stall_timeout_seconds;
  }

  StreamReactor* Generate(Context* context, const ByteBuffer* request) override {
    return Stream<GenerateCall, v1::GenerateRequest>(context, request);
  }

  StreamReactor* Score(Context* context, const ByteBuffer* request) override {
    return Stream<ScoreCall, v1::ScoreRequest>(context, request);
  }

  grpc::ServerUnaryReactor* Tokenize(Context* context, const ByteBuffer* bytes, ByteBuffer* answer) override {
    return Unary<v1::TokenizeRequest, v1::TokenizeResponse>(
        context, bytes, answer, bytes->Length() > kInlineBytes,
        [this](const v1::TokenizeRequest& request, v1::TokenizeResponse* response) -> absl::Status {
          const std::shared_ptr<const ServedModel> model = environment_.dispatcher->model();
          if (model == nullptr) return NoModel();
          std::vector<int32_t> ids;
          model->tokenizer->Encode(request.text(), &ids);
          response->mutable_ids()->Assign(ids.begin(), ids.end());
          return absl::OkStatus();
        });
  }

  grpc::ServerUnaryReactor* Detokenize(Context* context, const ByteBuffer* bytes, ByteBuffer* answer) override {
    return Unary<v1::DetokenizeRequest, v1::DetokenizeResponse>(
        context, bytes, answer, bytes->Length() > kInlineBytes,
        [this](const v1::DetokenizeRequest& request, v1::DetokenizeResponse* response) -> absl::Status {
          const std::shared_ptr<const ServedModel> model = environment_.dispatcher->model();
          if (model == nullptr) return NoModel();
          GF_ASSIGN_OR_RETURN(*response, goldfinch::Detokenize(request, *model, bytes_max_));
          return absl::OkStatus();
        });
  }

  grpc::ServerUnaryReactor* GetModelInfo(Context* context, const ByteBuffer* bytes, ByteBuffer* answer) override {
    return Unary<v1::GetModelInfoRequest, v1::GetModelInfoResponse>(
        context, bytes, answer, false,
        [this](const v1::GetModelInfoRequest&, v1::GetModelInfoResponse* response) -> absl::Status {
          const std::shared_ptr<const ServedModel> model = environment_.dispatcher->model();
          if (model == nullptr) return NoModel();
          *response = *model->info;
          return absl::OkStatus();
        });
  }

  grpc::ServerUnaryReactor* GetClusterInfo(Context* context, const ByteBuffer* bytes, ByteBuffer* answer) override {
    // On another thread, because it may wait for the coordinator's thread.
    return Unary<v1::GetClusterInfoRequest, v1::GetClusterInfoResponse>(
        context, bytes, answer, true,
        [this](const v1::GetClusterInfoRequest&, v1::GetClusterInfoResponse* response) -> absl::Status {
          environment_.dispatcher->FillClusterInfo(response);
          return absl::OkStatus();
        });
  }

 private:
  // gRPC keeps `context` and `request` valid until the stream's OnDone.
  template <typename CallType, typename Message>
  StreamReactor* Stream(Context* context, const ByteBuffer* request) {
    auto* stream = new ReactorStream(context);
    const auto read = [request](Message* message) { return ParseMessage(*request, message); };
    const auto call = std::make_shared<CallType>(&environment_, DeadlineOf(*context), read, stream);
    stream->Attach(call);
    if (const absl::Status status = Authorize(api_keys_.get(), *context); !status.ok()) {
      call->Refuse(status);
    } else if (request->Length() > kInlineBytes) {
      environment_.tokenizing.Post([call] { call->Begin(); });
    } else {
      call->Begin();
    }
    return stream;
  }

  // Answers with the result of `work`, which runs on another thread if it may take a while. gRPC keeps `bytes` and
  // `answer` valid until the reactor has finished.
  template <typename Request, typename Response, typename Work>
  grpc::ServerUnaryReactor* Unary(Context* context, const ByteBuffer* bytes, ByteBuffer* answer, bool takes_long,
                                  Work work) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    if (const absl::Status status = Authorize(api_keys_.get(), *context); !status.ok()) {
      reactor->Finish(ToGrpc(status));
      return reactor;
    }
    const auto run = [reactor, bytes, answer, work] {
      Request request;
      Response response;
      absl::Status status = ParseMessage(*bytes, &request);
      if (status.ok()) status = work(request, &response);
      if (status.ok()) SerializeMessage(response, answer);
      reactor->Finish(ToGrpc(status));
    };
    if (takes_long) {
      environment_.tokenizing.Post(run);
    } else {
      run();
    }
    return reactor;
  }

  const int64_t bytes_max_;
  CallEnvironment environment_;
  const std::shared_ptr<const ApiKeys> api_keys_;
};

}  // namespace

std::shared_ptr<grpc::Service> MakePublicService(Dispatcher* dispatcher, Metrics* metrics,
                                                 const ServiceOptions& options) {
  return std::make_shared<PublicService>(dispatcher, metrics, options);
}

}  // namespace goldfinch
