// The service goldfinch.v1.Contexts.
#include <memory>
#include <string>
#include <utility>

#include "base/status.h"
#include "coordinator/calls/create_context_call.h"
#include "coordinator/calls/export_context_call.h"
#include "coordinator/calls/import_context_call.h"
#include "coordinator/calls/validation.h"
#include "coordinator/grpc/call_service.h"
#include "coordinator/keeper/context_directory.h"
#include "protos/contexts.pb.h"

namespace goldfinch {
namespace {

v1::ListContextsResponse ToMessage(const NamedContextPage& page) {
  v1::ListContextsResponse message;
  for (const NamedContext& context : page.contexts) *message.add_contexts() = goldfinch::ToMessage(context);
  message.set_next_page_token(page.next);
  return message;
}

v1::DeleteContextResponse ToMessage(const std::string&) { return {}; }

class ContextsService final : public CallService {
 public:
  ContextsService(std::shared_ptr<PublicDoor> door, ContextDirectory* contexts)
      : CallService(std::move(door)), contexts_(contexts) {
    AddReading<v1::CreateContextRequest>({"/goldfinch.v1.Contexts/Create", "CreateContext"}, &ValidateCreateContext);
    AddReading<v1::AppendContextRequest>({"/goldfinch.v1.Contexts/Append", "AppendContext"}, &ValidateAppendContext);
    Ask<v1::ForkContextRequest>({"/goldfinch.v1.Contexts/Fork", "ForkContext"}, &ValidateForkContext,
                                &ContextDirectory::ForkContext);
    Ask<v1::GetContextRequest>({"/goldfinch.v1.Contexts/Get", "GetContext"}, &ValidateGetContext,
                               &ContextDirectory::GetContext);
    Ask<v1::ListContextsRequest>({"/goldfinch.v1.Contexts/List", "ListContexts"}, &ValidateListContexts,
                                 &ContextDirectory::ListContexts);
    Ask<v1::RenameContextRequest>({"/goldfinch.v1.Contexts/Rename", "RenameContext"}, &ValidateRenameContext,
                                  &ContextDirectory::RenameContext);
    Ask<v1::PinContextRequest>({"/goldfinch.v1.Contexts/Pin", "PinContext"}, &ValidatePinContext,
                               &ContextDirectory::PinContext);
    Ask<v1::DeleteContextRequest>({"/goldfinch.v1.Contexts/Delete", "DeleteContext"}, &ValidateDeleteContext,
                                  &ContextDirectory::DeleteContext);
    AddExport({"/goldfinch.v1.Contexts/Export", "ExportContext"});
    AddImport({"/goldfinch.v1.Contexts/Import", "ImportContext"});
  }

 private:
  // A call that reads a text.
  template <typename Message>
  void AddReading(const Method& method, absl::StatusOr<Request> (*validate)(const Message&, const ServedModel&)) {
    Add(method, [this, method, validate](Context* context, Caller caller) {
      return Stream(context, std::move(caller), [&](StreamReactor* stream, Caller who, auto deadline) {
        const auto read = [stream, validate](const ServedModel& model) -> absl::StatusOr<Request> {
          Message message;
          GF_RETURN_IF_ERROR(ParseMessage(stream->message(), &message));
          return validate(message, model);
        };
        return std::make_shared<CreateContextCall>(&environment(), method.name, std::move(who), deadline, read, stream);
      });
    });
  }

  // A call that the directory answers.
  template <typename Message, typename Query, typename Result>
  void Ask(const Method& method, absl::StatusOr<Query> (*validate)(const Message&),
           void (ContextDirectory::*ask)(const std::string&, Query, ContextDirectory::Answer<Result>)) {
    Add(method, [this, method, validate, ask](Context* context, Caller caller) {
      const std::string name_space = caller.client->name_space;
      const auto work = [this, validate, ask, name_space](const grpc::ByteBuffer& bytes, grpc::ByteBuffer* answer,
                                                          absl::AnyInvocable<void(const absl::Status&)> done) {
        Message message;
        if (const absl::Status status = ParseMessage(bytes, &message); !status.ok()) return done(status);
        absl::StatusOr<Query> query = validate(message);
        if (!query.ok()) return done(query.status());
        (contexts_->*ask)(
            name_space, *std::move(query),
            [this, answer, done = std::move(done)](absl::StatusOr<Result> result) mutable {
              // The coordinator's thread has other things to do.
              environment().writing.Post([this, answer, done = std::move(done), result = std::move(result)]() mutable {
                done(result.ok() ? Serialize(ToMessage(*result), answer) : result.status());
              });
            });
      };
      return Unary(method, context, std::move(caller), work);
    });
  }

  void AddExport(const Method& method) {
    Add(method, [this, method](Context* context, Caller caller) {
      return Stream(context, std::move(caller), [&](StreamReactor* stream, Caller who, auto deadline) {
        const auto read = [stream]() -> absl::StatusOr<FileQuery> {
          v1::ExportContextRequest message;
          GF_RETURN_IF_ERROR(ParseMessage(stream->message(), &message));
          return ValidateExportContext(message);
        };
        return std::make_shared<ExportContextCall>(&environment(), method.name, std::move(who), deadline, read,
                                                   &transfers(), stream);
      });
    });
  }

  void AddImport(const Method& method) {
    Add(method, [this, method](Context* context, Caller caller) {
      const auto work = [this, client = caller.client](const grpc::ByteBuffer& bytes, grpc::ByteBuffer* answer,
                                                       absl::AnyInvocable<void(const absl::Status&)> done) {
        v1::ImportContextRequest message;
        if (const absl::Status status = ParseMessage(bytes, &message); !status.ok()) return done(status);
        auto respond = [this, answer,
                        done = std::move(done)](absl::StatusOr<v1::ImportContextResponse> response) mutable {
          environment().writing.Post([this, answer, done = std::move(done), response = std::move(response)]() mutable {
            done(response.ok() ? Serialize(*response, answer) : response.status());
          });
        };
        ImportContext(transfers(), client, &message, std::move(respond));
      };
      return Unary(method, context, std::move(caller), work);
    });
  }

  ContextDirectory* const contexts_;
};

}  // namespace

std::shared_ptr<grpc::Service> MakeContextsService(std::shared_ptr<PublicDoor> door, ContextDirectory* contexts) {
  return std::make_shared<ContextsService>(std::move(door), contexts);
}

}  // namespace goldfinch
