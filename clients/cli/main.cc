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
#include "base/mapped_file.h"
#include "base/safe_text.h"
#include "base/version.h"
#include "clients/cli/context/context.h"
#include "clients/cli/flags/flag_names.h"
#include "clients/cli/flags/flags.h"
#include "clients/cli/flags/help_formatter.h"
#include "clients/cli/flags/options.h"
#include "clients/cli/flags/serve_options.h"
#include "clients/cli/load_test/load_test.h"
#include "clients/cli/local/local_commands.h"
#include "clients/cli/remote/remote_commands.h"
#include "clients/cli/serve/serve_commands.h"
#include "clients/cli/terminal/terminal.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

// Why the command line is wrong. Unknown words come first: CLI11 would only report the flag that it misses instead.
std::string ParseMessage(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<std::string> unknown = app.remaining(/*recurse=*/true);
  return unknown.empty() ? std::string(error.what()) : "unknown command or flag: " + unknown[0];
}

void PrintError(const std::string& message) { std::fprintf(stderr, "goldfinch: %s\n", SafeText(message).c_str()); }

int Main(int argc, char** argv) {
  // Warnings and errors are for people at a terminal: no timestamps.
  spdlog::set_default_logger(spdlog::stderr_color_st("goldfinch"));
  spdlog::set_pattern("%n: %^%l%$: %v");

  CLI::App app("Goldfinch Serving serves GoldFinch language models, and the models they are compared with.",
               "goldfinch");
  app.formatter(std::make_shared<HelpFormatter>());
  app.set_help_flag("-h,--help", "Print this help");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("goldfinch ") + kVersion, "Print the version and exit");
  app.failure_message(CLI::FailureMessage::simple);
  GenerateOptions generate;
  InspectOptions inspect;
  LogitsOptions logits;
  QuantizeCommandOptions quantize;
  TokenizeOptions tokenize, detokenize;
  StatusOptions server_status;
  LoadTestOptions load_test;
  ContextOptions context;
  ServeOptions serve, coordinator;
  WorkerCommandOptions worker;
  PlanCommandOptions plan;
  AddServe(app, serve);
  AddCoordinator(app, coordinator);
  AddWorker(app, worker);
  AddPlan(app, plan);
  AddGenerate(app, generate);
  AddContext(app, context);
  AddStatus(app, server_status);
  AddLoadTest(app, load_test);
  AddInspect(app, inspect);
  AddQuantize(app, quantize);
  AddLogits(app, logits);
  AddTokenize(app, tokenize);
  AddDetokenize(app, detokenize);
  app.footer("`goldfinch COMMAND --help` lists the flags of a command.");  // commands added after it would inherit it
  absl::Status status;
  try {
    app.parse(argc, argv);
    // Errors of commands that run here name the flags that the user knows. What a server says of its own limits stays:
    // they are not flags of its client.
    if (app.got_subcommand("serve")) status = NameFlags(RunServe(serve));
    if (app.got_subcommand("coordinator")) status = NameFlags(RunCoordinator(coordinator));
    if (app.got_subcommand("worker")) {
      status = NameFlags(worker.devices.empty() ? RunWorker(worker) : RunWorkers(worker, {argv + 1, argv + argc}));
    }
    if (app.got_subcommand("plan")) status = NameFlags(RunPlan(plan));
    if (app.got_subcommand("generate")) {
      const bool remote = !generate.remote.server.empty();
      status = remote ? RunRemoteGenerate(generate) : NameFlags(RunGenerate(generate));
    }
    if (app.got_subcommand("context")) status = RunContext(context);
    if (app.got_subcommand("status")) status = RunStatus(server_status);
    if (app.got_subcommand("load-test")) status = RunLoadTest(load_test);
    if (app.got_subcommand("inspect")) status = NameFlags(RunInspect(inspect));
    if (app.got_subcommand("quantize")) status = NameFlags(RunQuantize(quantize));
    if (app.got_subcommand("logits")) status = NameFlags(RunLogits(logits));
    if (app.got_subcommand("tokenize")) status = NameFlags(RunTokenize(tokenize));
    if (app.got_subcommand("detokenize")) status = NameFlags(RunDetokenize(detokenize));
  } catch (const CLI::Success& help) {
    app.exit(help);
  } catch (const CLI::ParseError& error) {
    PrintError(ParseMessage(app, error) + "; see goldfinch --help");
    return 2;
  } catch (const std::bad_alloc&) {
    status = absl::ResourceExhaustedError("out of memory");
  } catch (const std::exception& error) {  // such as std::system_error: no thread could be started
    status = absl::InternalError(error.what());
  }
  if (status.ok()) status = FlushOutput();
  if (!status.ok()) PrintError(std::string(status.message()));
  return ExitCode(status);
}

}  // namespace
}  // namespace goldfinch

int main(int argc, char** argv) {
  // A closed pipe becomes an error to report, instead of a signal that ends the process.
  std::signal(SIGPIPE, SIG_IGN);
  goldfinch::MappedFile::ReportFaults();
  return goldfinch::Main(argc, argv);
}
