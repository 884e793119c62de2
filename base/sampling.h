// The sampling options of a request, and what sampling must know about a vocabulary. The coordinator validates them;
// the worker with the last stage draws by them (worker/stage/sampler.h).
#ifndef GOLDFINCH_BASE_SAMPLING_H_
#define GOLDFINCH_BASE_SAMPLING_H_

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace goldfinch {

inline constexpr int kLogprobsMax = 20;  // of SamplingOptions::logprobs

struct LogitBias {
  int32_t id = 0;
  double bias = 0;  // added to the logit, [-100, 100]; -100 makes a token unlikely, banned_tokens makes it impossible
};

// The defaults are those of the RWKV tools, which the models' authors tune by.
struct SamplingOptions {
  double temperature = 1;  // [0, 100]; below 1 the likely become likelier, 0 is greedy
  double top_p = 0.85;     // probability, [0, 1]; 1 keeps all, 0 the best and its equals
  int64_t top_k = 0;       // tokens, >= 0; 0 keeps all
  double min_p = 0;        // share of the largest probability, [0, 1]; 0 keeps all

  double presence_penalty = 0.2;   // logits, [-100, 100]; for having occurred at all
  double frequency_penalty = 0.2;  // logits an occurrence, [-100, 100]
  double penalty_decay = 0.996;    // factor on occurrences a token, [0, 1]; 0.996 halves them in 173 tokens

  std::vector<LogitBias> logit_bias = {};   // ids in [0, vocabulary); of an id named twice both are added
  std::vector<int32_t> banned_tokens = {};  // ids in [0, vocabulary), never drawn; 0 among them is "ignore end of text"

  uint64_t seed = 0;  // equal requests with equal seeds get equal tokens
  // [0, kLogprobsMax]; not set: none, 0: of the drawn token, n: also of the n likeliest tokens
  std::optional<int> logprobs = {};
};

// Whether tokens with this text may repeat at no cost: substrings of " \t0123456789", as numbers and tables need.
bool RepeatsFreely(std::string_view text);

// What sampling must know about a vocabulary; one object for all sequences, immutable.
class SamplerVocabulary {
 public:
  // One element an id that has a logit. `sampleable` is false for ids that have no token text (65530 to 65535 of the
  // World vocabulary), but true for the end of text; `repeats_freely` as the function above. At least one id is
  // sampleable.
  SamplerVocabulary(std::vector<bool> sampleable, std::vector<bool> repeats_freely);

  int64_t size() const { return static_cast<int64_t>(sampleable_.size()); }
  bool sampleable(int32_t id) const { return sampleable_[id]; }
  bool repeats_freely(int32_t id) const { return repeats_freely_[id]; }
  // All sampleable ids are below `limit`, and these below it are not sampleable.
  int64_t limit() const { return limit_; }
  const std::vector<int32_t>& holes() const { return holes_; }

 private:
  const std::vector<bool> sampleable_;
  const std::vector<bool> repeats_freely_;
  int64_t limit_ = 0;
  std::vector<int32_t> holes_;
};

// INVALID_ARGUMENT that names field, value and limit; also if the bans leave no token.
absl::Status Validate(const SamplingOptions& options, const SamplerVocabulary& vocabulary);

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_SAMPLING_H_
