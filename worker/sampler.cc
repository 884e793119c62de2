#include "worker/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "worker/philox.h"

namespace goldfinch {
namespace {

// Occurrences below this cannot change an fp32 logit, and would end as slow denormals.
constexpr double kOccurrenceMin = 1e-30;

// Loops run over whole blocks, which compilers turn into vector code. The order of every sum is part of the contract:
// it must not depend on how wide the vectors are.
constexpr size_t kBlock = 16;
constexpr int kBucketBits = 9;
constexpr size_t kBucketWays = 4;  // of each bucket: equal scores in a row would wait for each other's sums
constexpr float kInfinity = std::numeric_limits<float>::infinity();

size_t WholeBlocks(size_t count) { return (count + kBlock - 1) / kBlock * kBlock; }

// e^x for x <= 0, with a relative error below 2e-7; 0 below -87, where fp32 would leave its normal numbers. Plain
// arithmetic, because libm's results differ between versions and processors. Exactly 1 at 0.
inline float Exp(float x) {
  constexpr float kRound = 0x1.8p23F;  // adding it rounds to an integer, which then is in the low bits
  const float shifted = x * 1.44269504F + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0x1.62e4p-1F) - n * 0x1.7f7d1cp-20F;  // ln 2 in two parts; n times the first is exact
  // Taylor's series; |r| <= ln(2)/2.
  float y = 1.0F / 5040;
  y = y * r + 1.0F / 720;
  y = y * r + 1.0F / 120;
  y = y * r + 1.0F / 24;
  y = y * r + 1.0F / 6;
  y = y * r + 0.5F;
  y = y * r + 1.0F;
  y = y * r + 1.0F;
  const uint32_t scaled = std::bit_cast<uint32_t>(y) + (std::bit_cast<uint32_t>(shifted) << 23);
  const uint32_t mask = x >= -87.0F ? ~uint32_t{0} : 0;  // a mask, because GCC does not vectorise a choice of floats
  return std::bit_cast<float>(scaled & mask);
}

// Integers in the order of the floats. (No -0 comes here.)
inline uint32_t OrderedBits(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return bits ^ (bits >> 31 != 0 ? 0xFFFFFFFF : 0x80000000);
}

// Calls `visit(first, block)` for each block; the last one is filled up with the lowest finite number.
template <typename Visit>
void ForEachBlock(absl::Span<const float> values, Visit visit) {
  size_t i = 0;
  for (; i + kBlock <= values.size(); i += kBlock) visit(i, values.data() + i);
  if (i == values.size()) return;
  float last[kBlock];
  std::fill(std::copy(values.begin() + i, values.end(), last), last + kBlock, std::numeric_limits<float>::lowest());
  visit(i, last);
}

float Max(absl::Span<const float> values) {
  float max[kBlock];
  std::fill(max, max + kBlock, -kInfinity);
  ForEachBlock(values, [&max](size_t, const float* block) {
    for (size_t j = 0; j < kBlock; ++j) max[j] = max[j] < block[j] ? block[j] : max[j];
  });
  return *std::max_element(max, max + kBlock);
}

// Of whole blocks.
float Min(absl::Span<const float> values) {
  float min[kBlock];
  std::fill(min, min + kBlock, kInfinity);
  ForEachBlock(values, [&min](size_t, const float* block) {
    for (size_t j = 0; j < kBlock; ++j) min[j] = block[j] < min[j] ? block[j] : min[j];
  });
  return *std::min_element(min, min + kBlock);
}

double Sum(const double* values) {
  double sum = 0;
  for (size_t j = 0; j < kBlock; ++j) sum += values[j];
  return sum;
}

// Calls `take(first, block)` with e^(values - max) of each block; returns the sum of all.
template <typename Take>
double Exponentiate(absl::Span<const float> values, float max, Take take) {
  double sums[kBlock] = {};
  ForEachBlock(values, [&sums, max, take](size_t first, const float* block) {
    float exps[kBlock];
    for (size_t j = 0; j < kBlock; ++j) exps[j] = Exp(block[j] - max);
    for (size_t j = 0; j < kBlock; ++j) sums[j] += static_cast<double>(exps[j]);
    take(first, exps);
  });
  return Sum(sums);
}

struct Tail {
  float mass_below = 0;     // sum of the weights below a limit; quick and rough, to 1e-3
  int64_t count_above = 0;  // weights that are not below it
};

Tail TailBelow(absl::Span<const float> weights, float limit) {
  float masses[kBlock] = {};
  int32_t counts[kBlock] = {};
  ForEachBlock(weights, [&masses, &counts, limit](size_t, const float* block) {
    for (size_t j = 0; j < kBlock; ++j) {
      const uint32_t below = block[j] < limit ? ~uint32_t{0} : 0;
      masses[j] += std::bit_cast<float>(std::bit_cast<uint32_t>(block[j]) & below);
      counts[j] += static_cast<int32_t>(below + 1);
    }
  });
  return {std::accumulate(masses, masses + kBlock, 0.0F), std::accumulate(counts, counts + kBlock, int64_t{0})};
}

double BlockSum(const float* weights) {
  double sum = 0;
  for (size_t j = 0; j < kBlock; ++j) sum += static_cast<double>(weights[j]);
  return sum;
}

// Index of the weight in whose part of [0, total) `target` falls. Weights are padded with zeros to whole blocks.
size_t Find(absl::Span<const float> weights, double target) {
  double sum = 0;
  size_t first = 0;
  for (; first + kBlock < weights.size(); first += kBlock) {
    const double next = sum + BlockSum(weights.data() + first);
    if (next > target) break;
    sum = next;
  }
  size_t found = first;
  for (size_t i = first; i < weights.size(); ++i) {
    if (weights[i] > 0) found = i;  // rounding may leave the target above all of them: the last that can be drawn
    sum += static_cast<double>(weights[i]);
    if (sum > target) break;
  }
  return found;
}

}  // namespace

