#include "coordinator/grpc/call_service.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log_limiter.h"
#include "coordinator/grpc/peer.h"
#include "grpcpp/impl/codegen/server_callback_handlers.h"
#include "grpcpp/impl/rpc_service_method.h"

namespace goldfinch {
namespace {

using grpc::ByteBuffer;

constexpr double kSweepSeconds = 0.5;

std::optional<std::string_view> AuthorizationOf(const grpc::CallbackServerContext& context) {
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

}  // namespace

PublicDoor::PublicDoor(Dispatcher* dispatcher, ContextDirectory* contexts, Metrics* metrics,
                       const ServiceOptions& options)
    : bytes_max(options.message_bytes_max),
      authenticator(options.api_keys),
      transfers(contexts == nullptr ? nullptr : std::make_unique<ContextTransfers>(contexts)),
      environment{.dispatcher = dispatcher,
                  .metrics = metrics,
                  .stall_timeout_seconds = options.stall_timeout_seconds,
                  .gate = MessageGate(GateLimits(options))} {
  SweepLater();
}

void PublicDoor::SweepLater() {
  environment.writing.PostAfter(kSweepSeconds, [this] {
    environment.gate.Sweep(SteadySeconds());
    if (transfers != nullptr) transfers->Sweep();
    SweepLater();
  });
}

void CallService::Add(const Method& method, Handler handler) {
  AddMethod(new grpc::internal::RpcServiceMethod(method.path, grpc::internal::RpcMethod::BIDI_STREAMING, nullptr));
  MarkMethodRawCallback(methods_++, new grpc::internal::CallbackBidiHandler<ByteBuffer, ByteBuffer>(
                                        [this, method, handler](Context* context) -> ByteReactor* {
                                          absl::StatusOr<Caller> caller = Identify(*context, method);
                                          if (!caller.ok()) return RefuseCall(caller.status());
                                          return handler(context, *std::move(caller));
                                        }));
}

ByteReactor* CallService::Unary(const Method& method, Context* context, Caller caller, UnaryReactor::Work work) {
  return Started(std::make_shared<UnaryReactor>(&environment(), context, std::move(caller), method.name, method.slow,
                                                std::move(work)));
}

absl::Status CallService::Serialize(const google::protobuf::Message& response, ByteBuffer* answer) const {
  if (const auto size = static_cast<int64_t>(response.ByteSizeLong()); size > door_->bytes_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the answer has ", size, " bytes, the limit is ", door_->bytes_max));
  }
  SerializeMessage(response, answer);
  return absl::OkStatus();
}

std::optional<std::chrono::system_clock::time_point> CallService::DeadlineOf(const Context& context) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return std::nullopt;
  return deadline;
}

ByteReactor* CallService::Started(const std::shared_ptr<MessageReactor>& reactor) {
  reactor->Start();
  return reactor.get();
}

absl::StatusOr<Caller> CallService::Identify(const Context& context, const Method& method) {
  const std::string peer = PeerHost(context);
  absl::StatusOr<Caller> caller = door_->authenticator.Identify(peer, AuthorizationOf(context));
  if (!caller.ok()) {
    environment().ReportStranger(method.name, peer, caller.status());
    return caller;
  }
  if (method.for_operators && !caller->may_operate) {
    const absl::Status status =
        absl::PermissionDeniedError(absl::StrCat(method.name, " is for API keys with the role operator"));
    environment().ReportFailure(method.name, *caller, status);
    return status;
  }
  return caller;
}

}  // namespace goldfinch
