#include "clients/cli/flags/shared_flags.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "clients/cli/flags/flag_group.h"
#include "clients/cli/machine/device_list.h"

namespace goldfinch {

void AddModelFlag(CLI::App& command, const std::string& names, std::string& model) {
  FlagGroup(command, kModelFlags)
      .Text(names, model, "PATH", "Checkpoint: a .pth or .safetensors file, or a folder that holds one")
      ->required();
}

void AddConfigFlag(CLI::App& command, std::string& config) {
  FlagGroup(command, kModelFlags)
      .Text("--config", config, "FILE", "Settings of the model, JSON or YAML")
      ->default_str("config.json beside the model");
}

void AddVocabFlag(CLI::App& command, std::string& vocab) {
  FlagGroup(command, kModelFlags)
      .Text("--vocab", vocab, "FILE|bytes", "Vocabulary file, or bytes for a model whose tokens are bytes")
      ->default_str("the file beside the model, or bytes for models of 257 tokens");
}

void AddVerifyFlag(CLI::App& command, std::string& verify) {
  FlagGroup(command, kModelFlags)
      .Choice("--verify", verify, {"all", "finite", "none"},
              "What to check while reading weights: checksums and NaN (all), NaN alone (finite, for files saved "
              "without checksums), or nothing (none)");
}

void AddThreadsFlag(CLI::App& command, int& threads, const std::string& phrase) {
  FlagGroup(command, kDeviceFlags)
      .InLimits("--threads", threads, "COUNT", phrase + "; 0 is one for each CPU that this process may use", 0, 1024);
}

void AddBackendFlags(CLI::App& command, BackendOptions& options, const std::string& threads_phrase) {
  FlagGroup flags(command, kDeviceFlags);
  flags
      .Text("--device", options.device, "auto|cpu|cuda|cuda:N",
            "Device to compute on; auto is CUDA where it is available, else the CPU; N numbers the GPUs from 0")
      ->check([](const std::string& text) {
        return IsDeviceName(text) ? "" : text + " is none of auto, cpu, cuda and cuda:N";
      })
      ->capture_default_str();
  flags.Choice("--dtype", options.dtype, {"auto", "f32", "f16", "bf16"},
               "Type of activations; auto is bf16 on CUDA and f32 on the CPU, which computes in f32 only");
  AddThreadsFlag(command, options.threads, threads_phrase);
}

CLI::Option* AddDevicesFlag(CLI::App& command, std::string& devices, const std::string& phrase) {
  return FlagGroup(command, kDeviceFlags)
      .Text("--devices", devices, "all|cpu|LIST", phrase)
      ->check([](const std::string& text) { return std::string(ParseDeviceList(text).status().message()); })
      ->excludes(command.get_option("--device"));
}

void AddCacheDTypeFlag(CLI::App& command, std::string& cache_dtype) {
  FlagGroup(command, kMemoryFlags)
      .Choice("--cache-dtype", cache_dtype, {"f32", "f16", "bf16", "int8"},
              "Type of cached values; int8 (with one scale per row) needs a model whose only cache is the compressed "
              "one");
}

void AddGoldTierFlag(CLI::App& command, std::string& gold_tier) {
  FlagGroup(command, kMemoryFlags)
      .Choice("--gold-tier", gold_tier, {"auto", "compressed", "shared", "full"},
              "What GOLD layers keep beside the compressed cache to decode faster, as memory allows: nothing "
              "(compressed), the rows that all of them share (shared), or keys and values too (full); auto is full");
}

void AddMaxModelLenFlag(CLI::App& command, int64_t& tokens) {
  FlagGroup(command, kMemoryFlags)
      .InLimits("--max-model-len", tokens, "TOKENS", "Most tokens of a sequence, prompt and answer together", 1,
                int64_t{1} << 30);
}

void AddMaxStepTokensFlag(CLI::App& command, int64_t& tokens, int64_t most, const std::string& phrase) {
  FlagGroup(command, kMemoryFlags).InLimits("--max-num-batched-tokens", tokens, "TOKENS", phrase, 1, most);
}

CLI::Option* AddMemoryShareFlag(CLI::App& command, double& share) {
  return FlagGroup(command, kMemoryFlags)
      .Unchecked("--gpu-memory-utilization", share, "SHARE",
                 "Share of a GPU's memory to use, less what other programs on it use already; above 0.0, at most 1.0")
      ->check([](const std::string& text) {
        double number = 0;
        const bool good = absl::SimpleAtod(text, &number) && number > 0 && number <= 1;
        return good ? "" : text + " is not above 0 and at most 1";
      });
}

void AddMemoryFlags(CLI::App& command, double& share, int64_t& bytes, const std::string& phrase) {
  CLI::Option* share_flag = AddMemoryShareFlag(command, share);
  FlagGroup(command, kMemoryFlags)
      .Bytes("--memory", bytes, phrase)
      ->default_str("--gpu-memory-utilization of a GPU, for the CPU 0.9 of the memory that this process may use")
      ->excludes(share_flag);
}

void AddContextMemoryFlag(CLI::App& command, int64_t& bytes, const std::string& phrase) {
  FlagGroup(command, kMemoryFlags)
      .Bytes("--context-memory", bytes,
             absl::StrCat(phrase,
                          " that keeps what requests have read, so that others with the same beginning need not read "
                          "it again; on a CPU it is a part of --memory; 0 keeps nothing"))
      ->default_str(
          "a sixteenth of the memory that this process may use, which the workers of all GPUs of a host share");
}

std::vector<CLI::Option*> AddKeepFlags(CLI::App& command, KeepOptions& options) {
  constexpr double kExpireSecondsMin = 1e-3, kExpireSecondsMax = 1e9;
  CLI::Option* expire =
      command
          .add_option_function<double>(
              "--expire-after", [&options](double seconds) { options.expire_after_seconds = seconds; },
              WithRange("Remove the context when it has not been used for so long", kExpireSecondsMin,
                        kExpireSecondsMax))
          ->group(kContextFlags)
          ->default_str("never")
          ->check(InRange(kExpireSecondsMin, kExpireSecondsMax))
          ->type_name("SECONDS");
  CLI::Option* replace = FlagGroup(command, kContextFlags)
                             .Text("--replace", options.replace, "ETAG",
                                   "Take the place of the context that has this name and this etag; without it the "
                                   "name must be free");
  return {expire, replace};
}

CLI::Option* AddBreakpointFlag(CLI::App& command, std::vector<uint64_t>& breakpoints, const std::string& what) {
  return FlagGroup(command, kContextFlags)
      .Several("--breakpoint", breakpoints, "TOKEN",
               absl::StrCat("Number of tokens of ", what,
                            " after which other texts will go on differently, which then costs nothing; at most 16"))
      ->check(InRange(uint64_t{1}, UINT64_MAX));
}

CLI::Option* AddServerFlags(CLI::App& command, RemoteOptions& options) {
  CLI::Option* server = FlagGroup(command, kNetworkFlags)
                            .Text("--server", options.server, "HOST:PORT", "Address of the server's gRPC port")
                            ->required();
  FlagGroup security(command, kSecurityFlags);
  security.Text("--api-key-file", options.api_key_file, "FILE", "File that holds the API key");
  security.Text("--grpc-root-cert", options.root_cert, "FILE",
                "CA certificate (PEM) to verify the server with; turns on TLS");
  security.Text("--grpc-client-cert", options.client_cert, "FILE",
                "Client certificate (PEM), for a server that asks for one; turns on TLS");
  security.Text("--grpc-client-key", options.client_key, "FILE", "Private key (PEM) of the client certificate");
  FlagGroup(command, kTimeoutFlags)
      .Seconds("--deadline", options.deadline_seconds, "Most seconds that a call may take; 0 is no limit", 0);
  return server;
}

}  // namespace goldfinch
