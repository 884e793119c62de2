// goldfinch serve, goldfinch coordinator: the ports of the server, and with serve the workers too.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/credentials.h"
#include "base/host_port.h"
#include "base/status.h"
#include "base/version.h"
#include "clients/cli/machine/machine.h"
#include "clients/cli/machine/machine_limits.h"
#include "clients/cli/machine/numa.h"
#include "clients/cli/serve/cluster_setup.h"
#include "clients/cli/serve/context_setup.h"
#include "clients/cli/serve/embedded_workers.h"
#include "clients/cli/serve/file_watch.h"
#include "clients/cli/serve/serve_commands.h"
#include "clients/cli/serve/server_log.h"
#include "clients/cli/serve/stage_devices.h"
#include "clients/cli/serve/stop_signal.h"
#include "clients/cli/terminal/terminal.h"
#include "coordinator/calls/key_ring.h"
#include "coordinator/coordinator.h"
#include "coordinator/front/listener.h"
#include "coordinator/grpc/cluster_service.h"
#include "coordinator/grpc/server.h"
#include "coordinator/grpc/service.h"
#include "coordinator/metrics/metrics.h"
#include "coordinator/metrics/metrics_server.h"
#include "nlohmann/json.hpp"
#include "spdlog/spdlog.h"
#include "worker/stage/gold_tiers.h"
#include "worker/transport/transport.h"
#include "worker/worker.h"

