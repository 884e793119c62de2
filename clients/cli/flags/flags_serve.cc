// Flags of the commands that serve.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/transports.h"
#include "base/units.h"
#include "clients/cli/flags/flag_group.h"
#include "clients/cli/flags/flags.h"
#include "clients/cli/flags/serve_options.h"
#include "clients/cli/flags/shared_flags.h"
#include "coordinator/planner/planner.h"
#include "protos/cluster_protocol.h"
#include "worker/worker_options.h"

namespace goldfinch {
namespace {

void AddModelFlags(CLI::App& command, ServeOptions& options) {
  AddModelFlag(command, "--model", options.model);
  AddConfigFlag(command, options.config);
  AddVocabFlag(command, options.vocab);
  FlagGroup(command, kModelFlags)
      .Text("--served-model-name", options.served_model_name, "NAME", "Name of the model for clients and in metrics")
      ->default_str("the file's name without its ending");
  AddVerifyFlag(command, options.verify);
}

void AddSplitFlags(CLI::App& command, ServeOptions& options) {
  FlagGroup pipeline(command, kPipelineFlags);
  pipeline.InLimits("--pipeline-parallel-size", options.stages, "STAGES", "Stages that the layers are split over", 1,
                    1024);
  pipeline
      .Text(
          "--split", options.split, "auto|border|balanced|RANGES",
          "How the layers are split: for the least time that the expected traffic takes (auto), the same among splits "
          "with a stage that begins with the first GOLD layer (border), with the fastest slowest stage (balanced), or "
          "the layers of each stage, such as 0-7,8-15,16-23; `goldfinch plan` shows what it would be")
      ->check([](const std::string& text) {
        std::vector<int> first_layers;
        int layers = 0;
        if (ParseSplitAim(text) || ParseSplit(text, &first_layers, &layers)) return std::string();
        return text + " is none of auto, border and balanced, and not ranges of layers that follow each other";
      })
      ->capture_default_str();
  ExpectedTraffic& traffic = options.traffic;
  constexpr int64_t kTokensMax = int64_t{1} << 36;
  pipeline.InLimits("--expect-prompt-tokens", traffic.prompt_tokens, "TOKENS",
                    "Expected prompt tokens of a request; the split is planned for the expected traffic", 1,
                    kTokensMax);
  pipeline.InLimits("--expect-output-tokens", traffic.output_tokens, "TOKENS", "Expected output tokens of a request", 1,
                    kTokensMax);
  pipeline.InLimits("--expect-context-tokens", traffic.context_tokens, "TOKENS",
                    "Expected context of an output token, at least prompt and output", 1, kTokensMax);
  pipeline.InLimits("--expect-sequences", traffic.sequences, "COUNT", "Expected sequences at a time in one pipeline", 1,
                    1 << 16);
  std::string assumed;
  for (const TransportFacts& kind : kTransports) {
    absl::StrAppend(&assumed, assumed.empty() ? "" : ", ", std::string(kind.name), " ",
                    HumanBytes(static_cast<int64_t>(kind.assumed_bytes_per_second)));
  }
  pipeline.Bytes("--link-speed", options.link_bytes_per_second, "Bytes a second from one worker to another")
      ->default_str("as measured; before that assumed by the transport: " + assumed);
}

void AddPipelineFlags(CLI::App& command, ServeOptions& options) {
  AddSplitFlags(command, options);
  FlagGroup pipeline(command, kPipelineFlags);
  pipeline.InLimits("--replicas", options.replicas, "COUNT", "Pipelines that serve the model side by side", 1, 1024);
  pipeline.Switch("--replan", options.replan,
                  "Change the split of a pipeline when another would serve its real traffic in less time, by at least "
                  "--replan-gain for --replan-after; its streams pause, and go on exactly");
  pipeline
      .Unchecked("--replan-gain", options.replan_gain, "SHARE", "Least part of the time that a new split must save")
      ->check(InRange(0.01, 1.0));
  pipeline.Seconds("--replan-after", options.replan_after_seconds,
                   "Seconds for which it must do so without a break; longer after each change");
}

void AddLimitFlags(CLI::App& command, ServeOptions& options) {
  FlagGroup memory(command, kMemoryFlags);
  AddMaxModelLenFlag(command, options.max_model_len);
  // A whole number up to 65536; auto is 0.
  const auto or_auto = [](CLI::Option* option) {
    option
        ->transform(CLI::Validator(
            [](std::string& text) -> std::string {
              if (text != "auto") return InRange(int64_t{1}, int64_t{1} << 16)(text);
              text = "0";
              return "";
            },
            ""))
        ->default_str("auto");
  };
  or_auto(memory.Text(
      "--max-num-seqs", options.max_num_seqs, "COUNT|auto",
      absl::StrCat("Most sequences that run at once in one pipeline, 1 to 65536; auto is ", kSequencesManyMax,
                   " on GPUs and ", kSequencesFewMax, " on CPUs, and fewer where memory is short")));
  or_auto(memory.Text("--max-num-batched-tokens", options.max_step_tokens, "TOKENS|auto",
                      absl::StrCat("Most tokens of one step, over all its sequences, 1 to 65536; auto is ",
                                   kGpuStepTokens, " on GPUs and ", kCpuStepTokens,
                                   " on CPUs; --step-target-ms makes steps smaller while others wait")));
  memory
      .Text("--cache-tokens", options.cache_tokens, "TOKENS",
            WithRange("Tokens that the caches of one pipeline hold", int64_t{1}, kCacheTokensMax))
      ->check(InRange(int64_t{1}, kCacheTokensMax))
      ->default_str("what memory allows");
  AddCacheDTypeFlag(command, options.cache_dtype);
  memory.Switch("--no-prefix-cache", options.no_prefix_cache,
                "Read each prompt from its beginning, and keep nothing of it for requests that begin likewise");
  memory.InLimits("--snapshot-tokens", options.snapshot_tokens, "TOKENS",
                  "How far into a long text its state is first kept, and at least how far from there to the next time; "
                  "a request that parts from a text reads again from there; 0 is only at the ends of prompts",
                  int64_t{0}, kCacheTokensMax);
  memory
      .Text("--context-dir", options.context_dir, "FOLDER",
            "Folder in which what requests have read is kept beside the memory of workers; it outlives workers and "
            "this process, and belongs to one process at a time")
      ->default_str("nothing is kept on disk");
  memory.Bytes("--context-disk", options.context_disk, "Most bytes of the files in --context-dir")
      ->default_str("100 GB, or half of what that disk has if it is less");
  memory.InLimits("--protect-tokens", options.protect_tokens, "TOKENS",
                  "How long a text is, at least, that is kept out of reach of a loss of workers before all others", 1,
                  kCacheTokensMax);
}

void AddCapacityFlags(CLI::App& command, ServeOptions& options) {
  AddLimitFlags(command, options);
  FlagGroup(command, kMemoryFlags)
      .Choice("--overcommit", options.overcommit, {"on", "off"},
              "Reserve cache for answers of average length instead of the longest that their requests allow, and park "
              "a sequence, to be read again later, when the caches are full");
}

void AddPort(CLI::App& command, const std::string& name, int& port, const std::string& what) {
  FlagGroup(command, kNetworkFlags).InLimits(name, port, "PORT", what + "; 0 takes any free one", 0, 65535);
}

// --port used to be the port of the metrics, and will be that of the HTTP API: old scripts must not get the wrong one.
void RefuseOldPortFlag(CLI::App& command) {
  command
      .add_option_function<std::string>(
          "--port",
          [](const std::string&) {
            throw CLI::ValidationError("--port is now --metrics-port; --port is reserved for the HTTP API");
          })
      ->group("");  // not in the help
}

void AddServerTls(CLI::App& command, const std::string& prefix, const std::string& port, TlsFiles& tls) {
  FlagGroup security(command, kSecurityFlags);
  security.Text("--" + prefix + "-server-cert", tls.certificate, "FILE",
                "Certificate (PEM) of the " + port + "; turns on TLS");
  security.Text("--" + prefix + "-server-key", tls.key, "FILE", "Private key (PEM) of that certificate");
  security.Text("--" + prefix + "-root-cert", tls.roots, "FILE",
                "CA certificate (PEM) to verify those who connect with; they must have a certificate (mutual TLS)");
}

void AddClusterKeyFlag(CLI::App& command, std::string& file, const std::string& others) {
  FlagGroup(command, kSecurityFlags)
      .Text("--cluster-key-file", file, "FILE",
            "File with a secret of at least 32 characters, the same for the coordinator and its workers; the " +
                others + " must prove that they have it");
}

void AddListenFlags(CLI::App& command, ServeOptions& options) {
  FlagGroup network(command, kNetworkFlags);
  network
      .Text("--host", options.host, "HOSTS",
            "Addresses to listen on, separated by commas; 0.0.0.0 is all IPv4 addresses of this machine, and :: is all "
            "of both kinds")
      ->capture_default_str();
  AddPort(command, "--grpc-port", options.grpc_port, "gRPC port, which clients connect to");
  network.InLimits(
      "--metrics-port", options.metrics_port, "PORT",
      "HTTP port of the metrics, at /metrics, and of the probes /livez, /readyz and /startupz; 0 takes any "
      "free one, -1 is none",
      -1, 65535);
  network
      .Text("--metrics-host", options.metrics_host, "HOST",
            "Address that the HTTP port of the metrics listens on; it asks for no key")
      ->capture_default_str();
  RefuseOldPortFlag(command);
  network.Bytes("--max-message-bytes", options.max_message_bytes, "Largest request, or answer that is not streamed")
      ->check(InRange(int64_t{1}, int64_t{1} << 30));
  network.InLimits("--max-queue", options.max_queue, "COUNT", "Most requests that wait to be admitted", 0,
                   int64_t{1} << 20);
  network.Bytes("--max-queue-bytes", options.max_queue_bytes, "Most memory of requests that wait to be admitted");
  network.InLimits("--max-connections", options.max_connections, "COUNT", "Most connections of one port", 1, 1 << 20);
  network.InLimits("--max-connections-per-address", options.max_connections_per_address, "COUNT",
                   "Most connections of one port from one address; connections from this machine are not limited", 1,
                   1 << 20);
  network.InLimits("--max-calls-per-address", options.max_calls_per_address, "COUNT",
                   "Most open calls of one port from one address; calls from this machine are not limited", 1, 1 << 20);
  AddServerTls(command, "grpc", "gRPC port", options.tls);
  FlagGroup(command, kSecurityFlags)
      .Text("--api-key-file", options.api_key_file, "FILE",
            "File of API keys, of which clients must send one: one a line, or YAML with names, limits, roles and ends; "
            "read again when it changes")
      ->default_str("no key is asked for");
  FlagGroup(command, kSecurityFlags)
      .Switch("--no-grpc-reflection", options.no_grpc_reflection,
              "Do not tell clients of the gRPC port which services and messages there are");
  FlagGroup(command, kOutputFlags)
      .Switch("--ready-json", options.ready_json, "Print one line of JSON with the ports once they listen");
}

void AddServerTimeouts(CLI::App& command, ServeOptions& options) {
  FlagGroup timeouts(command, kTimeoutFlags);
  timeouts.Seconds("--shutdown-timeout", options.shutdown_timeout_seconds,
                   "Seconds that running requests have to end after SIGTERM or SIGINT");
  timeouts.Seconds("--recovery-timeout", options.recovery_timeout_seconds,
                   "Seconds without workers after which requests end with UNAVAILABLE");
  timeouts.Seconds("--step-timeout", options.step_timeout_seconds,
                   "Seconds without any progress after which a stage that has not finished its step is given up");
  timeouts
      .Unchecked("--step-target-ms", options.step_target_ms, "MS",
                 WithRange("Milliseconds that a step should take through all stages; a long prompt holds up the tokens "
                           "of others for little longer, but at its very end; 0: chosen by the devices",
                           0.0, kSecondsMax))
      ->check(InRange(0.0, kSecondsMax))
      ->default_str("50 on GPUs, 200 on CPUs");
  timeouts.Seconds(
      "--stall-timeout", options.stall_timeout_seconds,
      "Seconds after which a client that has not sent its request, reads nothing, or reads less than 128 bytes a "
      "second, is given up");
}

void AddStageDevicesFlag(CLI::App& command, std::string& devices) {
  AddDevicesFlag(
      command, devices,
      "GPUs that the stages are placed on, by their memory: their numbers and ranges, such as 0-7 or 0,2,4-5, "
      "or all that other workers leave free; cpu is the CPU, where each stage stays within a NUMA node if "
      "there are several")
      ->default_str("all with --device auto");
}

}  // namespace

void AddServe(CLI::App& app, ServeOptions& options) {
  CLI::App& command = *app.add_subcommand("serve", "Serve a model from this process alone");
  command.footer("Example: goldfinch serve --model model.pth --pipeline-parallel-size 3");
  AddModelFlags(command, options);
  AddPipelineFlags(command, options);
  AddBackendFlags(command, options.backend, "Threads to compute with, for all stages together");
  AddStageDevicesFlag(command, options.devices);
  AddCapacityFlags(command, options);
  AddMemoryFlags(command, options.gpu_memory_utilization, options.memory_bytes, "Memory for all stages together");
  AddContextMemoryFlag(command, options.context_memory, "The host's memory, for all stages together,");
  AddGoldTierFlag(command, options.gold_tier);
  AddListenFlags(command, options);
  AddServerTimeouts(command, options);
}

void AddCoordinator(CLI::App& app, ServeOptions& options) {
  CLI::App& command = *app.add_subcommand("coordinator", "Serve a model with workers that connect to this process");
  command.footer(
      "Example: goldfinch coordinator --model model.pth --host 0.0.0.0 --cluster-key-file "
      "cluster.key");
  AddModelFlags(command, options);
  AddPipelineFlags(command, options);
  AddCapacityFlags(command, options);
  AddListenFlags(command, options);
  FlagGroup(command, kMemoryFlags)
      .Bytes(
          "--protect-memory", options.protect_memory,
          "The memory of this process in which long texts (--protect-tokens) are kept, so that they need not be read "
          "again when workers are lost; with --context-dir they are there instead; 0 keeps nothing")
      ->default_str("a sixteenth of the memory that this process may use");
  FlagGroup(command, kModelFlags)
      .Text("--model-fingerprint", options.model_fingerprint, "HEX",
            "Fingerprint of the model, as `goldfinch inspect --json` prints it, if only the workers have the file")
      ->default_str("that of the file");
  AddPort(command, "--cluster-port", options.cluster_port, "Port that workers connect to");
  FlagGroup(command, kNetworkFlags)
      .Text("--cluster-host", options.cluster_host, "HOSTS", "Addresses of the cluster port, separated by commas")
      ->default_str("--host");
  AddServerTls(command, "cluster", "cluster port", options.cluster_tls);
  AddClusterKeyFlag(command, options.cluster_key_file, "workers");
  FlagGroup(command, kSecurityFlags)
      .Switch("--insecure-cluster", options.insecure_cluster,
              "Let whoever reaches the cluster port join as a worker, also where it is not on loopback");
  AddServerTimeouts(command, options);
  FlagGroup timeouts(command, kTimeoutFlags);
  timeouts.Seconds("--heartbeat-interval", options.heartbeat_interval_seconds, "Seconds between heartbeats");
  timeouts.Seconds("--heartbeat-timeout", options.heartbeat_timeout_seconds,
                   "Seconds without a heartbeat after which a worker is given up");
  timeouts.Seconds(
      "--regroup-wait", options.regroup_wait_seconds,
      absl::StrCat("Seconds to wait for a lost worker's return before going on with fewer workers; those that wait for "
                   "more than ",
                   WorkerOptions().keep_stage_seconds, " read their weights again"));
  timeouts.Seconds("--regrow-after", options.regrow_after_seconds,
                   "Seconds after which a busy group that lost workers grows back when there are new ones; its streams "
                   "pause, and go on exactly");
  timeouts.Seconds("--form-timeout", options.form_timeout_seconds,
                   "Seconds that workers have to load and check their layers");
}

void AddPlan(CLI::App& app, PlanCommandOptions& options) {
  CLI::App& command = *app.add_subcommand(
      "plan", "Show how the layers would be split over workers, what that costs, and what other splits would");
  command.footer(
      "Examples: goldfinch plan --model model.pth --pipeline-parallel-size 3\n"
      "          goldfinch plan --model model.pth --worker 126,700,4000 --worker 126,700,4000");
  AddModelFlag(command, "--model", options.serve.model);
  AddConfigFlag(command, options.serve.config);
  AddSplitFlags(command, options.serve);
  FlagGroup pipeline(command, kPipelineFlags);
  pipeline.Several("--worker", options.workers, "GB,TFLOPS,GB/S",
                   "A worker by its memory, its operations a second and the bytes that it reads a second, for one "
                   "stage each; without it, this machine's workers, as `goldfinch serve` would have them");
  const std::vector<std::string_view> transports = TransportNames();
  pipeline.Choice("--transport", options.transport, {transports.begin(), transports.end()},
                  "How rows would travel between workers; local is within one process");
  AddBackendFlags(command, options.serve.backend, "Threads to compute with, for all stages together");
  AddStageDevicesFlag(command, options.serve.devices);
  AddLimitFlags(command, options.serve);
  AddMemoryFlags(command, options.serve.gpu_memory_utilization, options.serve.memory_bytes,
                 "Memory for all stages together");
  FlagGroup(command, kOutputFlags).Switch("--json", options.json, "Print JSON instead of tables");
}

void AddWorker(CLI::App& app, WorkerCommandOptions& options) {
  CLI::App& command = *app.add_subcommand("worker", "Run layers of a model for a coordinator");
  command.footer("Example: goldfinch worker --coordinator 10.0.0.1:50052 --cluster-key-file cluster.key");
  FlagGroup model(command, kModelFlags);
  model.Text("--model", options.model, "PATH", "Checkpoint")->default_str("the path that the coordinator names");
  model.Text("--config", options.config, "FILE", "Settings of the model, JSON or YAML")
      ->default_str("the path that the coordinator names");
  AddBackendFlags(command, options.backend);
  AddDevicesFlag(
      command, options.devices,
      "Start a worker for each of these devices, in a process of its own, and start it again if it dies: GPUs "
      "by their numbers and ranges, such as 0-7 or 0,2,4-5, all GPUs that other workers leave free, or the "
      "NUMA nodes of the CPU (cpu); all is the CPU too where there is no GPU; the other flags hold for each")
      ->default_str("one worker in this process");
  command.add_flag("--supervised", options.supervised)->group("");  // of a process that --devices has started
  AddMemoryFlags(command, options.gpu_memory_utilization, options.memory_bytes,
                 "This worker's part of its host's memory, for weights, states, caches and everything else");
  AddContextMemoryFlag(command, options.context_memory, "The host's memory");
  AddGoldTierFlag(command, options.gold_tier);
  FlagGroup network(command, kNetworkFlags);
  network.Text("--coordinator", options.coordinator, "HOST:PORT", "Address of the coordinator's cluster port")
      ->required();
  network.Text("--name", options.name, "NAME", "Name of this worker in logs and in `goldfinch status`")
      ->default_str("host name and process");
  network.Text("--address", options.address, "HOST", "Host name or IP address at which other workers reach this one")
      ->default_str("the address of the route to the coordinator");
  network.Choice("--transport", options.transport, {"auto", "tcp", "nccl"},
                 "How rows travel between workers, the same for all workers of a group: over TCP (tcp) or between GPUs "
                 "with one worker each (nccl); auto is nccl where the device is CUDA and NCCL is available, else tcp");
  FlagGroup security(command, kSecurityFlags);
  security.Text("--cluster-root-cert", options.tls.roots, "FILE",
                "CA certificate (PEM) to verify the coordinator with; turns on TLS");
  security.Text("--cluster-client-cert", options.tls.certificate, "FILE",
                "Client certificate (PEM), for a coordinator that asks for one");
  security.Text("--cluster-client-key", options.tls.key, "FILE", "Private key (PEM) of that certificate");
  AddClusterKeyFlag(command, options.key_file, "coordinator and its workers");
  FlagGroup timeouts(command, kTimeoutFlags);
  timeouts.Seconds("--transport-timeout", options.transport_timeout_seconds,
                   "Seconds after which a transfer between workers that makes no progress is given up");
  timeouts.Seconds("--shutdown-timeout", options.shutdown_timeout_seconds,
                   "Seconds that the group has to end after SIGTERM or SIGINT");
}

}  // namespace goldfinch
