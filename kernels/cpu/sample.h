// Chooses a token from one row of logits on the host: steps 1 to 5 of worker/stage/sampler.h.
//
// A draw is a function of its arguments, to the bit, on every machine: arithmetic is done in a fixed order, without
// functions that differ among C libraries.
#ifndef GOLDFINCH_KERNELS_CPU_SAMPLE_H_
#define GOLDFINCH_KERNELS_CPU_SAMPLE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"

namespace goldfinch::cpu {

// What step 5 draws from: token ids[i] with probability weights[i] / total. Ids ascend. Memory of the scratch.
struct TokenDistribution {
  absl::Span<const int32_t> ids;
  absl::Span<const float> weights;
  double total = 0;
};

// Memory of one call, reused by the next, 12 bytes a logit. What is in it is this file's own affair.
struct SampleScratch {
  struct Bucket {
    double mass = 0;
    int64_t count = 0;
  };

  // Padded to whole blocks. By id at first, the logits of step 1 and e^(logit - max); as tokens drop out, of ids[i].
  std::vector<float> scores;
  std::vector<float> weights;
  std::vector<int32_t> ids;
  std::vector<Bucket> buckets;
};

// Steps 1 to 4. None if a logit is not finite. Ids are not drawn from `limit` on, nor those in `holes`; one at least is
// left. Allocates nothing once the scratch has grown to the vocabulary.
std::optional<TokenDistribution> Distribution(absl::Span<const float> logits, int64_t limit,
                                              absl::Span<const int32_t> holes, const SampleRow& row,
                                              SampleScratch& scratch);
// Step 5.
int32_t Draw(const TokenDistribution& distribution, double uniform);

// The logarithm of the sum of e^logit.
double LogTotal(absl::Span<const float> logits);

// Loops over logits run over whole blocks, which compilers turn into vector code. The order of every sum is part of the
// contract: it must not depend on how wide the vectors are.
inline constexpr size_t kSampleBlock = 16;

// Calls `visit(first, block)` for each block; the last one is filled up with the lowest finite number.
template <typename Visit>
void ForEachBlock(absl::Span<const float> values, Visit visit) {
  size_t i = 0;
  for (; i + kSampleBlock <= values.size(); i += kSampleBlock) visit(i, values.data() + i);
  if (i == values.size()) return;
  float last[kSampleBlock];
  std::fill(std::copy(values.begin() + i, values.end(), last), last + kSampleBlock,
            std::numeric_limits<float>::lowest());
  visit(i, last);
}

}  // namespace goldfinch::cpu

#endif  // GOLDFINCH_KERNELS_CPU_SAMPLE_H_
