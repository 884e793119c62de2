#include "worker/stage/scorer.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace goldfinch {

absl::StatusOr<float> Scorer::Score(absl::Span<const float> logits, int64_t position, int32_t target, int top_count,
                                    const SamplerVocabulary& vocabulary) {
  GF_CHECK_EQ(static_cast<int64_t>(logits.size()), vocabulary.size());
  GF_CHECK(target >= 0 && target < vocabulary.size()) << target;
  const auto bad = std::find_if(logits.begin(), logits.end(), [](float logit) { return !std::isfinite(logit); });
  if (bad != logits.end()) {
    return absl::InternalError(
        absl::StrCat("logit ", bad - logits.begin(), " of position ", position, " is ", *bad, ", it must be finite"));
  }
  const double max = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const float logit : logits) total += std::exp(static_cast<double>(logit) - max);
  const double log_total = max + std::log(total);
  const auto logprob = [&](int32_t id) { return static_cast<float>(static_cast<double>(logits[id]) - log_total); };

  // An insertion sort of those above the least of the list, which holds logits at first; of equals the first stays.
  top_.clear();
  const auto wanted = static_cast<size_t>(top_count);
  const auto better = [](const TokenLogprob& a, const TokenLogprob& b) { return a.logprob > b.logprob; };
  for (int32_t id = 0; wanted > 0 && id < vocabulary.limit(); ++id) {
    const TokenLogprob entry{id, logits[id]};
    if (top_.size() == wanted && entry.logprob <= top_.back().logprob) continue;
    if (!vocabulary.sampleable(id)) continue;
    top_.insert(std::upper_bound(top_.begin(), top_.end(), entry, better), entry);
    if (top_.size() > wanted) top_.pop_back();
  }
  for (TokenLogprob& entry : top_) entry.logprob = logprob(entry.id);
  return logprob(target);
}

}  // namespace goldfinch
