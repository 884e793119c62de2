#include "coordinator/grpc/service.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/log_limiter.h"
#include "base/status.h"
#include "coordinator/calls/authenticator.h"
#include "coordinator/calls/call.h"
#include "coordinator/calls/generate_call.h"
#include "coordinator/calls/score_call.h"
#include "coordinator/calls/validation.h"
#include "coordinator/dispatcher.h"
#include "coordinator/grpc/call_reactor.h"
#include "coordinator/grpc/peer.h"
#include "coordinator/grpc/wire.h"
#include "coordinator/metrics.h"
#include "grpcpp/impl/codegen/server_callback_handlers.h"
#include "grpcpp/impl/rpc_service_method.h"
#include "grpcpp/impl/service_type.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "protos/generate.pb.h"
#include "tokenizer/tokenizer.h"

namespace goldfinch {
namespace {

using Context = grpc::CallbackServerContext;
using grpc::ByteBuffer;

constexpr double kSweepSeconds = 0.5;

std::optional<std::chrono::system_clock::time_point> DeadlineOf(const Context& context) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return std::nullopt;
  return deadline;
}

std::optional<std::string_view> AuthorizationOf(const Context& context) {
  const auto entry = context.client_metadata().find("authorization");
  if (entry == context.client_metadata().end()) return std::nullopt;
  return std::string_view(entry->second.data(), entry->second.size());
}

// The gate lets as many messages in as take this much together, counted as the largest ones.
constexpr int64_t kMessagesBytesMax = int64_t{1} << 30;

MessageGate::Limits GateLimits(const ServiceOptions& options) {
  MessageGate::Limits limits;
  limits.places = static_cast<int>(std::clamp<int64_t>(kMessagesBytesMax / options.message_bytes_max, 8, 64));
  limits.places_of_client = std::max(1, limits.places / 8);
  limits.seconds = options.stall_timeout_seconds;
  limits.contested_seconds = std::min(limits.contested_seconds, limits.seconds);
  return limits;
}

struct Traits {
  bool for_operators = false;
  bool slow = false;  // waits for other threads
};

class PublicService final : public grpc::Service {
 public:
  PublicService(Dispatcher* dispatcher, Metrics* metrics, const ServiceOptions& options)
      : bytes_max_(options.message_bytes_max),
        authenticator_(options.api_keys),
        environment_{.dispatcher = dispatcher,
                     .metrics = metrics,
                     .stall_timeout_seconds = options.stall_timeout_seconds,
                     .gate = MessageGate(GateLimits(options))} {
    Add("/goldfinch.v1.Goldfinch/Generate", [this](Context* context, Caller caller) {
      return Stream<GenerateCall, v1::GenerateRequest>(context, std::move(caller));
    });
    Add("/goldfinch.v1.Goldfinch/Score", [this](Context* context, Caller caller) {
      return Stream<ScoreCall, v1::ScoreRequest>(context, std::move(caller));
    });
    AddUnary<v1::TokenizeRequest, v1::TokenizeResponse>("/goldfinch.v1.Goldfinch/Tokenize", &PublicService::Tokenize);
    AddUnary<v1::DetokenizeRequest, v1::DetokenizeResponse>("/goldfinch.v1.Goldfinch/Detokenize",
                                                            &PublicService::Detokenize);
    AddUnary<v1::GetModelInfoRequest, v1::GetModelInfoResponse>("/goldfinch.v1.Goldfinch/GetModelInfo",
                                                                &PublicService::GetModelInfo);
    // On another thread, because it may wait for the coordinator's thread.
    AddUnary<v1::GetClusterInfoRequest, v1::GetClusterInfoResponse>("/goldfinch.v1.Goldfinch/GetClusterInfo",
                                                                    &PublicService::GetClusterInfo,
                                                                    {.for_operators = true, .slow = true});
    SweepLater();
  }

 private:
  using Handler = std::function<ByteReactor*(Context* context, Caller caller)>;
  template <typename Request, typename Response>
  using UnaryMethod = absl::Status (PublicService::*)(const Request& request, Response* response);

  absl::Status Tokenize(const v1::TokenizeRequest& request, v1::TokenizeResponse* response) {
    const std::shared_ptr<const ServedModel> model = environment_.dispatcher->model();
    if (model == nullptr) return NoModel();
    std::vector<int32_t> ids;
    model->tokenizer->Encode(request.text(), &ids);
    response->mutable_ids()->Assign(ids.begin(), ids.end());
    return absl::OkStatus();
  }