namespace goldfinch {
namespace {

constexpr double kReadyPollSeconds = 0.02;
// Far above the largest answer to a step: raw logits take at most 16 MB.
constexpr int64_t kClusterMessageBytesMax = int64_t{64} << 20;
constexpr int kWorkersMaxLeast = 64;  // for a small cluster: spares, and workers that come back before they are missed
// Time to write out the streams that have ended.
constexpr double kCloseSeconds = 2;

std::string ModelName(const ServeOptions& options) {
  if (!options.served_model_name.empty()) return options.served_model_name;
  return std::filesystem::path(options.model).stem().string();
}

absl::StatusOr<CoordinatorOptions> CoordinatorOptionsOf(const ServeOptions& options, StopSignal& stop) {
  CoordinatorOptions result;
  result.queue = {static_cast<int>(options.max_queue), options.max_queue_bytes};
  result.overcommit = options.overcommit == "on";
  result.prefix_cache = !options.no_prefix_cache;
  result.snapshots.first_tokens = options.snapshot_tokens;
  result.step_timeout_seconds = options.step_timeout_seconds;
  result.step_target_seconds = options.step_target_ms / 1000;
  result.recovery_timeout_seconds = options.recovery_timeout_seconds;
  result.served_model_name = ModelName(options);
  result.server_version = kVersion;
  result.vocab = options.vocab;
  result.on_fatal = [&stop](const absl::Status& status) { stop.Raise(status); };

  MembershipOptions& membership = result.membership;
  membership.replicas = options.replicas;
  // Absolute, as workers may run in another folder.
  membership.model = std::filesystem::absolute(options.model).string();
  if (!options.config.empty()) membership.config = std::filesystem::absolute(options.config).string();
  membership.verify = options.verify;
  membership.cache_dtype = options.cache_dtype;
  membership.workers_max = std::max(kWorkersMaxLeast, 4 * options.replicas * options.stages);
  membership.heartbeat_interval_seconds = options.heartbeat_interval_seconds;
  membership.heartbeat_timeout_seconds = options.heartbeat_timeout_seconds;
  membership.form_timeout_seconds = options.form_timeout_seconds;
  membership.regroup_wait_seconds = options.regroup_wait_seconds;
  membership.regrow_after_seconds = options.regrow_after_seconds;
  membership.network = OwnNetwork();

  if (options.heartbeat_timeout_seconds < 2 * options.heartbeat_interval_seconds) {
    return UsageError(absl::StrCat("--heartbeat-timeout is ", options.heartbeat_timeout_seconds,
                                   " s, which is less than twice --heartbeat-interval, ",
                                   options.heartbeat_interval_seconds, " s"));
  }

  GF_ASSIGN_OR_RETURN(membership.partition, PartitionOptionsOf(options, &membership.stages));
  if (options.replan && !membership.partition.split.empty()) {
    return UsageError(
        absl::StrCat("--replan changes the split, and --split is ", options.split, ": give auto, border or balanced"));
  }
  membership.replan = options.replan;
  membership.replan_gain = options.replan_gain;
  membership.replan_after_seconds = options.replan_after_seconds;
  // Often enough that a gain that lasts is seen in time.
  result.split_period_seconds = std::min(result.split_period_seconds, options.replan_after_seconds / 4);
  return result;
}

void WarnIfOpen(const ServeOptions& options) {
  if (OnlyLoopback(options.host)) return;
  const bool no_keys = options.api_key_file.empty() && options.tls.roots.empty();
  const bool no_tls = options.tls.certificate.empty();
  if (!no_keys && !no_tls) return;
  std::string text = "the gRPC port on " + options.host;
  if (no_keys) text += " serves everybody who can reach it: set --api-key-file, or --grpc-root-cert";
  if (no_keys && no_tls) text += "; and it";
  if (no_tls) text += " is not encrypted: set --grpc-server-cert and --grpc-server-key";
  spdlog::warn("{}", text);
}

FrontOptions FrontOptionsOf(const ServeOptions& options, const std::string& hosts, int port, const TlsFiles& tls) {
  FrontOptions front;
  front.hosts = SplitHosts(hosts);
  front.port = port;
  front.tls = tls;
  front.limits.connections_max = options.max_connections;
  front.limits.connections_per_address_max = options.max_connections_per_address;
  front.limits.calls_per_address_max = options.max_calls_per_address;
  // All requests that wait, and as many others.
  front.limits.calls_max = std::max<int>(front.limits.calls_max, 2 * static_cast<int>(options.max_queue));
  return front;
}

// "127.0.0.1:50051 and [::1]:50051".
std::string Addresses(const std::string& hosts, int port) {
  std::vector<std::string> addresses = SplitHosts(hosts);
  for (std::string& address : addresses) address = HostPort{address, port}.ToString();
  return absl::StrJoin(addresses, " and ");
}

// Everything that listens. Ends its calls when it is destroyed.
class Frontend {
 public:
  static absl::StatusOr<std::unique_ptr<Frontend>> Start(const ServeOptions& options, bool with_cluster_port,
                                                         Coordinator& coordinator, Metrics& metrics) {
    auto frontend = std::make_unique<Frontend>();
    ServiceOptions service;
    service.stall_timeout_seconds = options.stall_timeout_seconds;
    if (!options.api_key_file.empty()) {
      GF_ASSIGN_OR_RETURN(frontend->api_keys_, KeyRing::Open(options.api_key_file));
      service.api_keys = frontend->api_keys_;
    }
    WarnIfOpen(options);
    ServerOptions server;
    server.front = FrontOptionsOf(options, options.host, options.grpc_port, options.tls);
    server.front.limits.message_bytes_max = service.message_bytes_max = options.max_message_bytes;
    server.health_service = kPublicServiceName;
    server.reflection = !options.no_grpc_reflection;
    GF_ASSIGN_OR_RETURN(frontend->public_,
                        Server::Start(server, MakePublicServices(&coordinator, &coordinator, &metrics, service)));
    if (with_cluster_port) {
      ServerOptions cluster;
      cluster.front = FrontOptionsOf(options, ClusterHost(options), options.cluster_port, options.cluster_tls);
      cluster.front.limits.message_bytes_max = kClusterMessageBytesMax;
      cluster.reflection = false;
      ClusterServiceOptions service;
      GF_ASSIGN_OR_RETURN(service.key, ReadClusterKey(options.cluster_key_file));
      GF_ASSIGN_OR_RETURN(frontend->cluster_, Server::Start(cluster, {MakeClusterService(&coordinator, service)}));
    }
    if (options.metrics_port >= 0) {
      MetricsServerOptions http;
      http.host = options.metrics_host;
      http.port = options.metrics_port;
      // Nobody may see a server that is ready and has not started: started_ is set a moment later.
      http.started = [&coordinator, &started = frontend->started_] { return started || coordinator.ready(); };
      http.ready = [&coordinator, &stopping = frontend->stopping_] { return coordinator.ready() && !stopping; };
      GF_ASSIGN_OR_RETURN(frontend->metrics_, MetricsServer::Start(http, metrics));
    }
    return frontend;
  }

  void Announce(const ServeOptions& options) const {
    spdlog::info("serving {} at {}", ModelName(options), Addresses(options.host, public_->port()));
    if (cluster_ != nullptr) {
      spdlog::info("workers connect to {}", Addresses(ClusterHost(options), cluster_->port()));
      if (options.insecure_cluster) {
        spdlog::warn("--insecure-cluster: whoever reaches that port can join, read prompts and make up answers");
      }
    }
    if (metrics_ != nullptr) {
      spdlog::info("metrics and probes at http://{}/metrics", Addresses(options.metrics_host, metrics_->port()));
    }
    if (!options.ready_json) return;
    nlohmann::json ports = {{"grpc_port", public_->port()}};
    if (cluster_ != nullptr) ports["cluster_port"] = cluster_->port();
    if (metrics_ != nullptr) ports["metrics_port"] = metrics_->port();
    std::printf("%s\n", ports.dump().c_str());
    std::fflush(stdout);
  }

  void SetReady(bool ready) {
    if (ready) started_ = true;
    public_->SetReady(ready);
  }

  // From here on the probes and the health service say that the server is not ready, and it still serves.
  void SetStopping() {
    stopping_ = true;
    SetReady(false);
  }

