#include "kernels/sampling.h"

#include <bit>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace goldfinch::sampling {
namespace {

constexpr size_t kBlock = kSampleBlock;
constexpr int kBucketBits = 9;
constexpr size_t kBucketWays = 4;  // copies of each bucket: equal scores in a row would wait for each other's sums
constexpr float kInfinity = std::numeric_limits<float>::infinity();

size_t WholeBlocks(size_t count) { return (count + kBlock - 1) / kBlock * kBlock; }

// e^x for x <= 0, with a relative error below 2e-7; 0 below -87, where the result would not be a normal fp32 number.
// Exactly 1 at 0. Plain arithmetic, because libm's results differ between versions and processors.
inline float Exp(float x) {
  constexpr float kRound = 0x1.8p23F;  // adding it rounds to an integer, which is then in the low bits
  const float shifted = x * 1.44269504F + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0x1.62e4p-1F) - n * 0x1.7f7d1cp-20F;  // ln 2 in two parts; n times the first is exact
  // The Taylor series; |r| <= ln(2)/2.
  float y = 1.0F / 5040;
  y = y * r + 1.0F / 720;
  y = y * r + 1.0F / 120;
  y = y * r + 1.0F / 24;
  y = y * r + 1.0F / 6;
  y = y * r + 0.5F;
  y = y * r + 1.0F;
  y = y * r + 1.0F;
  const uint32_t scaled = std::bit_cast<uint32_t>(y) + (std::bit_cast<uint32_t>(shifted) << 23);
  const uint32_t mask = x >= -87.0F ? ~uint32_t{0} : 0;  // a mask, because GCC does not vectorize a conditional float
  return std::bit_cast<float>(scaled & mask);
}

// Integers in the order of the floats, which must not be -0.
inline uint32_t OrderedBits(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return bits ^ (bits >> 31 != 0 ? 0xFFFFFFFF : 0x80000000);
}

float Max(absl::Span<const float> values) {
  float max[kBlock];
  std::fill(max, max + kBlock, -kInfinity);
  ForEachBlock(values, [&max](size_t, const float* block) {
    for (size_t j = 0; j < kBlock; ++j) max[j] = max[j] < block[j] ? block[j] : max[j];
  });
  return *std::max_element(max, max + kBlock);
}

// The number of values must be that of whole blocks.
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

// The weights on both sides of a limit.
struct WeightSplit {
  float mass_below = 0;     // sum of the weights below the limit, to 1e-3
  int64_t count_above = 0;  // weights that are not below it
};

WeightSplit SplitAt(absl::Span<const float> weights, float limit) {
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

// The index of the weight whose part of [0, total) contains `target`. Weights are padded with zeros to whole blocks.
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
    if (weights[i] > 0) found = i;  // if rounding leaves the target above all of them, the last one is drawn
    sum += static_cast<double>(weights[i]);
    if (sum > target) break;
  }
  return found;
}

// Copies the logits to the scratch; returns false if one of them is not finite.
bool CopyLogits(absl::Span<const float> logits, SampleScratch& scratch) {
  const size_t rows = WholeBlocks(logits.size());
  if (scratch.scores.size() < rows) {
    scratch.scores.resize(rows);
    scratch.weights.resize(rows);
    scratch.ids.resize(rows);
    scratch.buckets.resize(kBucketWays << kBucketBits);
  }
  uint32_t not_finite[kBlock] = {};
  ForEachBlock(logits, [&not_finite, scores = scratch.scores.data()](size_t first, const float* block) {
    float copy[kBlock];
    for (size_t j = 0; j < kBlock; ++j) {
      // A number with all exponent bits set is infinite or NaN.
      const uint32_t magnitude = std::bit_cast<uint32_t>(block[j]) & 0x7FFFFFFF;
      not_finite[j] |= (0x7F7FFFFF - magnitude) >> 31;
      copy[j] = block[j] + 0.0F;  // turns -0 into 0: they are equal and must have equal bits
    }
    std::copy(copy, copy + kBlock, scores + first);
  });
  return std::none_of(not_finite, not_finite + kBlock, [](uint32_t bad) { return bad != 0; });
}

// A weight that every token which the cuts can keep has at least: top_p does not need all the smaller ones together, or
// there are top_k tokens that are not below it.
float LeastWeight(const SampleRow& row, absl::Span<const float> weights, double total) {
  if (row.top_p >= 1 && row.top_k == 0) return 0;
  const double needless = 0.99 * (1 - row.top_p) * total;  // a little less, because the sums are not exact
  const auto enough = [&](float weight) {
    const WeightSplit split = SplitAt(weights, weight);
    return static_cast<double>(split.mass_below) < needless || (row.top_k > 0 && split.count_above >= row.top_k);
  };
  for (float weight = 0x1p-4F; weight >= 0x1p-40F; weight *= 0x1p-4F) {
    if (enough(weight)) return enough(4 * weight) ? 4 * weight : weight;
  }
  return 0;
}

