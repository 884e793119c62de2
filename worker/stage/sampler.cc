#include "worker/stage/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "worker/stage/philox.h"

namespace goldfinch {
namespace {

// Occurrences below this cannot change an fp32 logit, and would end as slow denormals.
constexpr double kOccurrenceMin = 1e-30;

std::shared_ptr<const SamplingOptions> Checked(SamplingOptions options, const SamplerVocabulary& vocabulary) {
  const absl::Status status = Validate(options, vocabulary);
  GF_CHECK(status.ok()) << status.ToString();
  std::erase_if(options.banned_tokens, [&](int32_t id) { return id >= vocabulary.limit(); });
  return std::make_shared<const SamplingOptions>(std::move(options));
}

}  // namespace

Sampler::Sampler(std::shared_ptr<const SamplingOptions> options, uint64_t seed,
                 std::shared_ptr<const SamplerVocabulary> vocabulary)
    : options_(std::move(options)), seed_(seed), vocabulary_(std::move(vocabulary)) {}

Sampler::Sampler(SamplingOptions options, std::shared_ptr<const SamplerVocabulary> vocabulary)
    : options_(Checked(std::move(options), *vocabulary)), seed_(options_->seed), vocabulary_(std::move(vocabulary)) {}

Sampler Sampler::WithSeed(uint64_t seed) const { return Sampler(options_, seed, vocabulary_); }

void Sampler::Observe(int32_t id) {
  GF_CHECK(id >= 0 && id < vocabulary_->size()) << id;
  for (double& occurrence : occurrences_) {
    occurrence *= options_->penalty_decay;
    if (occurrence < kOccurrenceMin) occurrence = 0;
  }
  // A look through the list: answers have some hundreds of different tokens, and the loop above passes them all anyway.
  const size_t index = std::find(seen_.begin(), seen_.end(), id) - seen_.begin();
  if (index == seen_.size()) {
    seen_.push_back(id);
    occurrences_.push_back(0);
  }
  if (!vocabulary_->repeats_freely(id)) occurrences_[index] += 1;
}

SampleRow Sampler::Row(int64_t position, std::vector<LogitChange>& changes) const {
  changes.clear();
  for (const LogitBias& entry : options_->logit_bias) changes.push_back({entry.id, entry.bias});
  if (options_->presence_penalty != 0 || options_->frequency_penalty != 0) {
    for (size_t i = 0; i < seen_.size(); ++i) {
      const double penalty = options_->presence_penalty + occurrences_[i] * options_->frequency_penalty;
      changes.push_back({seen_[i], -penalty});
    }
  }
  return {.temperature = options_->temperature,
          .top_p = options_->top_p,
          .top_k = options_->top_k,
          .min_p = options_->min_p,
          .uniform = PhiloxUniform(seed_, static_cast<uint64_t>(position), PhiloxPurpose::kSampling),
          .changes = changes,
          .banned = options_->banned_tokens};
}

absl::StatusOr<TokenDistribution> Sampler::Distribution(absl::Span<const float> logits, const SampleRow& row,
                                                        int64_t position, SamplerScratch& scratch) const {
  GF_CHECK_EQ(static_cast<int64_t>(logits.size()), vocabulary_->size());
  const std::optional<TokenDistribution> distribution =
      sampling::Distribution(logits, vocabulary_->limit(), vocabulary_->holes(), row, scratch.row);
  if (distribution) return *distribution;
  const auto bad = std::find_if(logits.begin(), logits.end(), [](float logit) { return !std::isfinite(logit); });
  return absl::InternalError(
      absl::StrCat("logit ", bad - logits.begin(), " of position ", position, " is ", *bad, ", it must be finite"));
}

absl::StatusOr<TokenDistribution> Sampler::Distribution(absl::Span<const float> logits, int64_t position,
                                                        SamplerScratch& scratch) const {
  return Distribution(logits, Row(position, scratch.changes), position, scratch);
}

absl::StatusOr<Token> Sampler::Sample(absl::Span<const float> logits, int64_t position, SamplerScratch& scratch) const {
  const SampleRow row = Row(position, scratch.changes);
  GF_ASSIGN_OR_RETURN(const TokenDistribution distribution, Distribution(logits, row, position, scratch));
  Token token;
  token.id = sampling::Draw(distribution, row.uniform);
  if (options_->logprobs) FillLogprobs(logits, scratch, &token);
  return token;
}

void Sampler::FillLogprobs(absl::Span<const float> logits, SamplerScratch& scratch, Token* token) const {
  const double log_total = sampling::LogTotal(logits);
  const auto logprob = [&](int32_t id) { return static_cast<float>(static_cast<double>(logits[id]) - log_total); };
  token->logprob = logprob(token->id);

  // An insertion sort of those that are above the least of the list; of equals the first stays.
  const auto wanted = static_cast<size_t>(*options_->logprobs);
  std::vector<TokenLogprob>& top = scratch.top;  // holds logits at first
  top.clear();
  top.reserve(kLogprobsMax + 1);
  if (wanted == 0) return;
  float least = -std::numeric_limits<float>::infinity();
  sampling::ForEachBlock(logits.first(vocabulary_->limit()), [&](size_t first, const float* block) {
    int32_t any = 0;
    for (size_t j = 0; j < sampling::kSampleBlock; ++j) any |= block[j] > least ? 1 : 0;
    if (any == 0) return;
    for (size_t id = first; id < std::min<size_t>(first + sampling::kSampleBlock, vocabulary_->limit()); ++id) {
      const TokenLogprob entry{static_cast<int32_t>(id), logits[id]};
      if (entry.logprob <= least || !vocabulary_->sampleable(entry.id)) continue;
      const auto better = [](const TokenLogprob& a, const TokenLogprob& b) { return a.logprob > b.logprob; };
      top.insert(std::upper_bound(top.begin(), top.end(), entry, better), entry);
      if (top.size() > wanted) top.pop_back();
      if (top.size() == wanted) least = top.back().logprob;
    }
  });
  for (TokenLogprob& entry : top) entry.logprob = logprob(entry.id);
  token->top = top;
}

}  // namespace goldfinch