Sampler::Sampler(SamplingOptions options, std::shared_ptr<const SamplerVocabulary> vocabulary)
    : options_(std::move(options)), vocabulary_(std::move(vocabulary)), masked_(vocabulary_->holes()) {
  const absl::Status status = Validate(options_, *vocabulary_);
  GF_CHECK(status.ok()) << status.ToString();
  for (const int32_t id : options_.banned_tokens) {
    if (id < vocabulary_->limit()) masked_.push_back(id);
  }
}

void Sampler::Observe(int32_t id) {
  GF_CHECK(id >= 0 && id < vocabulary_->size()) << id;
  for (double& occurrence : occurrences_) {
    occurrence *= options_.penalty_decay;
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

absl::Status Sampler::CopyLogits(absl::Span<const float> logits, int64_t position, SamplerScratch& scratch) const {
  GF_CHECK_EQ(static_cast<int64_t>(logits.size()), vocabulary_->size());
  const size_t rows = WholeBlocks(logits.size());
  if (scratch.scores.size() < rows) {
    scratch.scores.resize(rows);
    scratch.weights.resize(rows);
    scratch.ids.resize(rows);
    scratch.buckets.resize(kBucketWays << kBucketBits);
    scratch.top.reserve(kLogprobsMax + 1);
  }
  uint32_t not_finite[kBlock] = {};
  ForEachBlock(logits, [&not_finite, scores = scratch.scores.data()](size_t first, const float* block) {
    float copy[kBlock];
    for (size_t j = 0; j < kBlock; ++j) {
      // All exponent bits set: infinite or NaN.
      const uint32_t magnitude = std::bit_cast<uint32_t>(block[j]) & 0x7FFFFFFF;
      not_finite[j] |= (0x7F7FFFFF - magnitude) >> 31;
      copy[j] = block[j] + 0.0F;  // -0 becomes 0: they are equal and must have equal bits
    }
    std::copy(copy, copy + kBlock, scores + first);
  });
  if (std::any_of(not_finite, not_finite + kBlock, [](uint32_t bad) { return bad != 0; })) {
    const auto bad = std::find_if(logits.begin(), logits.end(), [](float logit) { return !std::isfinite(logit); });
    return absl::InternalError(
        absl::StrCat("logit ", bad - logits.begin(), " of position ", position, " is ", *bad, ", it must be finite"));
  }
  return absl::OkStatus();
}

void Sampler::Adjust(absl::Span<float> scores) const {
  const auto add = [scores](int32_t id, double bias) {
    scores[id] = static_cast<float>(static_cast<double>(scores[id]) + bias) + 0.0F;  // + 0: no -0 here either
  };
  for (const LogitBias& entry : options_.logit_bias) add(entry.id, entry.bias);
  if (options_.presence_penalty != 0 || options_.frequency_penalty != 0) {
    for (size_t i = 0; i < seen_.size(); ++i) {
      add(seen_[i], -(options_.presence_penalty + occurrences_[i] * options_.frequency_penalty));
    }
  }
  for (const int32_t id : masked_) scores[id] = -kInfinity;
  std::fill(scores.begin() + vocabulary_->limit(), scores.end(), -kInfinity);
}

// A weight such that the cuts can leave only tokens that have it: all below it together are not what top_p still needs,
// or there are top_k above it.
float Sampler::LeastWeight(absl::Span<const float> weights, double total) const {
  if (options_.top_p >= 1 && options_.top_k == 0) return 0;
  const double needless = 0.99 * (1 - options_.top_p) * total;  // a little less, because sums are rough
  const auto enough = [&](float weight) {
    const Tail tail = TailBelow(weights, weight);
    return static_cast<double>(tail.mass_below) < needless ||
           (options_.top_k > 0 && tail.count_above >= options_.top_k);
  };
  for (float weight = 0x1p-4F; weight >= 0x1p-40F; weight *= 0x1p-4F) {
    if (enough(weight)) return enough(4 * weight) ? 4 * weight : weight;
  }
  return 0;
}

// Packs the tokens that the cuts can leave to the front, in the order of their ids.
size_t Sampler::DropUnlikely(size_t rows, double total, SamplerScratch& scratch) const {
  const float weight_min =
      std::max(static_cast<float>(options_.min_p), LeastWeight(absl::MakeSpan(scratch.weights.data(), rows), total));
  for (const int32_t id : masked_) scratch.weights[id] = -1;
  float* const scores = scratch.scores.data();
  float* const weights = scratch.weights.data();
  std::fill(weights + vocabulary_->limit(), weights + rows, -1.0F);
  int32_t* const ids = scratch.ids.data();
  size_t count = 0;
  for (size_t i = 0; i < rows; i += kBlock) {
    int32_t any = 0;
    for (size_t j = 0; j < kBlock; ++j) any |= weights[i + j] >= weight_min ? 1 : 0;
    if (any == 0) continue;
    for (size_t j = 0; j < kBlock; ++j) {
      const float weight = weights[i + j];
      scores[count] = scores[i + j];
      weights[count] = weight;
      ids[count] = static_cast<int32_t>(i + j);
      count += weight >= weight_min ? 1 : 0;
    }
  }
  return count;
}

// Finds the last score to keep without sorting: sums weights and tokens in buckets of scores, then looks again into the
// bucket where one of the two limits is reached, until a bucket is one score. At most four rounds for 32 bits.
size_t Sampler::CutTopPAndTopK(size_t count, double total, float score_max, SamplerScratch& scratch) const {
  if (options_.top_p >= 1 && options_.top_k == 0) return count;
  const double mass_needed = options_.top_p >= 1 ? std::numeric_limits<double>::infinity() : options_.top_p * total;
  const int64_t count_max = options_.top_k == 0 ? static_cast<int64_t>(count) : options_.top_k;

  float* const scores = scratch.scores.data();
  float* const weights = scratch.weights.data();
  std::fill(scores + count, scores + WholeBlocks(count), score_max);
  uint32_t low = OrderedBits(Min(absl::MakeSpan(scores, WholeBlocks(count))));
  uint32_t high = OrderedBits(score_max);
  double mass_above = 0;
  int64_t count_above = 0;
  int64_t equals = 0;  // of the last score to keep, how many stay
  for (;;) {
    const int shift = std::max(0, static_cast<int>(std::bit_width(high - low)) - kBucketBits);
    const uint32_t last = (high - low) >> shift;
    SamplerScratch::Bucket* const buckets = scratch.buckets.data();
    std::fill(buckets, buckets + kBucketWays * (last + 1), SamplerScratch::Bucket());
    for (size_t i = 0; i < count; ++i) {
      const uint32_t below = high - OrderedBits(scores[i]);
      if (below > high - low) continue;
      SamplerScratch::Bucket& bucket = buckets[kBucketWays * (below >> shift) + i % kBucketWays];
      bucket.mass += static_cast<double>(weights[i]);
      bucket.count += 1;
    }
    uint32_t at = 0;
    SamplerScratch::Bucket bucket;
    for (;; ++at) {
      bucket = {};
      for (size_t way = 0; way < kBucketWays; ++way) {
        bucket.mass += buckets[kBucketWays * at + way].mass;
        bucket.count += buckets[kBucketWays * at + way].count;
      }
      if (at == last || mass_above + bucket.mass >= mass_needed || count_above + bucket.count >= count_max) break;
      mass_above += bucket.mass;
      count_above += bucket.count;
    }
    if (shift == 0) {
      low = high = high - at;
      equals = std::min(bucket.count, count_max - count_above);
      break;
    }
    high -= at << shift;
    low = static_cast<uint32_t>(std::max<int64_t>(low, int64_t{high} - ((int64_t{1} << shift) - 1)));
  }

  size_t kept = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bits = OrderedBits(scores[i]);
    const bool keep = bits > low || (bits == low && equals > 0);
    if (bits == low) --equals;
    scores[kept] = scores[i];
    weights[kept] = weights[i];
    scratch.ids[kept] = scratch.ids[i];
    kept += keep ? 1 : 0;
  }
  return kept;
}

void Sampler::ApplyTemperature(size_t count, float score_max, SamplerScratch& scratch) const {
  const size_t rows = WholeBlocks(count);
  float* const scores = scratch.scores.data();
  float* const weights = scratch.weights.data();
  if (options_.temperature != 1) {
    std::fill(scores + count, scores + rows, score_max);
    const auto max = static_cast<double>(score_max);
    for (size_t i = 0; i < rows; i += kBlock) {
      float block[kBlock];
      for (size_t j = 0; j < kBlock; ++j) {
        block[j] = Exp(static_cast<float>((static_cast<double>(scores[i + j]) - max) / options_.temperature));
      }
      std::copy(block, block + kBlock, weights + i);
    }
  }
  std::fill(weights + count, weights + rows, 0.0F);
}

absl::StatusOr<TokenDistribution> Sampler::Distribution(absl::Span<const float> logits, int64_t position,
                                                        SamplerScratch& scratch) const {
  GF_RETURN_IF_ERROR(CopyLogits(logits, position, scratch));
  const size_t rows = WholeBlocks(vocabulary_->limit());
  Adjust(absl::MakeSpan(scratch.scores));
  const absl::Span<const float> scores(scratch.scores.data(), rows);
  const float score_max = Max(scores);
  if (options_.temperature == 0) {
    scratch.ids[0] = static_cast<int32_t>(std::find(scores.begin(), scores.end(), score_max) - scores.begin());
    std::fill(scratch.weights.begin(), scratch.weights.begin() + kBlock, 0.0F);
    scratch.weights[0] = 1;
    return TokenDistribution{absl::MakeSpan(scratch.ids.data(), 1), absl::MakeSpan(scratch.weights.data(), 1), 1};
  }
  const double softmax_total =
      Exponentiate(scores, score_max, [weights = scratch.weights.data()](size_t first, const float* exps) {
        std::copy(exps, exps + kBlock, weights + first);
      });
  size_t count = DropUnlikely(rows, softmax_total, scratch);
  count = CutTopPAndTopK(count, softmax_total, score_max, scratch);
  ApplyTemperature(count, score_max, scratch);
  double total = 0;
  for (size_t i = 0; i < count; i += kBlock) total += BlockSum(scratch.weights.data() + i);
  return TokenDistribution{absl::MakeSpan(scratch.ids.data(), count), absl::MakeSpan(scratch.weights.data(), count),
                           total};
}

absl::StatusOr<Token> Sampler::Sample(absl::Span<const float> logits, int64_t position, SamplerScratch& scratch) const {
  GF_ASSIGN_OR_RETURN(const TokenDistribution distribution, Distribution(logits, position, scratch));
  const double uniform = PhiloxUniform(options_.seed, static_cast<uint64_t>(position), PhiloxPurpose::kSampling);
  const absl::Span<const float> padded(distribution.weights.data(), WholeBlocks(distribution.weights.size()));
  Token token;
  token.id = distribution.ids[Find(padded, uniform * distribution.total)];
  if (options_.logprobs) FillLogprobs(logits, scratch, &token);
  return token;
}

void Sampler::FillLogprobs(absl::Span<const float> logits, SamplerScratch& scratch, Token* token) const {
  const float max = Max(logits);
  const double total = Exponentiate(logits, max, [](size_t, const float*) {});
  const double log_total = static_cast<double>(max) + std::log(total);
  const auto logprob = [&](int32_t id) { return static_cast<float>(static_cast<double>(logits[id]) - log_total); };
  token->logprob = logprob(token->id);

  // An insertion sort of those that are above the least of the list; of equals the first stays.
  const auto wanted = static_cast<size_t>(*options_.logprobs);
  std::vector<TokenLogprob>& top = scratch.top;  // holds logits at first
  top.clear();
  if (wanted == 0) return;
  float least = -kInfinity;
  ForEachBlock(logits.first(vocabulary_->limit()), [&](size_t first, const float* block) {
    int32_t any = 0;
    for (size_t j = 0; j < kBlock; ++j) any |= block[j] > least ? 1 : 0;
    if (any == 0) return;
    for (size_t id = first; id < std::min<size_t>(first + kBlock, vocabulary_->limit()); ++id) {
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
