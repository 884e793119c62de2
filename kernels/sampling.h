// Chooses a token from one row of logits on the host, by the steps of kernels/sample_row.h. Back ends on the CPU and
// the sampler of single rows share this code.
//
// Pure: a draw depends on its arguments alone, to the bit, on every machine. The arithmetic is done in a fixed order,
// without fused multiply-adds and without functions whose results differ among C libraries.
#ifndef GOLDFINCH_KERNELS_SAMPLING_H_
#define GOLDFINCH_KERNELS_SAMPLING_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "kernels/sample_row.h"

namespace goldfinch::sampling {

// What step 5 draws from: token ids[i] with probability weights[i] / total. Ids ascend. The spans point into the
// scratch that it was made with.
struct TokenDistribution {
  absl::Span<const int32_t> ids;
  absl::Span<const float> weights;
  double total = 0;
};

// Memory of one call, 12 bytes a logit, reused by the next. Only sampling.cc looks inside.
struct SampleScratch {
  struct Bucket {
    double mass = 0;
    int64_t count = 0;
  };

  // All padded to whole blocks. At first indexed by id: the logits of step 1, and e^(logit - max). As ids drop out,
  // entry i is of ids[i].
  std::vector<float> scores;
  std::vector<float> weights;
  std::vector<int32_t> ids;
  std::vector<Bucket> buckets;
};

// Steps 1 to 4. Ids from `limit` on and those in `holes` are removed in step 1; at least one id must remain. Returns
// nothing if a logit is not finite. Allocates nothing once the scratch has grown to the vocabulary.
std::optional<TokenDistribution> Distribution(absl::Span<const float> logits, int64_t limit,
                                              absl::Span<const int32_t> holes, const SampleRow& row,
                                              SampleScratch& scratch);
// Step 5: the id that `uniform`, in [0, 1), falls on.
int32_t Draw(const TokenDistribution& distribution, double uniform);

// The logarithm of the sum of e^logit.
double LogTotal(absl::Span<const float> logits);

// Loops over logits run over whole blocks, which compilers turn into vector code. The order of every sum is part of the
// contract: it must not depend on how wide the vectors are.
inline constexpr size_t kSampleBlock = 16;

// Calls visit(first, block) for each block of `values`; the last block is padded with the lowest finite number.
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

}  // namespace goldfinch::sampling

#endif  // GOLDFINCH_KERNELS_SAMPLING_H_
