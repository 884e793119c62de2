// What the public services have in common: how calls begin, who may make them, and how their messages are read.
#ifndef GOLDFINCH_COORDINATOR_GRPC_CALL_SERVICE_H_
#define GOLDFINCH_COORDINATOR_GRPC_CALL_SERVICE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/status.h"
#include "coordinator/calls/authenticator.h"
#include "coordinator/calls/call.h"
#include "coordinator/grpc/call_reactor.h"
#include "coordinator/grpc/service.h"
#include "coordinator/grpc/wire.h"
#include "coordinator/keeper/context_transfers.h"
#include "google/protobuf/message.h"
#include "grpcpp/impl/service_type.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"

namespace goldfinch {

// What the services of one server share: limits, keys and threads.
struct PublicDoor {
  // `contexts` may be null.
  PublicDoor(Dispatcher* dispatcher, ContextDirectory* contexts, Metrics* metrics, const ServiceOptions& options);

  const int64_t bytes_max;  // of an answer that is not streamed
  Authenticator authenticator;
  const std::unique_ptr<ContextTransfers> transfers;  // null without contexts
  CallEnvironment environment;

 private:
  void SweepLater();
};

class CallService : public grpc::Service {
 protected:
  using Context = grpc::CallbackServerContext;
  using Handler = std::function<ByteReactor*(Context* context, Caller caller)>;

  struct Method {
    const char* path;  // must live as long as the service
    const char* name;  // for the log and metrics, as is the path
    bool for_operators = false;
    bool slow = false;  // waits for other threads
  };

  explicit CallService(std::shared_ptr<PublicDoor> door) : door_(std::move(door)) {}

  // Registers a method as generated code registers one that streams both ways.
  void Add(const Method& method, Handler handler);

  // A method that answers a message with a message. It runs on another thread than gRPC's if it is slow.
  template <typename Request, typename Response>
  void AddUnary(const Method& method, std::function<absl::Status(const Request& request, Response* response)> work) {
    Add(method, [this, method, work](Context* context, Caller caller) {
      const auto run = [this, work](const grpc::ByteBuffer& bytes, grpc::ByteBuffer* answer,
                                    absl::AnyInvocable<void(const absl::Status&)> done) {
        const auto respond = [&]() -> absl::Status {
          Request request;
          Response response;
          GF_RETURN_IF_ERROR(ParseMessage(bytes, &request));
          GF_RETURN_IF_ERROR(work(request, &response));
          return Serialize(response, answer);
        };
        done(respond());
      };
      return Unary(method, context, std::move(caller), run);
    });
  }

  ByteReactor* Unary(const Method& method, Context* context, Caller caller, UnaryReactor::Work work);
  // RESOURCE_EXHAUSTED if it is too large.
  absl::Status Serialize(const google::protobuf::Message& response, grpc::ByteBuffer* answer) const;

  // A call that streams its answer. make(stream, caller, deadline) returns the Call.
  template <typename Make>
  ByteReactor* Stream(Context* context, Caller caller, const Make& make) {
    const auto stream = std::make_shared<StreamReactor>(&door_->environment, context, caller);
    stream->Attach(make(stream.get(), std::move(caller), DeadlineOf(*context)));
    return Started(stream);
  }

  CallEnvironment& environment() const { return door_->environment; }
  int64_t bytes_max() const { return door_->bytes_max; }  // of an answer that is not streamed
  ContextTransfers& transfers() const { return *door_->transfers; }

 private:
  static std::optional<std::chrono::system_clock::time_point> DeadlineOf(const Context& context);
  static ByteReactor* Started(const std::shared_ptr<MessageReactor>& reactor);
  // Who calls, from the headers alone: nothing of the message has been read.
  absl::StatusOr<Caller> Identify(const Context& context, const Method& method);

  const std::shared_ptr<PublicDoor> door_;
  int methods_ = 0;
};

// The services, each over a door that it shares with the other one.
std::shared_ptr<grpc::Service> MakeGoldfinchService(std::shared_ptr<PublicDoor> door);
std::shared_ptr<grpc::Service> MakeContextsService(std::shared_ptr<PublicDoor> door, ContextDirectory* contexts);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_CALL_SERVICE_H_
