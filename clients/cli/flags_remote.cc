// Flags of the commands that talk to a server.
#include <cstdint>
#include <string>

#include "CLI/CLI.hpp"
#include "clients/cli/flags.h"

namespace goldfinch {
namespace {

constexpr double kSecondsMax = 1e7;  // four months: fits every clock

}  // namespace

CLI::Option* AddServerFlags(CLI::App& command, RemoteOptions& options) {
  CLI::Option* server =
      command.add_option("--server", options.server, "the server's gRPC port")->required()->type_name("HOST:PORT");
  command.add_option("--api-key-file", options.api_key_file, "file with the API key")->type_name("FILE");
  command.add_option("--grpc-root-cert", options.root_cert, "certificate, PEM, that vouches for the server: uses TLS")
      ->type_name("FILE");
  command
      .add_option("--grpc-client-cert", options.client_cert,
                  "own certificate, PEM, if the server asks for one: uses TLS")
      ->type_name("FILE");
  command.add_option("--grpc-client-key", options.client_key, "its key, PEM")->type_name("FILE");
  command.add_option("--deadline", options.deadline_seconds, "most seconds of a call; 0: no limit")
      ->check(IsNumber)
      ->check(CLI::Range(0.0, kSecondsMax))
      ->type_name("SECONDS")
      ->capture_default_str();
  return server;
}

void AddStatus(CLI::App& app, StatusOptions& options) {
  CLI::App& command = *app.add_subcommand("status", "shows a server: stages, layers, memory, rates");
  AddServerFlags(command, options.remote);
  command
      .add_option_function<double>(
          "--watch", [&options](double seconds) { options.watch_seconds = seconds; },
          "look again after so many seconds, on and on [2]; rates are since the last look")
      ->expected(0, 1)
      ->default_str("2")
      ->check(IsNumber)
      ->check(CLI::Range(0.1, kSecondsMax))
      ->type_name("SECONDS");
  command.add_flag("--json", options.json, "JSON instead of a table; with --watch, a line each time");
}

void AddLoadTest(CLI::App& app, LoadTestOptions& options) {
  CLI::App& command =
      *app.add_subcommand("load-test", "sends requests at a rate, whatever becomes of them, and measures latencies");
  AddServerFlags(command, options.remote);
  command.add_option("--rate", options.rate, "requests a second, at random times (Poisson)")
      ->check(IsNumber)
      ->check(CLI::Range(1e-3, 1e6))
      ->capture_default_str();
  CLI::Option_group& end = *command.add_option_group("end");
  end.require_option(1);
  end.add_option_function<double>(
         "--duration", [&options](double seconds) { options.duration_seconds = seconds; },
         "send for so many seconds; requests under way are waited for")
      ->check(IsNumber)
      ->check(CLI::Range(1e-3, kSecondsMax))
      ->type_name("SECONDS");
  end.add_option_function<int64_t>(
         "--requests", [&options](int64_t count) { options.requests = count; }, "send so many")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->type_name("COUNT");
  CLI::Option* lengths = command
                             .add_option("--prompt-tokens", options.prompt_tokens,
                                         "lengths of prompts of random tokens: fixed:N, uniform:A:B or "
                                         "lognormal:MEDIAN:SIGMA")
                             ->capture_default_str();
  command.add_option("--prompt-file", options.prompt_file, "prompts, one a line, drawn at random, instead")
      ->type_name("FILE")
      ->excludes(lengths);
  command.add_option("--output-tokens", options.output_tokens, "lengths of answers")->capture_default_str();
  command.add_option("--seed", options.seed, "of times, lengths, prompts and draws")
      ->check(IsSeed)
      ->capture_default_str();
  command
      .add_option("--max-concurrency", options.max_concurrency,
                  "most requests under way, for safety: one that has to wait is told of")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  command.add_option("--csv", options.csv, "file to write a line a request to")->type_name("FILE");
  command.add_flag("--json", options.json, "JSON instead of a table");
}

}  // namespace goldfinch
