// Flags of the commands that only talk to a server.
#include <cstdint>

#include "clients/cli/flags/flag_group.h"
#include "clients/cli/flags/flags.h"
#include "clients/cli/flags/shared_flags.h"

namespace goldfinch {
namespace {

constexpr double kWatchSecondsMin = 0.1;
constexpr double kRateMin = 1e-3, kRateMax = 1e6;  // requests a second
constexpr double kDurationSecondsMin = 1e-3;
constexpr int64_t kRequestsMax = int64_t{1} << 40;

}  // namespace

void AddStatus(CLI::App& app, StatusOptions& options) {
  CLI::App& command = *app.add_subcommand("status", "Show a server's stages, layers, memory and rates");
  AddServerFlags(command, options.remote);
  command
      .add_option_function<double>(
          "--watch", [&options](double seconds) { options.watch_seconds = seconds; },
          WithRange("Look again every so many seconds; 2 if none are given; rates are then those since the last look",
                    kWatchSecondsMin, kSecondsMax))
      ->group(kOutputFlags)
      ->expected(0, 1)
      ->default_str("2")
      ->check(InRange(kWatchSecondsMin, kSecondsMax))
      ->option_text("[SECONDS]");
  FlagGroup(command, kOutputFlags)
      .Switch("--json", options.json, "Print JSON instead of a table; with --watch, one line for each look");
}

void AddLoadTest(CLI::App& app, LoadTestOptions& options) {
  CLI::App& command =
      *app.add_subcommand("load-test", "Send requests at a steady rate, or as a scenario says, and measure latencies");
  command.footer("Example: goldfinch load-test --server 127.0.0.1:50051 --rate 5 --duration 60");
  AddServerFlags(command, options.remote);
  FlagGroup load(command, kLoadFlags);
  CLI::Option* scenario = load.Text("--scenario", options.scenario, "FILE",
                                    "File of a scenario: groups of clients, each measured alone and then together "
                                    "with the others, and what is aimed at");
  load.Text("--variant", options.variant, "NAME", "Variant of the scenario to run, as its file names them")
      ->needs(scenario);
  CLI::Option* rate =
      load.Unchecked("--rate", options.rate, "NUMBER",
                     WithRange("Requests per second, at random times (Poisson) and whether or not they are answered",
                               kRateMin, kRateMax))
          ->check(InRange(kRateMin, kRateMax));
  CLI::Option* duration =
      command
          .add_option_function<double>(
              "--duration", [&options](double seconds) { options.duration_seconds = seconds; },
              WithRange("Send for this long; then wait for the requests that run", kDurationSecondsMin, kSecondsMax))
          ->group(kLoadFlags)
          ->check(InRange(kDurationSecondsMin, kSecondsMax))
          ->type_name("SECONDS");
  CLI::Option* requests = command
                              .add_option_function<int64_t>(
                                  "--requests", [&options](int64_t count) { options.requests = count; },
                                  WithRange("Send this many requests; instead of --duration", int64_t{1}, kRequestsMax))
                              ->group(kLoadFlags)
                              ->check(InRange(int64_t{1}, kRequestsMax))
                              ->type_name("COUNT");
  CLI::Option* lengths = load.Text("--prompt-tokens", options.prompt_tokens, "LENGTHS",
                                   "Lengths of the prompts, of random tokens: fixed:N, uniform:A:B or "
                                   "lognormal:MEDIAN:SIGMA")
                             ->capture_default_str();
  CLI::Option* prompts = load.Text("--prompt-file", options.prompt_file, "FILE",
                                   "File of prompts, one a line, to choose from at random instead")
                             ->excludes(lengths);
  CLI::Option* outputs = load.Text("--output-tokens", options.output_tokens, "LENGTHS",
                                   "Lengths of the answers, written as those of prompts")
                             ->capture_default_str();
  load.Unchecked("--seed", options.seed, "NUMBER", "Seed of arrival times, lengths, prompts and draws, 0 to 2^64 - 1")
      ->check(InRange(uint64_t{0}, UINT64_MAX));
  load.InLimits("--max-concurrency", options.max_concurrency, "COUNT",
                "Most requests that run at once; one that has to wait for this limit is reported", 1, int64_t{1} << 20);
  FlagGroup output(command, kOutputFlags);
  CLI::Option* csv = output.Text("--csv", options.csv, "FILE", "File to write one line per request to");
  output.Switch("--json", options.json, "Print JSON instead of a table");
  output.Switch("--strict", options.strict, "Exit with an error if an aim of the scenario is missed")->needs(scenario);
  for (CLI::Option* other : {rate, duration, requests, lengths, prompts, outputs, csv}) scenario->excludes(other);
  command.parse_complete_callback([scenario, duration, requests] {
    if (scenario->count() > 0 || (duration->count() > 0) != (requests->count() > 0)) return;
    throw CLI::RequiredError("either --duration or --requests is required, or --scenario",
                             CLI::ExitCodes::RequiredError);
  });
}

}  // namespace goldfinch