// Moves the tokens that the cuts can keep to the front, in the order of their ids. Returns their number.
size_t DropUnlikely(const SampleRow& row, int64_t limit, absl::Span<const int32_t> holes, double total,
                    SampleScratch& scratch) {
  const size_t rows = WholeBlocks(limit);
  const float weight_min =
      std::max(static_cast<float>(row.min_p), LeastWeight(row, absl::MakeSpan(scratch.weights.data(), rows), total));
  for (const int32_t id : holes) scratch.weights[id] = -1;
  for (const int32_t id : row.banned) scratch.weights[id] = -1;
  float* const scores = scratch.scores.data();
  float* const weights = scratch.weights.data();
  std::fill(weights + limit, weights + rows, -1.0F);
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

// Finds the last score to keep without sorting: sums weights and tokens in buckets of scores, then divides the bucket
// in which one of the two limits is reached in the same way, until a bucket is one score. That takes at most four
// rounds for 32 bits. Returns the number of tokens kept, which it moves to the front.
size_t CutTopPAndTopK(const SampleRow& row, size_t count, double total, float score_max, SampleScratch& scratch) {
  if (row.top_p >= 1 && row.top_k == 0) return count;
  const double mass_needed = row.top_p >= 1 ? std::numeric_limits<double>::infinity() : row.top_p * total;
  const int64_t count_max = row.top_k == 0 ? static_cast<int64_t>(count) : row.top_k;

  float* const scores = scratch.scores.data();
  float* const weights = scratch.weights.data();
  std::fill(scores + count, scores + WholeBlocks(count), score_max);
  uint32_t low = OrderedBits(Min(absl::MakeSpan(scores, WholeBlocks(count))));
  uint32_t high = OrderedBits(score_max);
  double mass_above = 0;
  int64_t count_above = 0;
  int64_t equals = 0;  // how many tokens with the last score are kept
  for (;;) {
    const int shift = std::max(0, static_cast<int>(std::bit_width(high - low)) - kBucketBits);
    const uint32_t last = (high - low) >> shift;
    SampleScratch::Bucket* const buckets = scratch.buckets.data();
    std::fill(buckets, buckets + kBucketWays * (last + 1), SampleScratch::Bucket());
    for (size_t i = 0; i < count; ++i) {
      const uint32_t below = high - OrderedBits(scores[i]);
      if (below > high - low) continue;
      SampleScratch::Bucket& bucket = buckets[kBucketWays * (below >> shift) + i % kBucketWays];
      bucket.mass += static_cast<double>(weights[i]);
      bucket.count += 1;
    }
    uint32_t at = 0;
    SampleScratch::Bucket bucket;
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

void ApplyTemperature(double temperature, size_t count, float score_max, SampleScratch& scratch) {
  const size_t rows = WholeBlocks(count);
  float* const scores = scratch.scores.data();
  float* const weights = scratch.weights.data();
  if (temperature != 1) {
    std::fill(scores + count, scores + rows, score_max);
    const auto max = static_cast<double>(score_max);
    for (size_t i = 0; i < rows; i += kBlock) {
      float block[kBlock];
      for (size_t j = 0; j < kBlock; ++j) {
        block[j] = Exp(static_cast<float>((static_cast<double>(scores[i + j]) - max) / temperature));
      }
      std::copy(block, block + kBlock, weights + i);
    }
  }
  std::fill(weights + count, weights + rows, 0.0F);
}

}  // namespace

std::optional<TokenDistribution> Distribution(absl::Span<const float> logits, int64_t limit,
                                              absl::Span<const int32_t> holes, const SampleRow& row,
                                              SampleScratch& scratch) {
  GF_CHECK(limit > 0 && limit <= static_cast<int64_t>(logits.size())) << limit;
  if (!CopyLogits(logits, scratch)) return std::nullopt;
  for (const LogitChange& change : row.changes) {
    float& score = scratch.scores[change.id];
    score = static_cast<float>(static_cast<double>(score) + change.amount) + 0.0F;  // + 0 turns -0 into 0
  }
  for (const int32_t id : holes) scratch.scores[id] = -kInfinity;
  for (const int32_t id : row.banned) scratch.scores[id] = -kInfinity;
  std::fill(scratch.scores.begin() + limit, scratch.scores.end(), -kInfinity);

  const absl::Span<const float> scores(scratch.scores.data(), WholeBlocks(limit));
  const float score_max = Max(scores);
  if (row.temperature == 0) {
    scratch.ids[0] = static_cast<int32_t>(std::find(scores.begin(), scores.end(), score_max) - scores.begin());
    std::fill(scratch.weights.begin(), scratch.weights.begin() + kBlock, 0.0F);
    scratch.weights[0] = 1;
    return TokenDistribution{absl::MakeSpan(scratch.ids.data(), 1), absl::MakeSpan(scratch.weights.data(), 1), 1};
  }
  const double softmax_total =
      Exponentiate(scores, score_max, [weights = scratch.weights.data()](size_t first, const float* exps) {
        std::copy(exps, exps + kBlock, weights + first);
      });
  size_t count = DropUnlikely(row, limit, holes, softmax_total, scratch);
  count = CutTopPAndTopK(row, count, softmax_total, score_max, scratch);
  ApplyTemperature(row.temperature, count, score_max, scratch);
  double total = 0;
  for (size_t i = 0; i < count; i += kBlock) total += BlockSum(scratch.weights.data() + i);
  return TokenDistribution{absl::MakeSpan(scratch.ids.data(), count), absl::MakeSpan(scratch.weights.data(), count),
                           total};
}

int32_t Draw(const TokenDistribution& distribution, double uniform) {
  const absl::Span<const float> padded(distribution.weights.data(), WholeBlocks(distribution.weights.size()));
  return distribution.ids[Find(padded, uniform * distribution.total)];
}

double LogTotal(absl::Span<const float> logits) {
  const float max = Max(logits);
  const double total = Exponentiate(logits, max, [](size_t, const float*) {});
  return static_cast<double>(max) + std::log(total);
}

}  // namespace goldfinch::sampling
