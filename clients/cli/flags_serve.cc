// Flags of the commands that serve.
#include <cstdint>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "clients/cli/flags.h"
#include "clients/cli/serve_options.h"

namespace goldfinch {
namespace {

constexpr double kSecondsMax = 1e7;
constexpr int64_t kBytesMax = int64_t{1} << 50;

void AddSeconds(CLI::App& command, const char* flag, double& seconds, const char* help) {
  command.add_option(flag, seconds, help)
      ->check(IsNumber)
      ->check(CLI::Range(0.01, kSecondsMax))
      ->type_name("SECONDS")
      ->capture_default_str();
}

CLI::Option* AddBytes(CLI::App& command, const char* flag, int64_t& bytes, const char* help) {
  return command.add_option(flag, bytes, help)
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->check(CLI::Range(int64_t{0}, kBytesMax))
      ->type_name("BYTES");
}

void AddModelFlags(CLI::App& command, ServeOptions& options) {
  command.add_option("--model", options.model, "checkpoint: a .pth or .safetensors file, or the folder of one")
      ->required()
      ->type_name("PATH");
  command.add_option("--config", options.config, "model settings, JSON or YAML [config.json beside the model]")
      ->type_name("FILE");
  command.add_option("--vocab", options.vocab, "vocabulary file, or bytes [beside the model; bytes for 257 tokens]")
      ->type_name("FILE");
  command
      .add_option("--served-model-name", options.served_model_name, "what clients and metrics see [the file's name]")
      ->type_name("NAME");
  AddCacheDTypeFlag(command, options.cache_dtype);
  command.add_option("--verify", options.verify, "what to check while reading weights: all, finite, none")
      ->check(CLI::IsMember({"all", "finite", "none"}))
      ->capture_default_str();
}

void AddPipelineFlags(CLI::App& command, ServeOptions& options) {
  command.add_option("--pipeline-parallel-size", options.stages, "stages that the layers are split over")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command.add_option("--replicas", options.replicas, "pipelines that serve the model side by side")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command.add_option("--split", options.split, "layers of each stage, as 0-7,8-15,16-23 [balanced by cost and memory]")
      ->check([](const std::string& text) {
        std::vector<int> first_layers;
        int layers = 0;
        return ParseSplit(text, &first_layers, &layers) ? "" : text + " is not ranges of layers that follow each other";
      })
      ->type_name("RANGES");
  command.add_option("--max-model-len", options.max_model_len, "most tokens of a sequence, prompt and output together")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  command.add_option("--max-num-seqs", options.max_num_seqs, "sequences of a pipeline that run at a time")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 16))
      ->capture_default_str();
  command.add_option("--max-num-batched-tokens", options.max_step_tokens, "tokens of one step, over all sequences")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 16))
      ->capture_default_str();
  command.add_option("--cache-tokens", options.cache_tokens, "tokens that a pipeline's caches hold [by memory]")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  command.add_option("--max-queue", options.max_queue, "requests that may wait for a place")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20))
      ->capture_default_str();
}

void AddPort(CLI::App& command, const char* flag, int& port, const char* help, int least = 0) {
  command.add_option(flag, port, help)->check(CLI::Range(least, 65535))->type_name("PORT")->capture_default_str();
}

void AddServerTls(CLI::App& command, const std::string& prefix, const std::string& what, TlsFiles& tls) {
  command.add_option("--" + prefix + "-server-cert", tls.certificate, "certificate of " + what + ", PEM: uses TLS")
      ->type_name("FILE");
  command.add_option("--" + prefix + "-server-key", tls.key, "its key, PEM")->type_name("FILE");
  command
      .add_option("--" + prefix + "-root-cert", tls.roots,
                  "certificate that vouches for those who connect, PEM: asks them for one (mutual TLS)")
      ->type_name("FILE");
}

void AddListenFlags(CLI::App& command, ServeOptions& options) {
  command.add_option("--host", options.host, "address to listen at, 0.0.0.0 for all")->capture_default_str();
  AddPort(command, "--grpc-port", options.grpc_port, "of the public API; 0: any free one");
  AddPort(command, "--port", options.port, "of metrics, HTTP at /metrics; 0: any free one, -1: none", -1);
  AddServerTls(command, "grpc", "the public port", options.tls);
  command.add_option("--api-key-file", options.api_key_file, "API keys, one a line; clients must send one [none]")
      ->type_name("FILE");
  AddBytes(command, "--max-message-bytes", options.max_message_bytes, "most bytes of a request [64 MiB]");
  command.add_flag("--ready-json", options.ready_json, "print one JSON line with the ports once they listen");
  AddSeconds(command, "--shutdown-timeout", options.shutdown_timeout_seconds,
             "for requests that run when SIGTERM or SIGINT comes");
  AddSeconds(command, "--recovery-timeout", options.recovery_timeout_seconds,
             "without workers for so long, requests end with UNAVAILABLE");
  AddSeconds(command, "--step-timeout", options.step_timeout_seconds, "a stage that takes longer is given up");
  AddSeconds(command, "--stall-timeout", options.stall_timeout_seconds, "a client that reads nothing is given up");
}

}  // namespace

