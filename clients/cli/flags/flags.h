// Each command's flags: their help, checks of single values, and which flags go together.
#ifndef GOLDFINCH_CLIENTS_CLI_FLAGS_FLAGS_H_
#define GOLDFINCH_CLIENTS_CLI_FLAGS_FLAGS_H_

#include "clients/cli/flags/options.h"

namespace CLI {
class App;
}  // namespace CLI

namespace goldfinch {

struct PlanCommandOptions;
struct ServeOptions;
struct WorkerCommandOptions;

// Each function adds one command to `app`. Parsing fills in `options`, which must outlive the app.
void AddServe(CLI::App& app, ServeOptions& options);
void AddCoordinator(CLI::App& app, ServeOptions& options);
void AddWorker(CLI::App& app, WorkerCommandOptions& options);
void AddPlan(CLI::App& app, PlanCommandOptions& options);
void AddGenerate(CLI::App& app, GenerateOptions& options);
void AddStatus(CLI::App& app, StatusOptions& options);
void AddLoadTest(CLI::App& app, LoadTestOptions& options);
void AddContext(CLI::App& app, ContextOptions& options);
void AddInspect(CLI::App& app, InspectOptions& options);
void AddQuantize(CLI::App& app, QuantizeCommandOptions& options);
void AddLogits(CLI::App& app, LogitsOptions& options);
void AddTokenize(CLI::App& app, TokenizeOptions& options);
void AddDetokenize(CLI::App& app, TokenizeOptions& options);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_FLAGS_FLAGS_H_
