// goldfinch context: makes, shows and changes the named contexts of a server.
#include "clients/cli/context/context.h"

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/safe_text.h"
#include "base/status.h"
#include "clients/cli/context/context_commands.h"
#include "clients/cli/context/context_table.h"
#include "clients/cli/local/model.h"
#include "clients/cli/remote/context_name.h"
#include "clients/cli/remote/remote.h"
#include "clients/cli/remote/status_table.h"
#include "clients/cli/terminal/printable.h"
#include "clients/cli/terminal/terminal.h"
#include "grpcpp/client_context.h"
#include "nlohmann/json.hpp"
#include "protos/contexts.grpc.pb.h"

namespace goldfinch {
namespace {

constexpr int64_t kTextBytesMax = int64_t{1} << 30;  // half of the largest message that protobuf allows

double UnixNow() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

void PrintJson(const nlohmann::json& json) { std::cout << JsonText(json, 2) << "\n"; }

absl::StatusOr<std::string> ReadContextText(const ContextOptions& options) {
  GF_ASSIGN_OR_RETURN(std::string text,
                      ReadText("--text", options.text, options.has_text, options.text_file, kTextBytesMax));
  if (text.empty()) return UsageError("the text is empty");
  return text;
}

// The service, and one call to it after another.
class Contexts {
 public:
  using Stub = v1::Contexts::Stub;
  using Reader = grpc::ClientReader<v1::CreateContextResponse>;

  static absl::StatusOr<Contexts> Open(const ContextOptions& options) {
    GF_ASSIGN_OR_RETURN(std::unique_ptr<Remote> remote, Remote::Open(options.remote));
    return Contexts(std::move(remote));
  }

  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                const Request& request) const {
    grpc::ClientContext context;
    remote_->Prepare(&context);
    Response response;
    GF_RETURN_IF_ERROR(remote_->ToRequestStatus(((*stub_).*method)(&context, request, &response)));
    return response;
  }

  // A text is read: shows the progress, and returns the last response.
  template <typename Request>
  absl::StatusOr<v1::CreateContextResponse> Read(std::unique_ptr<Reader> (Stub::*method)(grpc::ClientContext*,
                                                                                         const Request&),
                                                 const Request& request) const {
    grpc::ClientContext context;
    remote_->Prepare(&context);
    const std::unique_ptr<Reader> reader = ((*stub_).*method)(&context, request);
    ProgressBar bar("reading the text", "tokens");
    v1::CreateContextResponse response, last;
    while (reader->Read(&response)) {
      if (!response.request_id().empty()) last.set_request_id(response.request_id());
      if (response.has_context()) *last.mutable_context() = std::move(*response.mutable_context());
      if (response.has_usage()) *last.mutable_usage() = std::move(*response.mutable_usage());
      if (response.has_progress()) {
        bar.Update(static_cast<int64_t>(response.progress().prompt_tokens_done()),
                   static_cast<int64_t>(response.progress().prompt_tokens()));
      }
    }
    bar.Done();
    GF_RETURN_IF_ERROR(remote_->ToRequestStatus(reader->Finish()));
    if (!last.has_context()) return absl::InternalError("the server has ended the call without the context");
    return last;
  }

 private:
  explicit Contexts(std::unique_ptr<Remote> remote)
      : remote_(std::move(remote)), stub_(v1::Contexts::NewStub(remote_->channel())) {}

