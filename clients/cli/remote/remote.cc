#include "clients/cli/remote/remote.h"

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/credentials.h"
#include "base/host_port.h"
#include "base/status.h"
#include "clients/cli/flags/flag_names.h"
#include "clients/cli/local/model.h"
#include "clients/cli/terminal/terminal.h"
#include "grpc/support/log.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/support/channel_arguments.h"
#include "protos/generate.grpc.pb.h"

namespace goldfinch {
namespace {

constexpr int64_t kApiKeyFileBytesMax = 4096;

absl::StatusOr<std::string> ReadApiKey(const std::string& file) {
  if (file.empty()) return std::string();
  GF_ASSIGN_OR_RETURN(const std::string text, ReadText("--api-key-file", "", false, file, kApiKeyFileBytesMax));
  std::string key(absl::StripAsciiWhitespace(text));
  if (key.empty()) return absl::InvalidArgumentError(absl::StrCat(file, ": there is no API key in it"));
  for (const char c : key) {
    // Refuses spaces too, so that a file of several lines is not taken for a key.
    if (!absl::ascii_isgraph(static_cast<unsigned char>(c))) {
      return absl::InvalidArgumentError(absl::StrCat(file, ": an API key is one line of printable ASCII"));
    }
  }
  return key;
}

// Silences the log lines of gRPC: the status of the call says the same in one line. GRPC_VERBOSITY brings them back.
void SilenceGrpc() {
  if (std::getenv("GRPC_VERBOSITY") == nullptr) gpr_set_log_function([](gpr_log_func_args*) {});
}

}  // namespace

Remote::Remote(const RemoteOptions& options, std::string authorization, std::optional<Proxy> proxy,
               std::shared_ptr<grpc::ChannelInterface> channel)
    : server_(options.server),
      deadline_seconds_(options.deadline_seconds),
      authorization_(std::move(authorization)),
      proxy_(std::move(proxy)),
      channel_(std::move(channel)) {}

Remote::~Remote() = default;

absl::StatusOr<std::unique_ptr<Remote>> Remote::Open(const RemoteOptions& options) {
  const absl::StatusOr<HostPort> address = ParseHostPort(options.server);
  if (!address.ok()) return UsageError(absl::StrCat("--server ", std::string(address.status().message())));
  if (options.client_cert.empty() != options.client_key.empty()) {
    return UsageError("--grpc-client-cert and --grpc-client-key go together");
  }
  GF_ASSIGN_OR_RETURN(const std::string key, ReadApiKey(options.api_key_file));
  SilenceGrpc();
  GF_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ChannelCredentials> credentials,
                      MakeChannelCredentials({options.client_cert, options.client_key, options.root_cert}));
  std::optional<Proxy> proxy = ProxyFor(address->host);
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, proxy ? 1 : 0);
  return std::unique_ptr<Remote>(new Remote(options, key.empty() ? "" : "Bearer " + key, std::move(proxy),
                                            grpc::CreateCustomChannel(options.server, credentials, arguments)));
}

void Remote::Prepare(grpc::ClientContext* context) const {
  if (!authorization_.empty()) context->AddMetadata("authorization", authorization_);
  if (deadline_seconds_ > 0) {
    context->set_deadline(std::chrono::system_clock::now() +
                          std::chrono::duration_cast<std::chrono::system_clock::duration>(
                              std::chrono::duration<double>(deadline_seconds_)));
  }
}

absl::Status Remote::ToStatus(const grpc::Status& status) const {
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  std::string message = absl::StrCat(server_, ": ", absl::StatusCodeToString(code), ": ", status.error_message());
  if (proxy_ && code == absl::StatusCode::kUnavailable) {
    absl::StrAppend(&message, " (by the proxy ", proxy_->address, ", which the variable ", proxy_->variable,
                    " names; no_proxy lists hosts to reach without it)");
  }
  return absl::Status(code, message);
}

absl::Status Remote::ToRequestStatus(const grpc::Status& status) const {
  if (status.error_code() != grpc::StatusCode::INVALID_ARGUMENT) return ToStatus(status);
  const std::optional<std::string> message = NameRequestFlag(status.error_message());
  return message.has_value() ? UsageError(*message) : AsUsageError(ToStatus(status));
}

absl::StatusOr<v1::GetModelInfoResponse> Remote::GetModelInfo() const {
  grpc::ClientContext context;
  Prepare(&context);
  v1::GetModelInfoResponse response;
  GF_RETURN_IF_ERROR(ToStatus(v1::Goldfinch::NewStub(channel_)->GetModelInfo(&context, {}, &response)));
  return response;
}

absl::StatusOr<v1::GetClusterInfoResponse> Remote::GetClusterInfo() const {
  grpc::ClientContext context;
  Prepare(&context);
  v1::GetClusterInfoResponse response;
  GF_RETURN_IF_ERROR(ToStatus(v1::Goldfinch::NewStub(channel_)->GetClusterInfo(&context, {}, &response)));
  return response;
}

absl::StatusOr<std::string> Remote::TokenBytes(int32_t id) const {
  grpc::ClientContext context;
  Prepare(&context);
  v1::DetokenizeRequest request;
  request.add_ids(id);
  v1::DetokenizeResponse response;
  GF_RETURN_IF_ERROR(ToStatus(v1::Goldfinch::NewStub(channel_)->Detokenize(&context, request, &response)));
  return std::move(*response.mutable_raw());
}

}  // namespace goldfinch
