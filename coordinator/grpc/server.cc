#include "coordinator/grpc/server.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "grpc/compression.h"
#include "grpc/grpc.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/impl/server_builder_option.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"

namespace goldfinch {
namespace {

// Threads of the synchronous services: reflection is the only one, and each of its calls holds a thread.
constexpr int kThreadsMax = 8;
constexpr int kPingIntervalMinMs = 5000;  // clients that ping more often are disconnected

// Puts an IPv6 address in brackets.
std::string HostPort(const std::string& host, int port) {
  const bool bare_ipv6 = absl::StrContains(host, ":") && !absl::StartsWith(host, "[");
  return absl::StrCat(bare_ipv6 ? absl::StrCat("[", host, "]") : host, ":", port);
}

void SetLimits(const ServerOptions& options, grpc::ServerBuilder* builder) {
  constexpr int64_t kIntMax = std::numeric_limits<int>::max();
  builder->SetMaxReceiveMessageSize(static_cast<int>(std::min(options.request_bytes_max, kIntMax)));
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.streams_max);
  // A message that the service has not asked for may have 64 KiB, the initial window, with its sender held up. With the
  // probe, which measures bandwidth to enlarge windows, it would be 4 MiB and more for each stream.
  builder->AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  // Compressed messages are refused with UNIMPLEMENTED: gRPC would inflate them before it looks at any limit, and a
  // megabyte can become a gigabyte. The filters that inflate and compress are left out.
  builder->AddChannelArgument(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE);
  builder->AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
  builder->AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, static_cast<int>(options.keepalive_seconds * 1000));
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, static_cast<int>(options.keepalive_seconds * 1000));
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kPingIntervalMinMs);
  // Otherwise two servers could share a port, and each would get half of the clients.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder->SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder->SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder->SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
  grpc::ResourceQuota quota("goldfinch");
  quota.SetMaxThreads(kThreadsMax);
  if (options.buffer_bytes_max > 0) quota.Resize(options.buffer_bytes_max);
  builder->SetResourceQuota(quota);
}

// Takes away what the reflection library adds to every server of a program that is linked with it.
class NoReflection final : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    const std::string reflection = grpc::reflection::ProtoServerReflectionPlugin().name();
    std::erase_if(*plugins, [&](const auto& plugin) { return plugin->name() == reflection; });
  }
};

}  // namespace

Server::Server(ServerOptions options, std::vector<std::shared_ptr<grpc::Service>> services)
    : options_(std::move(options)), services_(std::move(services)) {}

Server::~Server() { Shutdown(0); }

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options,
                                                      std::vector<std::shared_ptr<grpc::Service>> services) {
  // When its last object is destroyed, gRPC cleans up, which waits up to 10 s for connections that are still closing.
  // One reference is kept so that this never happens.
  [[maybe_unused]] static const bool initialized = (grpc_init(), true);
  // Both apply to the whole process, and calling them again does no harm.
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();

  std::unique_ptr<Server> server(new Server(options, std::move(services)));
  grpc::ServerBuilder builder;
  SetLimits(options, &builder);
  if (!options.reflection) builder.SetOption(std::make_unique<NoReflection>());
  const std::string address = HostPort(options.host, options.port);
  builder.AddListeningPort(address, options.credentials ? options.credentials : grpc::InsecureServerCredentials(),
                           &server->port_);
  for (const std::shared_ptr<grpc::Service>& service : server->services_) builder.RegisterService(service.get());
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr || server->port_ == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", address, ": the port is taken, or the address is not this machine's"));
  }
  server->SetReady(false);
  return server;
}

void Server::SetReady(bool ready) {
  if (options_.health_service.empty()) return;
  // "" is what probes ask about that know no service's name, such as kubelet's.
  for (const std::string& service : {options_.health_service, std::string()}) {
    server_->GetHealthCheckService()->SetServingStatus(service, ready);
  }
}

void Server::Shutdown(double timeout_seconds) {
  if (server_ == nullptr) return;  // the server has not started
  server_->GetHealthCheckService()->SetServingStatus(false);
  const std::chrono::duration<double> timeout(timeout_seconds);
  server_->Shutdown(std::chrono::system_clock::now() +
                    std::chrono::duration_cast<std::chrono::system_clock::duration>(timeout));
}

}  // namespace goldfinch
