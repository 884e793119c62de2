// Values of the flags of each command; the flags and their help are in flags.cc and flags_remote.cc. serve_options.h
// has those of the commands that serve.
#ifndef GOLDFINCH_CLIENTS_CLI_FLAGS_OPTIONS_H_
#define GOLDFINCH_CLIENTS_CLI_FLAGS_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/open_backend.h"

namespace goldfinch {

// Where a model is and how it runs.
struct ModelOptions {
  std::string model;                    // --model: checkpoint file or folder
  std::string config;                   // --config; empty: config.json beside the model
  std::string vocab;                    // --vocab; empty: beside the model, or bytes if the model's config says so
  std::string cache_dtype = "bf16";     // --cache-dtype: f32, f16, bf16 or int8
  std::string verify = "all";           // --verify: all, finite or none
  BackendOptions backend;               // --device, --dtype, --threads
  std::string gold_tier = "auto";       // --gold-tier: auto, compressed, shared or full
  double gpu_memory_utilization = 0.9;  // --gpu-memory-utilization; the rest is left to the driver
  int64_t max_model_len = 1 << 20;      // --max-model-len, tokens: bounds memory for prompts from outside
  int64_t max_step_tokens = 512;        // --max-num-batched-tokens: more rows make matrix products no faster
};

// How to reach a server.
struct RemoteOptions {
  std::string server;           // --server HOST:PORT
  std::string api_key_file;     // --api-key-file; empty: no key
  std::string root_cert;        // --grpc-root-cert, PEM; this or client_cert turns on TLS
  std::string client_cert;      // --grpc-client-cert, PEM, for servers that ask for one
  std::string client_key;       // --grpc-client-key
  double deadline_seconds = 0;  // --deadline for each call; 0: none
};

// How a sequence or a context is kept (KeepAs of generate.proto).
struct KeepOptions {
  std::string name;                                 // empty: it is not
  std::optional<double> expire_after_seconds = {};  // --expire-after
  std::string replace = {};                         // --replace: etag of the context whose place it takes
};

struct GenerateOptions {
  ModelOptions model;    // not used if remote.server is set
  RemoteOptions remote;  // not used if remote.server is empty
  std::string context;   // --context: NAME or NAME@TOKEN with a server, else an exported file or a tuned state
  KeepOptions keep;      // --keep-as, with a server
  std::vector<uint64_t> breakpoints;  // --breakpoint, with a server
  uint32_t samples = 1;               // --samples, with a server
  int32_t priority = 0;               // --priority, with a server
  std::string prompt;                 // --prompt
  bool has_prompt = false;
  std::string prompt_file;   // --prompt-file; without either: standard input
  bool chat = false;         // --chat: the World models' chat form
  int64_t max_tokens = 256;  // --max-tokens; if it is not given, less where the model's longest sequence ends
  bool has_max_tokens = false;
  bool ignore_eos = false;         // --ignore-eos: never draw token 0
  std::vector<std::string> stop;   // --stop
  double temperature = 1;          // --temperature, [0, 100]; 0: greedy
  double top_p = 0.85;             // --top-p: probability, [0, 1]; 1 keeps all tokens
  int top_k = 0;                   // --top-k: tokens, >= 0; 0: no limit
  double min_p = 0;                // --min-p: share of the largest probability, [0, 1]; 0 keeps all
  double presence_penalty = 0.2;   // --presence-penalty: logits, [-100, 100]
  double frequency_penalty = 0.2;  // --frequency-penalty: logits for each occurrence, [-100, 100]
  double penalty_decay = 0.996;    // --penalty-decay: factor on occurrences for each token, [0, 1]
  uint64_t seed = 0;               // --seed; a random one, which is printed, if not given
  bool has_seed = false;
  std::vector<std::string> logit_bias;  // --logit-bias ID=BIAS
  std::vector<int32_t> ban;             // --ban ID
  int logprobs = -1;                    // --logprobs: alternatives for each token; -1: no log-probabilities
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

// `goldfinch quantize`. (QuantizeOptions in worker/model/quantize_model.h is what QuantizeModel is given.)
struct QuantizeCommandOptions {
  std::string model;              // the checkpoint
  std::string out;                // the file to write
  std::string config;             // --config; empty: config.json beside the model
  std::string dtype;              // --dtype: int8 or int4
  std::vector<std::string> keep;  // --keep: matrices that stay as they are, * and ? as in file names
  bool force = false;             // --force: overwrite
  int threads = 0;                // --threads; 0: one for each CPU that may be used
};

struct TokenizeOptions {
  std::string model;  // --model: to find its vocabulary
  std::string vocab;  // --vocab: a file, or "bytes"
  std::string text;   // --text
  bool has_text = false;
  std::string file;  // --file; without either: standard input
  bool json = false;
};

struct StatusOptions {
  StatusOptions() { remote.deadline_seconds = 10; }

  RemoteOptions remote;
  std::optional<double> watch_seconds;  // --watch: seconds between refreshes; not set: print once
  bool json = false;
};

// `goldfinch context`: each of its commands uses some of these.
struct ContextOptions {
  std::string command;   // "create", "list", ...
  RemoteOptions remote;  // all but verify
  std::string name;      // NAME; of fork NAME or NAME@TOKEN
  std::string new_name;  // of rename
  std::string file;      // of export, import and verify
  std::string text;      // --text of create and append
  bool has_text = false;
  std::string text_file;              // --file; without either: standard input
  std::string from;                   // --from NAME[@TOKEN] of create
  std::vector<uint64_t> breakpoints;  // --breakpoint of create
  KeepOptions keep;                   // of create, fork and import, which make a context
  std::string etag;                   // --etag that the context must have; empty: any
  int32_t priority = 0;               // --priority of create and append
  double retry_seconds = 60;          // --retry: how long export and import try to go on after the connection broke
  bool force = false;                 // --force of export
  bool json = false;
};

struct LoadTestOptions {
  RemoteOptions remote;
  double rate = 1;                          // --rate: requests per second
  std::optional<double> duration_seconds;   // --duration; either this or `requests` is set
  std::optional<int64_t> requests;          // --requests
  std::string prompt_tokens = "fixed:512";  // --prompt-tokens, as LengthDistribution::Parse reads it
  std::string output_tokens = "fixed:128";  // --output-tokens, likewise
  std::string prompt_file;                  // --prompt-file: one prompt a line, instead of random ids
  uint64_t seed = 0;                        // --seed of arrival times, lengths, prompts and draws
  int64_t max_concurrency = 1024;           // --max-concurrency: requests that run at once
  std::string csv;                          // --csv: file for one line per request
  std::string scenario;                     // --scenario: file that says what is sent instead of all but seed and limit
  std::string variant;                      // --variant: of the scenario; empty: none
  bool strict = false;                      // --strict: a missed aim of the scenario is an error
  bool json = false;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_FLAGS_OPTIONS_H_
