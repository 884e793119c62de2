// Opening what a command works on: a model with its tokenizer, and texts.
#ifndef GOLDFINCH_CLIENTS_CLI_MODEL_H_
#define GOLDFINCH_CLIENTS_CLI_MODEL_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "clients/cli/options.h"
#include "worker/stage/engine.h"

namespace goldfinch {

// Opens the device and loads, without reading the weights on the CPU. `max_logit_rows` as in StageOptions.
absl::StatusOr<std::unique_ptr<Engine>> OpenEngine(const ModelOptions& options, int64_t max_logit_rows);
// Reads the weights as --verify says, with a progress bar; prints warnings. It takes a while with a large model, so
// everything that can be wrong for another reason is looked at first.
absl::Status VerifyWeights(const ModelOptions& options, const Engine& engine);

// `text` if `has_text`, else the file, else standard input; at most `limit` bytes. Must be UTF-8: the error gives the
// byte. `flag` is what `text` came from, for errors.
absl::StatusOr<std::string> ReadText(const std::string& flag, const std::string& text, bool has_text,
                                     const std::string& file, int64_t limit);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_MODEL_H_
