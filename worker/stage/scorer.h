// Log-probabilities of given tokens, under the softmax over the whole vocabulary: the same that Sampler returns for the
// tokens that it draws.
#ifndef GOLDFINCH_WORKER_STAGE_SCORER_H_
#define GOLDFINCH_WORKER_STAGE_SCORER_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/sampling.h"
#include "worker/stage/sampler.h"

namespace goldfinch {

// Scores rows of logits, one at a time. Keeps its memory from row to row. One thread at a time.
class Scorer {
 public:
  // The natural logarithm of the probability of `target` after `position` tokens, computed in double. top() then has
  // the `top_count` likeliest sampleable tokens, best first, and of equals the lowest id first. INTERNAL if a logit is
  // not finite.
  absl::StatusOr<float> Score(absl::Span<const float> logits, int64_t position, int32_t target, int top_count,
                              const SamplerVocabulary& vocabulary);
  absl::Span<const TokenLogprob> top() const { return top_; }

 private:
  std::vector<TokenLogprob> top_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_SCORER_H_
