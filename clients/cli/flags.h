// Each command's flags: help, checks of single values, and which go together.
#ifndef GOLDFINCH_CLIENTS_CLI_FLAGS_H_
#define GOLDFINCH_CLIENTS_CLI_FLAGS_H_

#include <string>

#include "clients/cli/options.h"
#include "clients/cli/serve_options.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace goldfinch {

// Each adds a command whose flags are read into `options`, which outlive the app.
void AddGenerate(CLI::App& app, GenerateOptions& options);
void AddInspect(CLI::App& app, InspectOptions& options);
void AddLogits(CLI::App& app, LogitsOptions& options);
void AddQuantize(CLI::App& app, QuantizeOptions& options);
void AddTokenize(CLI::App& app, TokenizeOptions& options, const char* name, const char* help, const char* text_help);
void AddStatus(CLI::App& app, StatusOptions& options);
void AddLoadTest(CLI::App& app, LoadTestOptions& options);
void AddServe(CLI::App& app, ServeOptions& options);
void AddCoordinator(CLI::App& app, ServeOptions& options);
void AddWorker(CLI::App& app, WorkerOptions& options);

// --device, --dtype and --threads, whose help says of what.
void AddBackendFlags(CLI::App& command, BackendOptions& options, const char* threads_help);
// --cache-dtype.
void AddCacheDTypeFlag(CLI::App& command, std::string& cache_dtype);
// --gold-tier.
void AddGoldTierFlag(CLI::App& command, std::string& gold_tier);
// --gpu-memory-utilization, which is returned.
CLI::Option* AddMemoryShareFlag(CLI::App& command, double& share);
// --server, which is returned and required, and what a connection needs.
CLI::Option* AddServerFlags(CLI::App& command, RemoteOptions& options);
// A check. CLI11 reads -1 as the largest number, and cuts off what is larger still.
std::string IsSeed(const std::string& text);
// A check, to go before a range's, which lets NaN through.
std::string IsNumber(const std::string& text);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_FLAGS_H_
