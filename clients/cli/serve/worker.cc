// goldfinch worker: runs layers for a coordinator.
#include "worker/worker.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/credentials.h"
#include "base/host_port.h"
#include "base/shared_key.h"
#include "base/status.h"
#include "base/transports.h"
#include "base/units.h"
#include "clients/cli/machine/device.h"
#include "clients/cli/machine/machine.h"
#include "clients/cli/machine/machine_limits.h"
#include "clients/cli/machine/machine_lock.h"
#include "clients/cli/serve/cluster_setup.h"
#include "clients/cli/serve/file_watch.h"
#include "clients/cli/serve/serve_commands.h"
#include "clients/cli/serve/server_log.h"
#include "clients/cli/serve/stop_signal.h"
#include "clients/cli/terminal/terminal.h"
#include "grpcpp/security/credentials.h"
#include "kernels/backend.h"
#include "kernels/open_backend.h"
#include "spdlog/spdlog.h"
#include "worker/cluster_client.h"
#include "worker/device_speed.h"
#include "worker/stage/gold_tiers.h"
#include "worker/transport/transport.h"

namespace goldfinch {

namespace {

constexpr double kMeasureWaitSeconds = 5;
constexpr double kDevicePollSeconds = 1;  // between looks whether the device has failed for good
constexpr double kResolveSecondsMax = 2;  // between two attempts to resolve the coordinator's name

// `description` gets the transport's name, and why it is not a better one.
absl::StatusOr<std::unique_ptr<TransportFactory>> OpenTransport(const WorkerCommandOptions& options,
                                                                const Backend& backend, const std::string& address,
                                                                std::string* description) {
  *description = kTcpTransport;
  if (options.transport == kNcclTransport && backend.kind() != DeviceKind::kCuda) {
    return AsUsageError(absl::InvalidArgumentError("--transport nccl: the device is not a CUDA device"));
  }
  if (options.transport == kNcclTransport || (options.transport == "auto" && backend.kind() == DeviceKind::kCuda)) {
    absl::StatusOr<std::unique_ptr<TransportFactory>> nccl =
        MakeNcclTransportFactory(options.transport_timeout_seconds);
    if (nccl.ok()) {
      *description = kNcclTransport;
      return nccl;
    }
    const std::string why(nccl.status().message());
    if (options.transport == kNcclTransport) {
      return AsUsageError(absl::Status(nccl.status().code(), absl::StrCat("--transport nccl: ", why)));
    }
    *description = absl::StrCat(kTcpTransport, " (no NCCL: ", why, ")");
  }
  return MakeTcpTransportFactory(address, options.transport_timeout_seconds);
}

// The address of this machine on the route to the coordinator. The coordinator's name may not resolve yet, and its
// network may not be up: tries again for as long as it takes. Empty if it was told to stop.
absl::StatusOr<std::string> AwaitAddressTowards(const std::string& coordinator, StopSignal& stop) {
  double pause_seconds = 0.1;
  for (bool first = true;; first = false) {
    absl::StatusOr<std::string> address = AddressTowards(coordinator);
    if (!absl::IsUnavailable(address.status())) return address;
    if (first) spdlog::info("no way to the coordinator yet: {}", std::string(address.status().message()));
    if (stop.WaitFor(pause_seconds)) return std::string();
    pause_seconds = std::min(2 * pause_seconds, kResolveSecondsMax);
  }
}

WorkerPlace PlaceOf(const WorkerCommandOptions& options, const Backend& backend, const MachineLimits& limits,
                    const std::string& address) {
  WorkerPlace place;
  const bool on_cpu = backend.kind() == DeviceKind::kCpu;
  // A GPU's memory is shared with another worker only if both were given less than the default.
  place.memory_given = options.memory_bytes > 0 ||
                       (!on_cpu && options.gpu_memory_utilization < WorkerCommandOptions().gpu_memory_utilization);
  place.threads_given = options.backend.threads > 0;
  if (on_cpu) {
    place.memory_pool = MemoryPool(limits);
    place.cpu_pool = CpuPool(limits);
  }
  place.processor = ProcessorModel();
  place.address = address;
  place.network = OwnNetwork();
  return place;
}

}  // namespace

absl::Status RunWorker(const WorkerCommandOptions& options) {
  if (const absl::Status status = ParseHostPort(options.coordinator).status(); !status.ok()) {
    return UsageError(absl::StrCat("--coordinator ", std::string(status.message())));
  }
  StopSignal stop(/*second_ends=*/!options.supervised);
  LogAsServer();
  GF_ASSIGN_OR_RETURN(std::optional<SharedKey> key, ReadClusterKey(options.key_file));
  GF_ASSIGN_OR_RETURN(WorkerDevice device, OpenWorkerDevice(options.backend, GpuUuids()));
  std::unique_ptr<Backend> backend = std::move(device.backend);
  const MachineLimits limits = ThisMachine();
  spdlog::info("limits: {}", limits.Describe());
  GF_ASSIGN_OR_RETURN(std::shared_ptr<grpc::ChannelCredentials> credentials, MakeChannelCredentials(options.tls));
  std::string address = options.address;
  if (address.empty()) {
    GF_ASSIGN_OR_RETURN(address, AwaitAddressTowards(options.coordinator, stop));
    if (address.empty()) return stop.status();
  }
  std::string transport_kind;
  GF_ASSIGN_OR_RETURN(std::unique_ptr<TransportFactory> transport,
                      OpenTransport(options, *backend, address, &transport_kind));
  WorkerOptions worker_options;
  worker_options.name = options.name.empty() ? ProcessName() : options.name;
  worker_options.model = options.model;
  worker_options.config = options.config;
  worker_options.memory_bytes = options.memory_bytes;
  if (options.memory_bytes == 0) {
    GF_ASSIGN_OR_RETURN(worker_options.memory_bytes, UsableMemoryBytes(*backend, options.gpu_memory_utilization));
  }
  worker_options.shelf_bytes = ContextMemoryBytes(options.context_memory, backend->kind() == DeviceKind::kCpu,
                                                  HostGpus(), &worker_options.memory_bytes);
  worker_options.gold_tier = *ParseGoldTier(options.gold_tier);  // the flag allows no other names
  worker_options.place = PlaceOf(options, *backend, limits, address);
  {
    // Workers that measure at the same time would disturb each other.
    const std::optional<MachineLock> alone = MachineLock::Await("measures", kMeasureWaitSeconds);
    GF_ASSIGN_OR_RETURN(worker_options.speed, MeasureDevice(*backend));
  }
  worker_options.log = [](const std::string& line) { spdlog::info("{}", line); };
  spdlog::info("worker {} at {}: {}, {:.0f} GFLOP/s, {:.1f} GB/s, may use {}, transport {}", worker_options.name,
               address, device.description, worker_options.speed.flops / 1e9,
               worker_options.speed.read_bytes_per_second / 1e9,
               absl::StrCat(HumanBytes(worker_options.memory_bytes),
                            worker_options.place.memory_pool.empty() || worker_options.place.memory_given
                                ? ""
                                : " together with other workers of this host"),
               transport_kind);

  Worker worker(std::move(worker_options), std::move(backend), std::move(transport));
  ClusterClientOptions client_options;
  client_options.coordinator = options.coordinator;
  client_options.credentials = std::move(credentials);
  client_options.key = std::move(key);
  client_options.log = [](const std::string& line) { spdlog::info("{}", line); };
  ClusterClient client(std::move(client_options), worker);
  // The coordinator goes on with other workers.
  const FileWatch watch(kFileWatchSeconds, [&stop](const absl::Status& status) {
    spdlog::error("{}", std::string(status.message()));
    stop.Raise(status);
  });
  std::thread watcher([&] {
    if (absl::Status status = client.Wait(); !status.ok()) stop.Raise(status);
  });
  while (!stop.WaitFor(kDevicePollSeconds)) {
    const absl::Status fault = worker.device_status();
    if (fault.ok()) continue;
    spdlog::error("{}", std::string(fault.message()));
    stop.Raise(fault);
  }
  spdlog::info("ending");
  client.Stop(options.shutdown_timeout_seconds);
  watcher.join();
  return stop.status();
}

}  // namespace goldfinch
