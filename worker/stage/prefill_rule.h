// The exact pre-fill rule: which rows the GOLD layers run.
//
// The logits of position p depend on the Finch-side rows of the last 2G positions before p as well as on its own,
// through two token shifts a layer (TokenShiftReach), unless the GOLD layers have already run up to there and kept
// their shift states. docs/decisions/0009-boundary-bytes.md says which rows go from stage to stage because of it.
#ifndef GOLDFINCH_WORKER_STAGE_PREFILL_RULE_H_
#define GOLDFINCH_WORKER_STAGE_PREFILL_RULE_H_

#include <cstdint>

#include "base/stage_extent.h"

namespace goldfinch {

// The positions of one sequence whose Finch-side rows enter the first GOLD layer in one step.
struct GoldInputRows {
  int64_t begin = 0;  // the first position
  int64_t end = 0;    // one after the last; begin == end: the GOLD layers do not run
  // The shift states do not reach up to `begin`. Each token shift then spends the span's first row on its state, so
  // that every layer puts out two rows less than it takes, and the last one exactly those whose logits are wanted.
  bool warm_up = false;

  int64_t count() const { return end - begin; }
};

// The rule for a chunk that ends before position `chunk_end` and whose last `logit_rows` positions want logits.
// `gold_position`: the GOLD layers have run all positions before it. `gold_layers`: G, in the whole model.
inline GoldInputRows ApplyPrefillRule(int64_t gold_position, int64_t chunk_end, int64_t logit_rows, int gold_layers) {
  if (logit_rows == 0) return {};
  const int64_t reach = chunk_end - logit_rows - TokenShiftReach(gold_layers);
  if (gold_position >= reach) return {gold_position, chunk_end, false};
  return {reach, chunk_end, true};
}

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_PREFILL_RULE_H_