  // Reads certificates and API keys again. What is wrong with them is logged, and changes nothing.
  void Reload() {
    public_->ReloadTls();
    if (api_keys_ != nullptr) api_keys_->Reload().IgnoreError();
    if (cluster_ != nullptr) cluster_->ReloadTls();
  }

  void Shutdown() {
    public_->Shutdown(kCloseSeconds);
    if (cluster_ != nullptr) cluster_->Shutdown(kCloseSeconds);
  }

 private:
  std::shared_ptr<KeyRing> api_keys_;  // null: no key is asked for
  std::unique_ptr<Server> public_;
  std::unique_ptr<Server> cluster_;     // null: the workers are in this process
  std::atomic<bool> started_ = false;   // has been ready once
  std::atomic<bool> stopping_ = false;  // is about to end
  std::unique_ptr<MetricsServer> metrics_;
};

absl::StatusOr<std::unique_ptr<EmbeddedWorkers>> StartWorkers(const ServeOptions& options, StageDevices& devices,
                                                              Coordinator& coordinator, StopSignal& stop) {
  const int count = static_cast<int>(devices.stages.size());
  auto workers =
      std::make_unique<EmbeddedWorkers>(coordinator, [&stop](const absl::Status& status) { stop.Raise(status); });
  GF_RETURN_IF_ERROR(MeasureStages(&devices));
  for (int i = 0; i < count; ++i) {
    StageDevice& device = devices.stages[i];
    WorkerOptions worker = EmbeddedWorkerOptions(i, count, device.memory_bytes);
    worker.gold_tier = *ParseGoldTier(options.gold_tier);  // the flag allows no other names
    worker.shelf_bytes = device.shelf_bytes;
    worker.speed = device.speed;
    worker.log = [](const std::string& line) { spdlog::info("{}", line); };
    const std::string name = worker.name;
    const RunsOn there(device.cpus);
    workers->Add(std::make_unique<Worker>(std::move(worker), std::move(device.backend), MakeLocalTransportFactory()),
                 name);
  }
  return workers;
}

absl::Status Serve(const ServeOptions& options, bool embedded) {
  if (!embedded) GF_RETURN_IF_ERROR(CheckClusterPort(options));
  StopSignal stop;
  LogAsServer();
  GF_ASSIGN_OR_RETURN(CoordinatorOptions coordinator_options, CoordinatorOptionsOf(options, stop));
  GF_RETURN_IF_ERROR(DescribeModel(options, &coordinator_options.membership));
  GF_RETURN_IF_ERROR(OpenContextStore(options, embedded, &coordinator_options));
  const int workers_wanted = coordinator_options.membership.stages * options.replicas;
  StageDevices devices;
  if (embedded) {
    GF_ASSIGN_OR_RETURN(devices, OpenStageDevices(options, workers_wanted, ThisStageMachine(), /*claims=*/true));
    spdlog::info("limits: {}", ThisMachine().Describe());
    for (const std::string& line : devices.lines) spdlog::info("{}", line);
  }
  // Each of these may use those above it, and is destroyed before them.
  Metrics metrics(coordinator_options.served_model_name);
  Coordinator coordinator(std::move(coordinator_options), &metrics);
  std::unique_ptr<EmbeddedWorkers> workers;
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Frontend> frontend,
                      Frontend::Start(options, !embedded, coordinator, metrics));
  if (embedded) {
    GF_ASSIGN_OR_RETURN(workers, StartWorkers(options, devices, coordinator, stop));
  }
  // A model that is changed in place would answer with nonsense from here on.
  const FileWatch watch(kFileWatchSeconds, [&stop](const absl::Status& status) {
    spdlog::error("{}", std::string(status.message()));
    stop.Raise(status);
  });
  frontend->Announce(options);
  bool ready = false;
  while (!stop.WaitFor(kReadyPollSeconds)) {
    if (stop.TakeReload()) frontend->Reload();
    if (const absl::Status fault = workers == nullptr ? absl::OkStatus() : workers->device_status(); !fault.ok()) {
      spdlog::error("{}", std::string(fault.message()));
      stop.Raise(fault);
    }
    if (coordinator.ready() == ready) continue;
    ready = !ready;
    frontend->SetReady(ready);
    spdlog::info(ready ? "ready" : "not ready");
  }
  frontend->SetStopping();
  if (stop.status().ok()) {
    spdlog::info("ending: running requests have {} s (--shutdown-timeout)", options.shutdown_timeout_seconds);
    coordinator.Drain(options.shutdown_timeout_seconds);
  }
  frontend->Shutdown();
  return stop.status();
}

}  // namespace

absl::Status RunServe(const ServeOptions& options) { return Serve(options, /*embedded=*/true); }

absl::Status RunCoordinator(const ServeOptions& options) { return Serve(options, /*embedded=*/false); }

}  // namespace goldfinch