  absl::Status Detokenize(const v1::DetokenizeRequest& request, v1::DetokenizeResponse* response) {
    const std::shared_ptr<const ServedModel> model = environment_.dispatcher->model();
    if (model == nullptr) return NoModel();
    GF_ASSIGN_OR_RETURN(*response, goldfinch::Detokenize(request, *model, bytes_max_));
    return absl::OkStatus();
  }

  absl::Status GetModelInfo(const v1::GetModelInfoRequest&, v1::GetModelInfoResponse* response) {
    const std::shared_ptr<const ServedModel> model = environment_.dispatcher->model();
    if (model == nullptr) return NoModel();
    *response = *model->info;
    return absl::OkStatus();
  }

  absl::Status GetClusterInfo(const v1::GetClusterInfoRequest&, v1::GetClusterInfoResponse* response) {
    environment_.dispatcher->FillClusterInfo(response);
    return absl::OkStatus();
  }

  // Registers a method as generated code registers one that streams both ways. `path` must live as long as the service.
  void Add(const char* path, Handler handler, Traits traits = {}) {
    AddMethod(new grpc::internal::RpcServiceMethod(path, grpc::internal::RpcMethod::BIDI_STREAMING, nullptr));
    const char* method = std::strrchr(path, '/') + 1;
    MarkMethodRawCallback(methods_++, new grpc::internal::CallbackBidiHandler<ByteBuffer, ByteBuffer>(
                                          [this, method, traits, handler](Context* context) -> ByteReactor* {
                                            absl::StatusOr<Caller> caller = Identify(*context, method, traits);
                                            if (!caller.ok()) return RefuseCall(caller.status());
                                            return handler(context, *std::move(caller));
                                          }));
  }

  template <typename Request, typename Response>
  void AddUnary(const char* path, UnaryMethod<Request, Response> work, Traits traits = {}) {
    const auto run = [this, work](const ByteBuffer& bytes, ByteBuffer* answer) -> absl::Status {
      Request request;
      Response response;
      GF_RETURN_IF_ERROR(ParseMessage(bytes, &request));
      GF_RETURN_IF_ERROR((this->*work)(request, &response));
      if (const auto size = static_cast<int64_t>(response.ByteSizeLong()); size > bytes_max_) {
        return absl::ResourceExhaustedError(absl::StrCat("the answer has ", size, " bytes, the limit is ", bytes_max_));
      }
      SerializeMessage(response, answer);
      return absl::OkStatus();
    };
    const char* method = std::strrchr(path, '/') + 1;
    const auto handle = [this, method, traits, run](Context* context, Caller caller) -> ByteReactor* {
      return Started(
          std::make_shared<UnaryReactor>(&environment_, context, std::move(caller), method, traits.slow, run));
    };
    Add(path, handle, traits);
  }

  template <typename CallType, typename Message>
  ByteReactor* Stream(Context* context, Caller caller) {
    const auto stream = std::make_shared<StreamReactor>(&environment_, context, caller);
    const auto read = [reactor = stream.get()](Message* message) { return ParseMessage(reactor->message(), message); };
    stream->Attach(
        std::make_shared<CallType>(&environment_, std::move(caller), DeadlineOf(*context), read, stream.get()));
    return Started(stream);
  }

  static ByteReactor* Started(const std::shared_ptr<MessageReactor>& reactor) {
    reactor->Start();
    return reactor.get();
  }

  // Who calls, from the headers alone: nothing of the message has been read.
  absl::StatusOr<Caller> Identify(const Context& context, const char* method, Traits traits) {
    const std::string peer = PeerHost(context);
    absl::StatusOr<Caller> caller = authenticator_.Identify(peer, AuthorizationOf(context));
    if (!caller.ok()) {
      environment_.ReportStranger(method, peer, caller.status());
      return caller;
    }
    if (traits.for_operators && !caller->may_operate) {
      const absl::Status status =
          absl::PermissionDeniedError(absl::StrCat(method, " is for API keys with the role operator"));
      environment_.ReportFailure(method, *caller, status);
      return status;
    }
    return caller;
  }

  void SweepLater() {
    environment_.writing.PostAfter(kSweepSeconds, [this] {
      environment_.gate.Sweep(SteadySeconds());
      SweepLater();
    });
  }

  const int64_t bytes_max_;
  int methods_ = 0;
  Authenticator authenticator_;
  CallEnvironment environment_;
};

}  // namespace

std::shared_ptr<grpc::Service> MakePublicService(Dispatcher* dispatcher, Metrics* metrics,
                                                 const ServiceOptions& options) {
  return std::make_shared<PublicService>(dispatcher, metrics, options);
}

}  // namespace goldfinch
