// The program: reads the command line and runs one command.
#include <csignal>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "base/version.h"
#include "clients/cli/commands.h"
#include "clients/cli/flags.h"
#include "clients/cli/options.h"
#include "clients/cli/serve_commands.h"
#include "clients/cli/serve_options.h"
#include "clients/cli/terminal.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

// Why the command line is wrong. What is unknown comes first: CLI11 would say what it misses in its place.
std::string ParseMessage(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<std::string> unknown = app.remaining(/*recurse=*/true);
  return unknown.empty() ? std::string(error.what()) : "unknown command or flag: " + unknown[0];
}

void PrintError(const std::string& message) { std::fprintf(stderr, "goldfinch: %s\n", OneLine(message).c_str()); }

int Main(int argc, char** argv) {
  // Warnings and errors are for people at a terminal: no timestamps.
  spdlog::set_default_logger(spdlog::stderr_color_st("goldfinch"));
  spdlog::set_pattern("%n: %^%l%$: %v");

  CLI::App app("Goldfinch Serving: runs GoldFinch models, and the models they are compared with.", "goldfinch");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("goldfinch ") + kVersion, "Print the version and exit");
  app.failure_message(CLI::FailureMessage::simple);
  GenerateOptions generate;
  InspectOptions inspect;
  LogitsOptions logits;
  QuantizeOptions quantize;
  TokenizeOptions tokenize, detokenize;
  StatusOptions server_status;
  LoadTestOptions load_test;
  ServeOptions serve, coordinator;
  WorkerOptions worker;
  AddGenerate(app, generate);
  AddInspect(app, inspect);
  AddLogits(app, logits);
  AddQuantize(app, quantize);
  AddTokenize(app, tokenize, "tokenize", "prints the token ids of a text", "the text");
  AddTokenize(app, detokenize, "detokenize", "prints the text of token ids", "the ids");
  AddStatus(app, server_status);
  AddLoadTest(app, load_test);
  AddServe(app, serve);
  AddCoordinator(app, coordinator);
  AddWorker(app, worker);
  absl::Status status;
  try {
    app.parse(argc, argv);
    if (app.got_subcommand("generate")) {
      status = generate.remote.server.empty() ? RunGenerate(generate) : RunRemoteGenerate(generate);
    }
    if (app.got_subcommand("inspect")) status = RunInspect(inspect);
    if (app.got_subcommand("logits")) status = RunLogits(logits);
    if (app.got_subcommand("quantize")) status = RunQuantize(quantize);
    if (app.got_subcommand("tokenize")) status = RunTokenize(tokenize);
    if (app.got_subcommand("detokenize")) status = RunDetokenize(detokenize);
    if (app.got_subcommand("status")) status = RunStatus(server_status);
    if (app.got_subcommand("load-test")) status = RunLoadTest(load_test);
    if (app.got_subcommand("serve")) status = RunServe(serve);
    if (app.got_subcommand("coordinator")) status = RunCoordinator(coordinator);
    if (app.got_subcommand("worker")) status = RunWorker(worker);
  } catch (const CLI::Success& help) {
    app.exit(help);
  } catch (const CLI::ParseError& error) {
    PrintError(ParseMessage(app, error) + "; see goldfinch --help");
    return 2;
  } catch (const std::bad_alloc&) {
    status = absl::ResourceExhaustedError("out of memory");
  } catch (const std::exception& error) {  // of the system: threads that cannot be started, for one
    status = absl::InternalError(error.what());
  }
  if (status.ok()) status = FlushOutput();
  if (!status.ok()) PrintError(std::string(status.message()));
  return ExitCode(status);
}

}  // namespace
}  // namespace goldfinch

int main(int argc, char** argv) {
  // A reader that has gone is an error to report, not a signal to die of.
  std::signal(SIGPIPE, SIG_IGN);
  return goldfinch::Main(argc, argv);
}
