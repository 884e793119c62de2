#include "coordinator/grpc/service.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/status.h"
#include "coordinator/dispatcher.h"
#include "coordinator/grpc/auth.h"
#include "coordinator/grpc/call.h"
#include "coordinator/grpc/generate_call.h"
#include "coordinator/grpc/reactor_stream.h"
#include "coordinator/grpc/score_call.h"
#include "coordinator/grpc/validation.h"
#include "coordinator/grpc/wire.h"
#include "coordinator/metrics.h"
#include "grpcpp/server_context.h"
#include "protos/generate.grpc.pb.h"
#include "tokenizer/tokenizer.h"

namespace goldfinch {
namespace {

// A request of more bytes is worked on elsewhere: it would take some milliseconds of one of gRPC's few threads. The
// tokenizer does more than 100 MB a second.
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

class PublicService final : public Base {
 public:
  PublicService(Dispatcher* dispatcher, Metrics* metrics, const ServiceOptions& options)
      : bytes_max_(options.message_bytes_max), api_keys_(options.api_keys) {
    edge_.dispatcher = dispatcher;
    edge_.metrics = metrics;
    edge_.stall_timeout_seconds = options.stall_timeout_seconds;
  }

  StreamReactor* Generate(Context* context, const ByteBuffer* request) override {
    return Stream<GenerateCall>(context, request);
  }

  StreamReactor* Score(Context* context, const ByteBuffer* request) override {
    return Stream<ScoreCall>(context, request);
  }

  grpc::ServerUnaryReactor* Tokenize(Context* context, const ByteBuffer* bytes, ByteBuffer* answer) override {
    return Unary<v1::TokenizeRequest, v1::TokenizeResponse>(
        context, bytes, answer, bytes->Length() > kInlineBytes,
        [this](const v1::TokenizeRequest& request, v1::TokenizeResponse* response) -> absl::Status {
          const std::shared_ptr<const ServedModel> model = edge_.dispatcher->model();
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
          const std::shared_ptr<const ServedModel> model = edge_.dispatcher->model();
          if (model == nullptr) return NoModel();
          GF_ASSIGN_OR_RETURN(*response, goldfinch::Detokenize(request, *model, bytes_max_));
          return absl::OkStatus();
        });
  }

  grpc::ServerUnaryReactor* GetModelInfo(Context* context, const ByteBuffer* bytes, ByteBuffer* answer) override {
    return Unary<v1::GetModelInfoRequest, v1::GetModelInfoResponse>(
        context, bytes, answer, false,
        [this](const v1::GetModelInfoRequest&, v1::GetModelInfoResponse* response) -> absl::Status {
          const std::shared_ptr<const ServedModel> model = edge_.dispatcher->model();
          if (model == nullptr) return NoModel();
          *response = *model->info;
          return absl::OkStatus();
        });
  }

  grpc::ServerUnaryReactor* GetClusterInfo(Context* context, const ByteBuffer* bytes, ByteBuffer* answer) override {
    // Elsewhere: it may wait for the coordinator's thread.
    return Unary<v1::GetClusterInfoRequest, v1::GetClusterInfoResponse>(
        context, bytes, answer, true,
        [this](const v1::GetClusterInfoRequest&, v1::GetClusterInfoResponse* response) -> absl::Status {
          edge_.dispatcher->FillClusterInfo(response);
          return absl::OkStatus();
        });
  }

 private:
  template <typename CallType>
  StreamReactor* Stream(Context* context, const ByteBuffer* request) {
    auto* stream = new ReactorStream;
    const auto call = std::make_shared<CallType>(&edge_, context, request, stream);
    stream->Attach(call);
    if (const absl::Status status = Authorize(api_keys_.get(), *context); !status.ok()) {
      call->Refuse(status);
    } else if (request->Length() > kInlineBytes) {
      edge_.tokenizing.Post([call] { call->Begin(); });
    } else {
      call->Begin();
    }
    return stream;
  }

  // `bytes` and `answer` live until the reactor has finished.
  template <typename Request, typename Response, typename Work>
  grpc::ServerUnaryReactor* Unary(Context* context, const ByteBuffer* bytes, ByteBuffer* answer, bool elsewhere,
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
    if (elsewhere) {
      edge_.tokenizing.Post(run);
    } else {
      run();
    }
    return reactor;
  }

  const int64_t bytes_max_;
  CallEnvironment edge_;
  const std::shared_ptr<const ApiKeys> api_keys_;
};

}  // namespace

std::shared_ptr<grpc::Service> MakePublicService(Dispatcher* dispatcher, Metrics* metrics,
                                                 const ServiceOptions& options) {
  return std::make_shared<PublicService>(dispatcher, metrics, options);
}

}  // namespace goldfinch
