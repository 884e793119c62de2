// A whole model on one machine: opens the checkpoint, runs all layers in one stage, feeds prompts in chunks.
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
  int64_t max_model_len = 1 << 20;  // tokens, prompt and output together, of one sequence
  StageOptions stage;               // cache_tokens is set from max_model_len and max_sequences
  int64_t memory_bytes = 0;         // that may be used, for all that base/stage_memory.h plans; 0: any
  int64_t kept_bytes = 0;           // for Stage::ReserveKept; less if memory_bytes leave less
};

// Not thread-safe.
class Engine {
 public:
  // Checks names, shapes and settings. A back end that reads host memory makes it quick for any size: no weight is
  // read; others get a copy of each. RESOURCE_EXHAUSTED, before anything is read, names what does not fit.
  static absl::StatusOr<std::unique_ptr<Engine>> Load(const EngineOptions& options, std::unique_ptr<Backend> backend);

  // Reads every weight once. DATA_LOSS if a checksum is wrong (looked at only with `checksums`: files can be saved
  // without); else the names of tensors that have values that are NaN or infinite. `progress` may be null.
  absl::StatusOr<std::vector<std::string>> VerifyWeights(
      bool checksums, const std::function<void(int64_t done, int64_t all)>& progress) const;

  const ModelShape& shape() const { return model_->shape; }
  const ModelConfig& config() const { return config_; }
  const Backend& backend() const { return *backend_; }
  Stage& stage() { return *stage_; }
  const EngineOptions& options() const { return options_; }

  // INVALID_ARGUMENT unless a sequence of so many prompt tokens and then `max_tokens` more fits --max-model-len.
  absl::Status CheckLength(int64_t prompt_tokens, int64_t max_tokens) const;

  // Runs ids through the sequence in `slot` in chunks of stage.max_step_tokens; the GOLD layers run for the last
  // chunk's tail only. Returns the logits [vocab] of the last token, valid until the next call. `progress` is called
  // after each chunk with the tokens done.
  absl::StatusOr<absl::Span<const float>> Prefill(int slot, absl::Span<const int32_t> ids,
                                                  absl::FunctionRef<void(int64_t tokens)> progress);
  // One more token; its logits.
  absl::StatusOr<absl::Span<const float>> Decode(int slot, int32_t id);
  // Runs ids with logits for every one: the slower path, GOLD layers on all rows. `use` gets the logits [rows, vocab]
  // of each chunk and the number of its first token.
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
  std::vector<float> logits_;  // where the back end's memory cannot be read
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_ENGINE_H_
