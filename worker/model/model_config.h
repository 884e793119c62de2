// What a checkpoint's tensors cannot tell about its model.
#ifndef GOLDFINCH_WORKER_MODEL_MODEL_CONFIG_H_
#define GOLDFINCH_WORKER_MODEL_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace goldfinch {

struct ModelConfig {
  // Rotary embedding of attention layers. Not given: 10000 for Llama-like layers, none for the others. 0: none.
  std::optional<double> rope_base = {};
  // Finch-C2 ablations: without v2 the bonus u is used; without one-minus-w keys are not scaled by 1 - decay.
  bool use_v2 = true;
  bool use_one_minus_w = true;
  // Channels a head, where no tensor shows it. A multiple of 16.
  std::optional<int> head_size = {};

  // Cross-checked with the tensors where given.
  std::string tmix = {};                   // kind of the first layer: x052, x060, x060c2, gold, gptalpha, llama
  std::string tmix2 = {};                  // kind of the last
  std::optional<int64_t> layers = {};      // n_layer
  std::optional<int64_t> width = {};       // n_embd
  std::optional<int64_t> vocab_size = {};  // vocab_size

  // "bytes" or "world"; empty: by vocabulary size.
  std::string vocabulary = {};
};

// Reads `config.json` (keys as in the project's test models) or the authors' YAML (the keys of its `model:` map), by
// the file's ending. Other keys are ignored. Errors name the file, the key and the value.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& path);

// The config of the checkpoint at `model_path`: `explicit_path` if not empty; else `config.json` beside the checkpoint
// if there is one; else the defaults.
absl::StatusOr<ModelConfig> FindModelConfig(const std::string& explicit_path, const std::string& model_path);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_MODEL_MODEL_CONFIG_H_
