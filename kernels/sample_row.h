// How a token is chosen from one row of logits: the options, and the steps that they control.
//
//   1. Every LogitChange is added to its logit. Ids that must not be drawn (from a limit on, holes in the vocabulary,
//      `banned`) are removed. If the temperature is 0, the id with the largest logit is the token, the lowest of equal
//      ones, and the steps below are skipped.
//   2. Softmax over the ids that remain.
//   3. top_p keeps every p that is at least the p at which the sum, taken from the largest down, first reaches top_p;
//      ids of equal p are all kept. top_k keeps the k largest, of equal ones those with the lowest ids. min_p keeps
//      every p that is at least min_p times the largest. All three look at the p of step 2, so their order does not
//      matter: the shortest of the three lists remains.
//   4. Temperature, as p^(1/temperature). It follows the cuts so that it never changes which ids can be drawn.
//   5. The rest is normalized again and one id is drawn with `uniform`.
//
// Two ids are equal if their fp32 logits after step 1 are.
#ifndef GOLDFINCH_KERNELS_SAMPLE_ROW_H_
#define GOLDFINCH_KERNELS_SAMPLE_ROW_H_

#include <cstdint>

#include "absl/types/span.h"

namespace goldfinch {

// What is added to one logit.
struct LogitChange {
  int32_t id = 0;
  double amount = 0;
};

struct SampleRow {
  double temperature = 1;                      // at least 0; 0 takes the largest logit
  double top_p = 1;                            // 1 keeps all
  int64_t top_k = 0;                           // 0 keeps all
  double min_p = 0;                            // 0 keeps all
  double uniform = 0;                          // the random number, in [0, 1)
  absl::Span<const LogitChange> changes = {};  // applied in this order; ids in [0, vocab)
  absl::Span<const int32_t> banned = {};       // ids in [0, vocab), besides those that the call removes from every row
};

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_SAMPLE_ROW_H_
