// What each command of the program can be told. Defaults and units are what `goldfinch COMMAND --help` prints.
#ifndef GOLDFINCH_CLIENTS_OPTIONS_H_
#define GOLDFINCH_CLIENTS_OPTIONS_H_

#include <cstdint>
#include <string>
#include <vector>

namespace goldfinch {

// Where a model is and how it runs.
struct ModelOptions {
  std::string model;                 // --model: checkpoint file or folder
  std::string config;                // --config; empty: config.json beside the model
  std::string vocab;                 // --vocab; empty: beside the model, or bytes if the model's config says so
  std::string cache_dtype = "bf16";  // --cache-dtype: f32, f16 or bf16
  std::string verify = "all";        // --verify: all, finite or none
  int threads = 0;                   // --threads; 0: one per core
  int64_t max_model_len = 1 << 20;   // --max-model-len, tokens: bounds memory for prompts from outside
  int64_t max_batched_tokens = 512;  // --max-num-batched-tokens: from here on products gain nothing from more rows
};

struct GenerateOptions {
  ModelOptions model;
  std::string prompt;  // --prompt
  bool has_prompt = false;
  std::string prompt_file;        // --prompt-file; without either: standard input
  bool chat = false;              // --chat: the World models' chat form
  int64_t max_tokens = 256;       // --max-tokens
  bool ignore_eos = false;        // --ignore-eos: go on after token 0
  std::vector<std::string> stop;  // --stop
  double temperature = 1;
  double top_p = 0.85;
  int top_k = 0;
  double min_p = 0;
  double presence_penalty = 0.2;
  double frequency_penalty = 0.2;
  double penalty_decay = 0.996;
  uint64_t seed = 0;  // --seed; drawn and printed if not given
  bool has_seed = false;
  std::vector<std::string> logit_bias;  // --logit-bias ID=BIAS
  std::vector<int32_t> ban;             // --ban ID
  int logprobs = -1;                    // --logprobs: alternatives a token; -1: none
  bool json = false;
};

struct InspectOptions {
  ModelOptions model;
  bool json = false;
};

struct LogitsOptions {
  ModelOptions model;
  std::string tokens;  // --tokens: .npy of ids
  std::string out;     // --out: .npy
};

struct TokenizeOptions {
  std::string model;  // --model: to find its vocabulary
  std::string vocab;  // --vocab: a file, or "bytes"
  std::string text;   // --text
  bool has_text = false;
  std::string file;  // --file; without either: standard input
  bool json = false;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_OPTIONS_H_
