#include "coordinator/grpc/server.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/front/front.h"
#include "coordinator/grpc/peer.h"
#include "grpc/compression.h"
#include "grpc/grpc.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/impl/server_builder_option.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "grpcpp/server_posix.h"

namespace goldfinch {
namespace {

// Threads of the synchronous services: reflection is the only one, and each of its calls holds a thread.
constexpr int kThreadsMax = 8;
// A peer is pinged so often; one that does not answer for as long is gone, and its calls are cancelled.
constexpr int kKeepaliveMs = 20'000;
constexpr int kPingIntervalMinMs = 5000;  // clients that ping more often are disconnected

// What clients may still get when all calls have ended.
constexpr double kLastBytesSeconds = 2;

void SetLimits(const ServerOptions& options, grpc::ServerBuilder* builder) {
  constexpr int64_t kIntMax = std::numeric_limits<int>::max();
  builder->SetMaxReceiveMessageSize(static_cast<int>(std::min(options.front.limits.message_bytes_max, kIntMax)));
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.front.limits.streams_max);
  // A message that the service has not asked for may have 64 KiB, the initial window, with its sender held up. With the
  // probe, which measures bandwidth to enlarge windows, it would be 4 MiB and more for each stream. H2Guard's
  // kStreamWindow and kPayloadBytesMax rely on this. A message that is being read gets its window all the same.
  builder->AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  // Compressed messages are refused with UNIMPLEMENTED: gRPC would inflate them before it looks at any limit, and a
  // megabyte can become a gigabyte. The filters that inflate and compress are left out.
  builder->AddChannelArgument(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE);
  builder->AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
  builder->AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kPingIntervalMinMs);
  builder->SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder->SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder->SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
  // The quota bounds threads alone: what gRPC does about a lack of memory is to cancel calls, whosesoever they are.
  grpc::ResourceQuota quota("goldfinch");
  quota.SetMaxThreads(kThreadsMax);
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
  for (const std::shared_ptr<grpc::Service>& service : server->services_) builder.RegisterService(service.get());
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr) return absl::InternalError("gRPC cannot start a server");
  server->SetReady(false);
  absl::StatusOr<std::unique_ptr<Front>> started =
      Front::Start(options.front, [self = server.get()](const FrontConnection& connection) { self->Take(connection); });
  if (!started.ok()) return started.status();
  server->front_ = *std::move(started);
  return server;
}

int Server::port() const { return front_->port(); }

void Server::ReloadTls() { front_->ReloadTls(); }

void Server::Take(const FrontConnection& connection) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (closing_) {
    close(connection.fd);
    return;
  }
  RememberPeer(connection.fd, connection.peer);
  grpc::AddInsecureChannelFromFd(server_.get(), connection.fd);
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
  if (front_ != nullptr) front_->StopListening();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
  }
  const std::chrono::duration<double> timeout(timeout_seconds);
  server_->Shutdown(std::chrono::system_clock::now() +
                    std::chrono::duration_cast<std::chrono::system_clock::duration>(timeout));
  if (front_ != nullptr) front_->Shutdown(kLastBytesSeconds);
}

}  // namespace goldfinch
