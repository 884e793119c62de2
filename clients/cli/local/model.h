// Opens what a command works on: a model, and texts.
#ifndef GOLDFINCH_CLIENTS_CLI_LOCAL_MODEL_H_
#define GOLDFINCH_CLIENTS_CLI_LOCAL_MODEL_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "clients/cli/flags/options.h"
#include "worker/stage/engine.h"

namespace goldfinch {

// Opens the device and loads the model; on the CPU its weights are mapped, not read. `max_logit_rows`: as in
// StageOptions.
absl::StatusOr<std::unique_ptr<Engine>> OpenEngine(const ModelOptions& options, int64_t max_logit_rows);
// Reads and checks the weights as --verify says, with a progress bar; prints warnings. As it takes a while with a large
// model, callers check everything else before it.
absl::Status VerifyWeights(const ModelOptions& options, const Engine& engine);

// Reads at most `limit` bytes: from `text` if `has_text`, else from `file`, else from standard input. An error names
// the first byte that is not UTF-8. `flag` names the source of `text` in errors.
absl::StatusOr<std::string> ReadText(const std::string& flag, const std::string& text, bool has_text,
                                     const std::string& file, int64_t limit);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_LOCAL_MODEL_H_
