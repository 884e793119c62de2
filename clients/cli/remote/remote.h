// A server for the commands with --server: a channel with its credentials, and errors for people to read.
#ifndef GOLDFINCH_CLIENTS_CLI_REMOTE_REMOTE_H_
#define GOLDFINCH_CLIENTS_CLI_REMOTE_REMOTE_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "clients/cli/flags/options.h"
#include "clients/cli/remote/proxy.h"

namespace grpc {
class ChannelInterface;
class ClientContext;
class Status;
}  // namespace grpc

namespace goldfinch {

namespace v1 {
class GetClusterInfoResponse;
class GetModelInfoResponse;
}  // namespace v1

// Thread-safe.
class Remote {
 public:
  // Reads the files that the options name; sends nothing yet. UsageError if the address is not HOST:PORT or options do
  // not go together; NOT_FOUND or INVALID_ARGUMENT for a file.
  static absl::StatusOr<std::unique_ptr<Remote>> Open(const RemoteOptions& options);
  ~Remote();
  Remote(const Remote&) = delete;
  Remote& operator=(const Remote&) = delete;

  const std::shared_ptr<grpc::ChannelInterface>& channel() const { return channel_; }
  // Gives a call the API key and the deadline, which begins now. Must be called for every call.
  void Prepare(grpc::ClientContext* context) const;
  // An error of the same code, "HOST:PORT: UNAVAILABLE: ...". Names the proxy if there is one and it may be the cause.
  absl::Status ToStatus(const grpc::Status& status) const;
  // Likewise for a request that flags made: an error in one of its fields is a UsageError that names the flag.
  absl::Status ToRequestStatus(const grpc::Status& status) const;

  absl::StatusOr<v1::GetModelInfoResponse> GetModelInfo() const;
  absl::StatusOr<v1::GetClusterInfoResponse> GetClusterInfo() const;
  // The bytes of a token.
  absl::StatusOr<std::string> TokenBytes(int32_t id) const;

 private:
  Remote(const RemoteOptions& options, std::string authorization, std::optional<Proxy> proxy,
         std::shared_ptr<grpc::ChannelInterface> channel);

  const std::string server_;
  const double deadline_seconds_;
  const std::string authorization_;   // value of the metadata key "authorization"; may be empty
  const std::optional<Proxy> proxy_;  // by which the channel goes
  const std::shared_ptr<grpc::ChannelInterface> channel_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_REMOTE_REMOTE_H_
