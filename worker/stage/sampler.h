// Chooses the next token of a sequence, as the RWKV tools do, with top_k, min_p, biases and bans besides.
//
// From the logits of a position to a token, in this order:
//   1. logit_bias is added; every token that has occurred loses presence_penalty + occurrence * frequency_penalty.
//      Banned tokens and ids without meaning leave. If the temperature is 0, the best is the token, of equals that
//      of the lowest id, and the rest of this list is not done.
//   2. Softmax of what is left.
//   3. top_p keeps p >= the p at which the sum from the largest down first reaches top_p: equals of that one stay.
//      top_k keeps the k largest, of equals those of the lowest ids. min_p keeps p >= min_p * the largest p.
//      Each looks at the p of step 2, so the shortest of the three lists remains, in whatever order they are applied.
//   4. Temperature as p^(1/temperature): after the cuts, so that it never changes which tokens may be drawn.
//   5. Renormalized, one draw.
// Equal means equal as fp32 logits after step 1.
//
// Occurrences: of the answer, not of the prompt. After each token all of them decay, then the token's own grows by 1,
// or by 0 if its text repeats freely (blanks and digits). Presence counts from the first time on in any case.
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
  // If options.logprobs is set, natural logarithms of the model's own probabilities: the softmax of the logits over the
  // whole vocabulary, before biases, penalties, bans, cuts and temperature. They tell what the model thinks, not how
  // likely this draw was. NaN if it is not set.
  float logprob = std::numeric_limits<float>::quiet_NaN();
  // The likeliest sampleable tokens (banned ones too), best first. Memory of the scratch.
  absl::Span<const TokenLogprob> top;
};

using sampling::TokenDistribution;  // what step 5 draws from

// Memory of one call, reused by the next; what is in it is Sampler's own affair. One a thread serves any number of
// samplers: 12 bytes a logit.
struct SamplerScratch {
  sampling::SampleScratch row;
  std::vector<LogitChange> changes;
  std::vector<TokenLogprob> top;
};

// Of one sequence. One thread at a time.
//
// Sample changes nothing: Observe takes every token of the answer, be it drawn here or replayed after a loss. So a
// draw is a function of (logits, options, tokens observed, position), to the bit, on every machine
// (kernels/sampling.h).
class Sampler {
 public:
  // `options` must be valid for the vocabulary: CHECKed.
  Sampler(SamplingOptions options, std::shared_ptr<const SamplerVocabulary> vocabulary);

  // The token for `position`, which is the number of tokens before it and picks the random number. `logits` is
  // [vocabulary]. INTERNAL if one of them is not finite (a model or a device gone wrong; masks are what banned_tokens
  // is for). Allocates nothing once the scratch has grown to the vocabulary and the tokens observed.
  absl::StatusOr<Token> Sample(absl::Span<const float> logits, int64_t position, SamplerScratch& scratch) const;

  // The next token of the answer is `id`.
  void Observe(int32_t id);

  // What Sample draws from. Errors as there.
  absl::StatusOr<TokenDistribution> Distribution(absl::Span<const float> logits, int64_t position,
                                                 SamplerScratch& scratch) const;

  // How the token for `position` is to be drawn, for Backend::Sample beside other rows: with the logits, limit and
  // holes of the vocabulary it draws what Sample does, where the back end's arithmetic is the CPU's. `changes` is
  // overwritten, and read through the row, as this sampler is: both must stay as they are until the draw.
  SampleRow Row(int64_t position, std::vector<LogitChange>& changes) const;

  const SamplingOptions& options() const { return options_; }

 private:
  absl::StatusOr<TokenDistribution> Distribution(absl::Span<const float> logits, const SampleRow& row, int64_t position,
                                                 SamplerScratch& scratch) const;
  void FillLogprobs(absl::Span<const float> logits, SamplerScratch& scratch, Token* token) const;

  const SamplingOptions options_;
  const std::shared_ptr<const SamplerVocabulary> vocabulary_;
  std::vector<int32_t> banned_;  // those below the vocabulary's limit

  // Tokens that have occurred, in order of their first time.
  std::vector<int32_t> seen_;
  std::vector<double> occurrences_;  // [seen]
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_SAMPLER_H_
