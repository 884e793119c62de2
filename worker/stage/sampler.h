// Chooses the next token of a sequence, as the RWKV tools do, with top_k, min_p, biases and bans besides.
//
// kernels/sample_row.h has the steps from the logits of a position to a token. What is added to a logit in the first
// of them is logit_bias, less presence_penalty + occurrence * frequency_penalty for every token that has occurred.
//
// Occurrences are counted in the answer, not in the prompt. After each token all occurrences decay, then the token's
// own grows by 1, or by 0 if its text repeats freely (blanks and digits). Presence counts from the first time on in any
// case.
#ifndef GOLDFINCH_WORKER_STAGE_SAMPLER_H_
#define GOLDFINCH_WORKER_STAGE_SAMPLER_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/sampling.h"
#include "kernels/backend.h"
#include "kernels/sampling.h"

namespace goldfinch {

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
};

struct Token {
  int32_t id = 0;
  // The natural logarithm of the model's own probability, if options.logprobs is set, else NaN: the softmax of the
  // logits over the whole vocabulary, before biases, penalties, bans, cuts and temperature. It says what the model
  // predicts, not how likely this draw was.
  float logprob = std::numeric_limits<float>::quiet_NaN();
  // The likeliest sampleable tokens, banned ones included, best first, with their logprobs. Points into the scratch.
  absl::Span<const TokenLogprob> top;
};

using sampling::TokenDistribution;  // what the last step draws from

// Memory of one call that the next call reuses; its contents are private to Sampler. One for each thread serves any
// number of samplers. It takes 12 bytes a logit.
struct SamplerScratch {
  sampling::SampleScratch row;
  std::vector<LogitChange> changes;
  std::vector<TokenLogprob> top;
};

// The sampler of one sequence. One thread at a time.
//
// Sample changes nothing: Observe takes every token of the answer, whether it was drawn here or is replayed after a
// worker was lost. So a draw is a function of (logits, options, tokens observed, position), to the bit, on every
// machine (kernels/sampling.h).
class Sampler {
 public:
  // `options` must be valid for the vocabulary: CHECKed.
  Sampler(SamplingOptions options, std::shared_ptr<const SamplerVocabulary> vocabulary);
  // A sampler that has observed nothing, with the same options but for the seed; they are shared, not copied.
  Sampler WithSeed(uint64_t seed) const;

  // Draws the token for `position`, which is the number of tokens before it and selects the random number. `logits` is
  // [vocabulary]. INTERNAL if one of them is not finite: the model or the device is at fault, as tokens are masked by
  // banned_tokens, not by infinite logits. Allocates nothing once the scratch has grown to the vocabulary and the
  // tokens observed.
  absl::StatusOr<Token> Sample(absl::Span<const float> logits, int64_t position, SamplerScratch& scratch) const;

  // Tells the sampler that the next token of the answer is `id`.
  void Observe(int32_t id);

  // The distribution that Sample draws from. Errors are those of Sample.
  absl::StatusOr<TokenDistribution> Distribution(absl::Span<const float> logits, int64_t position,
                                                 SamplerScratch& scratch) const;

  // A description of the draw for `position` that Backend::Sample takes together with other rows. With the logits, and
  // limit and holes of the vocabulary, it draws what Sample draws, if the back end's arithmetic is that of the CPU.
  // `changes` is overwritten. The row points into it and into this sampler: neither may change until the draw.
  SampleRow Row(int64_t position, std::vector<LogitChange>& changes) const;

  bool wants_logprobs() const { return options_->logprobs.has_value(); }

 private:
  absl::StatusOr<TokenDistribution> Distribution(absl::Span<const float> logits, const SampleRow& row, int64_t position,
                                                 SamplerScratch& scratch) const;
  void FillLogprobs(absl::Span<const float> logits, SamplerScratch& scratch, Token* token) const;

  Sampler(std::shared_ptr<const SamplingOptions> options, uint64_t seed,
          std::shared_ptr<const SamplerVocabulary> vocabulary);

  const std::shared_ptr<const SamplingOptions> options_;  // banned tokens are below the vocabulary's limit
  const uint64_t seed_;                                   // in place of that of options_
  const std::shared_ptr<const SamplerVocabulary> vocabulary_;

  // Tokens that have occurred, in order of their first time.
  std::vector<int32_t> seen_;
  std::vector<double> occurrences_;  // [seen]
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_SAMPLER_H_