  std::unique_ptr<Remote> remote_;
  std::unique_ptr<Stub> stub_;
};

void PrintRead(const v1::CreateContextResponse& made, bool json) {
  if (json) {
    PrintJson({{"request_id", made.request_id()},
               {"context", MessageJson(made.context())},
               {"usage", MessageJson(made.usage())}});
    return;
  }
  PrintContext(made.context(), /*json=*/false);
  std::fprintf(stderr, "%s\n", ReadingLine(made.usage()).c_str());
}

absl::Status Create(const ContextOptions& options) {
  v1::CreateContextRequest request;
  *request.mutable_keep_as() = ToMessage(options.keep);
  if (!options.from.empty()) {
    GF_ASSIGN_OR_RETURN(const ContextReference from, ParseContextName("--from", options.from));
    request.set_context(from.name);
    if (from.tokens) request.set_context_tokens(*from.tokens);
  }
  for (const uint64_t position : options.breakpoints) request.add_breakpoints(position);
  request.set_priority(options.priority);
  GF_ASSIGN_OR_RETURN(const Contexts contexts, Contexts::Open(options));
  GF_ASSIGN_OR_RETURN(*request.mutable_text(), ReadContextText(options));
  GF_ASSIGN_OR_RETURN(const v1::CreateContextResponse made, contexts.Read(&Contexts::Stub::Create, request));
  PrintRead(made, options.json);
  return absl::OkStatus();
}

absl::Status Append(const ContextOptions& options) {
  v1::AppendContextRequest request;
  request.set_name(options.name);
  request.set_etag(options.etag);
  request.set_priority(options.priority);
  GF_ASSIGN_OR_RETURN(const Contexts contexts, Contexts::Open(options));
  GF_ASSIGN_OR_RETURN(*request.mutable_text(), ReadContextText(options));
  GF_ASSIGN_OR_RETURN(const v1::CreateContextResponse made, contexts.Read(&Contexts::Stub::Append, request));
  PrintRead(made, options.json);
  return absl::OkStatus();
}

absl::Status List(const ContextOptions& options) {
  GF_ASSIGN_OR_RETURN(const Contexts contexts, Contexts::Open(options));
  std::vector<v1::Context> all;
  v1::ListContextsRequest request;
  do {
    GF_ASSIGN_OR_RETURN(v1::ListContextsResponse page, contexts.Call(&Contexts::Stub::List, request));
    for (v1::Context& context : *page.mutable_contexts()) all.push_back(std::move(context));
    if (!page.next_page_token().empty() && page.next_page_token() == request.page_token()) {
      return absl::InternalError("the server has named the same page of contexts as the next one again");
    }
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  if (!options.json) {
    std::cout << ContextsTable(all, UnixNow());
    return absl::OkStatus();
  }
  nlohmann::json json = {{"contexts", nlohmann::json::array()}};
  for (const v1::Context& context : all) json["contexts"].push_back(MessageJson(context));
  PrintJson(json);
  return absl::OkStatus();
}

// Makes a call whose answer is a context, and prints that.
template <typename Request>
absl::Status Change(const ContextOptions& options,
                    grpc::Status (Contexts::Stub::*method)(grpc::ClientContext*, const Request&, v1::Context*),
                    const Request& request) {
  GF_ASSIGN_OR_RETURN(const Contexts contexts, Contexts::Open(options));
  GF_ASSIGN_OR_RETURN(const v1::Context context, contexts.Call(method, request));
  PrintContext(context, options.json);
  return absl::OkStatus();
}

absl::Status Show(const ContextOptions& options) {
  v1::GetContextRequest request;
  request.set_name(options.name);
  return Change(options, &Contexts::Stub::Get, request);
}

absl::Status Fork(const ContextOptions& options) {
  v1::ForkContextRequest request;
  GF_ASSIGN_OR_RETURN(const ContextReference from, ParseContextName("the context", options.name));
  request.set_context(from.name);
  if (from.tokens) request.set_context_tokens(*from.tokens);
  *request.mutable_keep_as() = ToMessage(options.keep);
  return Change(options, &Contexts::Stub::Fork, request);
}

absl::Status Rename(const ContextOptions& options) {
  v1::RenameContextRequest request;
  request.set_name(options.name);
  request.set_new_name(options.new_name);
  request.set_etag(options.etag);
  return Change(options, &Contexts::Stub::Rename, request);
}

absl::Status Pin(const ContextOptions& options) {
  v1::PinContextRequest request;
  request.set_name(options.name);
  request.set_pinned(options.command == "pin");
  request.set_etag(options.etag);
  return Change(options, &Contexts::Stub::Pin, request);
}

absl::Status Delete(const ContextOptions& options) {
  v1::DeleteContextRequest request;
  request.set_name(options.name);
  request.set_etag(options.etag);
  GF_ASSIGN_OR_RETURN(const Contexts contexts, Contexts::Open(options));
  return contexts.Call(&Contexts::Stub::Delete, request).status();
}

constexpr struct {
  const char* name;
  absl::Status (*run)(const ContextOptions& options);
} kCommands[] = {
    {"create", Create},
    {"append", Append},
    {"list", List},
    {"show", Show},
    {"fork", Fork},
    {"rename", Rename},
    {"pin", Pin},
    {"unpin", Pin},
    {"delete", Delete},
    {"export", RunContextExport},
    {"import", RunContextImport},
    {"verify", RunContextVerify},
};

}  // namespace

void PrintContext(const v1::Context& context, bool json) {
  if (json) {
    PrintJson(MessageJson(context));
  } else {
    std::cout << ContextDetails(context, UnixNow());
  }
}

absl::Status RunContext(const ContextOptions& options) {
  for (const auto& command : kCommands) {
    if (options.command == command.name) return command.run(options);
  }
  return UsageError(absl::StrCat("there is no command context ", options.command));
}

}  // namespace goldfinch
