// A whole model in one stage: opens the checkpoint, runs all layers on one device, and reads prompts in chunks. For the
// program's local commands, which need no server.
#ifndef GOLDFINCH_WORKER_STAGE_ENGINE_H_
#define GOLDFINCH_WORKER_STAGE_ENGINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "worker/model/model.h"
#include "worker/model/model_config.h"
#include "worker/stage/stage.h"

namespace goldfinch {

struct EngineOptions {
  std::string model_path;
  std::string config_path;          // empty: config.json beside the model, if there
  int64_t max_model_len = 1 << 20;  // the most tokens of a sequence, prompt and output together
  StageOptions stage;               // Load sets cache_tokens and max_sequence_tokens from max_model_len
  int64_t memory_bytes = 0;         // the limit of all that base/stage_memory.h plans; 0: no limit
  bool limits_only_kept = false;    // memory_bytes limits kept rows alone, and refuses nothing
  int64_t kept_bytes = 0;           // the limit of Stage::ReserveKept, which gets less if memory_bytes leave less
};

// Not thread-safe.
class Engine {
 public:
  // Checks names, shapes and settings. Quick for a model of any size on a back end that reads host memory, as no weight
  // is read; other back ends get a copy of each weight. RESOURCE_EXHAUSTED, before anything is read, says what does not
  // fit.
  static absl::StatusOr<std::unique_ptr<Engine>> Load(const EngineOptions& options, std::unique_ptr<Backend> backend);

  // Reads every weight once. DATA_LOSS if a checksum is wrong, which is checked only with `checksums`, because some
  // files are saved without checksums; else the names of tensors with values that are NaN or infinite. `progress` may
  // be null.
  absl::StatusOr<std::vector<std::string>> VerifyWeights(
      bool checksums, const std::function<void(int64_t done, int64_t all)>& progress) const;

  const ModelShape& shape() const { return model_->shape; }
  const ModelConfig& config() const { return config_; }
  const Backend& backend() const { return *backend_; }
  Backend& backend() { return *backend_; }
  Stage& stage() { return *stage_; }
  const EngineOptions& options() const { return options_; }

  // INVALID_ARGUMENT unless a sequence of `prompt_tokens` and then `max_tokens` more fits max_model_len.
  absl::Status CheckLength(int64_t prompt_tokens, int64_t max_tokens) const;

  // Runs ids through the sequence in `slot`, in chunks of stage.max_step_tokens; the GOLD layers run only for the last
  // rows (worker/stage/prefill_rule.h). Returns the logits [vocab] of the last token, valid until the next call.
  // `progress` is called after each chunk with the number of tokens done.
  absl::StatusOr<absl::Span<const float>> Prefill(int slot, absl::Span<const int32_t> ids,
                                                  absl::FunctionRef<void(int64_t tokens)> progress);
  // Runs one more token and returns its logits.
  absl::StatusOr<absl::Span<const float>> Decode(int slot, int32_t id);
  // Runs ids with logits for every one, which is slower as the GOLD layers run all rows. `use` gets the logits
  // [rows, vocab] of each chunk and the index of its first token.
  absl::Status Score(int slot, absl::Span<const int32_t> ids,
                     absl::FunctionRef<absl::Status(int64_t first, absl::Span<const float> logits)> use);

 private:
  Engine() = default;
  absl::StatusOr<absl::Span<const float>> HostLogits(ConstTensor logits);

  EngineOptions options_;
  ModelConfig config_;
  std::unique_ptr<Backend> backend_;
  std::shared_ptr<const Model> model_;
  std::unique_ptr<Stage> stage_;
  std::vector<float> logits_;  // a copy, where the host cannot read the back end's memory
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_ENGINE_H_
