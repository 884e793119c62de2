// Input and output of `goldfinch generate`, the same for a model here and for one on a server.
#ifndef GOLDFINCH_CLIENTS_CLI_LOCAL_GENERATION_H_
#define GOLDFINCH_CLIENTS_CLI_LOCAL_GENERATION_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/sampling.h"
#include "clients/cli/flags/options.h"
#include "nlohmann/json_fwd.hpp"

namespace goldfinch {

struct GeneratedToken {
  struct Likely {
    int32_t id = 0;
    float logprob = 0;
  };

  int32_t id = 0;
  float logprob = 0;
  std::vector<Likely> top = {};
};

struct GeneratedSample {
  std::vector<GeneratedToken> tokens;
  std::string text;
  std::string finish_reason = "length";
};

struct Generation {
  std::vector<GeneratedSample> samples;
  uint64_t seed = 0;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // of these, those that a server had kept
  double prefill_seconds = 0;
  double decode_seconds = 0;  // without the first token, whose logits come with the prompt
  int64_t cache_bytes = 0;
  int64_t transformer_cache_bytes = 0;
};

// Returns the bytes of a token.
using TokenText = std::function<std::string(int32_t)>;

// The prompt, in the chat form if that is asked for, of at most `limit` bytes before that. UsageError if it is empty,
// which only after a context it may be.
absl::StatusOr<std::string> ReadPrompt(const GenerateOptions& options, int64_t limit);
// The texts that end an answer: those of --stop, and the one that ends an answer in the chat form.
std::vector<std::string> StopTexts(const GenerateOptions& options);
// Reads --logit-bias. UsageError.
absl::StatusOr<std::vector<LogitBias>> ParseLogitBias(const GenerateOptions& options);

// Three lines on standard error.
void PrintSummary(const Generation& generation);
// Includes log-probabilities if `logprobs`. One sample stands in the object itself, several in an array.
nlohmann::json ToJson(const Generation& generation, bool logprobs, const TokenText& token_text);
// Prints what ToJson returned. Bytes that are not UTF-8 become U+FFFD.
void PrintJson(const nlohmann::json& json);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_LOCAL_GENERATION_H_