bool ParseSplit(const std::string& text, std::vector<int>* first_layers, int* layers) {
  *layers = 0;
  for (const absl::string_view range : absl::StrSplit(text, ',')) {
    const std::pair<absl::string_view, absl::string_view> ends = absl::StrSplit(range, absl::MaxSplits('-', 1));
    int first = 0, last = 0;
    if (!absl::SimpleAtoi(ends.first, &first) || !absl::SimpleAtoi(ends.second, &last)) return false;
    if (first != *layers || last < first || last >= 1 << 20) return false;
    first_layers->push_back(first);
    *layers = last + 1;
  }
  return true;
}

void AddServe(CLI::App& app, ServeOptions& options) {
  CLI::App& command = *app.add_subcommand("serve", "serves a model from this process alone");
  AddModelFlags(command, options);
  AddPipelineFlags(command, options);
  AddBackendFlags(command, options.backend, "threads of all stages together; 0: one per core");
  AddBytes(command, "--memory", options.memory_bytes,
           "memory for all stages together [--gpu-memory-utilization, or 0.9 of the machine's]")
      ->excludes(AddMemoryShareFlag(command, options.gpu_memory_utilization));
  AddGoldTierFlag(command, options.gold_tier);
  AddListenFlags(command, options);
}

void AddCoordinator(CLI::App& app, ServeOptions& options) {
  CLI::App& command = *app.add_subcommand("coordinator", "serves a model by workers that connect to it");
  AddModelFlags(command, options);
  AddPipelineFlags(command, options);
  AddListenFlags(command, options);
  AddPort(command, "--cluster-port", options.cluster_port, "that workers connect to; 0: any free one");
  AddServerTls(command, "cluster", "the cluster port", options.cluster_tls);
  AddSeconds(command, "--heartbeat-interval", options.heartbeat_interval_seconds, "between signs of life");
  AddSeconds(command, "--heartbeat-timeout", options.heartbeat_timeout_seconds, "a silent worker is given up");
  AddSeconds(command, "--regroup-wait", options.regroup_wait_seconds,
             "for a lost worker's return, before going on with fewer");
  AddSeconds(command, "--form-timeout", options.form_timeout_seconds, "for workers to load and check their layers");
}

void AddWorker(CLI::App& app, WorkerOptions& options) {
  CLI::App& command = *app.add_subcommand("worker", "runs layers for a coordinator");
  command.add_option("--coordinator", options.coordinator, "the coordinator's cluster port")
      ->required()
      ->type_name("HOST:PORT");
  command.add_option("--name", options.name, "for people and logs [host name and process]")->type_name("NAME");
  command.add_option("--model", options.model, "the checkpoint, if it is elsewhere than the coordinator says")
      ->type_name("PATH");
  command.add_option("--config", options.config, "its settings, likewise")->type_name("FILE");
  command
      .add_option("--address", options.address,
                  "name or IP address at which other workers reach this one [of the way to the coordinator]")
      ->type_name("HOST");
  AddBackendFlags(command, options.backend, "threads; 0: one per core");
  AddBytes(command, "--memory", options.memory_bytes,
           "memory for weights, states, caches and all else [--gpu-memory-utilization, or 0.9 of the machine's]")
      ->excludes(AddMemoryShareFlag(command, options.gpu_memory_utilization));
  AddGoldTierFlag(command, options.gold_tier);
  command.add_option("--cluster-root-cert", options.tls.roots, "vouches for the coordinator, PEM: uses TLS")
      ->type_name("FILE");
  command
      .add_option("--cluster-client-cert", options.tls.certificate,
                  "own certificate, PEM, if the coordinator asks for one")
      ->type_name("FILE");
  command.add_option("--cluster-client-key", options.tls.key, "its key, PEM")->type_name("FILE");
  command
      .add_option("--transport", options.transport,
                  "what rows go over between workers, all of a group by the same: gloo (TCP); nccl (between GPUs, one "
                  "worker each); auto: nccl if the device is CUDA and NCCL can be had, else gloo")
      ->check(CLI::IsMember({"auto", "gloo", "nccl"}))
      ->capture_default_str();
  AddSeconds(command, "--transport-timeout", options.transport_timeout_seconds,
             "a transfer between workers without progress is given up");
  AddSeconds(command, "--shutdown-timeout", options.shutdown_timeout_seconds,
             "for the group to end when SIGTERM or SIGINT comes");
}

}  // namespace goldfinch
