// The exact pre-fill rule: which rows the GOLD layers run.
//
// GOLD layers write nothing to the compressed cache: their attention reads the ids and compressed rows of all
// positions, which the Finch side has made. So while a prompt is read, they run only for positions whose logits are
// needed, and for a few rows before these. Apart from that attention, a row depends on rows of other positions only
// through token shifts: each GOLD layer has two, one in its time mix and one in its channel mix, and each looks one row
// back. So an output row of a layer needs three of its input rows: its own and the two before. For the logits of
// position p, the last of G layers needs the rows of p-2 .. p, the one before it p-4 .. p, and layer g = 1 .. G those
// of the last 2(G-g)+3 positions up to p. The first one needs 2G+1 rows: that of p and the 2G before it
// (TokenShiftReach).
//
// If the GOLD layers have run all positions up to one of those rows, their shift states hold what its token shifts look
// back at, and the rows before it are not needed. The rule therefore goes on from the position that the GOLD layers
// have reached if it lies within 2G rows before the first position that needs logits, or after that. Otherwise it skips
// what lies between, and begins with those 2G rows.
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
  // that every layer puts out two rows less than it takes, and the last one exactly those whose logits are needed.
  bool warm_up = false;

  int64_t count() const { return end - begin; }
};

// The rule for a chunk that ends before position `chunk_end` and whose last `logit_rows` positions need logits.
// `gold_position`: the GOLD layers have run all positions before it. `gold_layers`: G, in the whole model.
inline GoldInputRows ApplyPrefillRule(int64_t gold_position, int64_t chunk_end, int64_t logit_rows, int gold_layers) {
  if (logit_rows == 0) return {};
  const int64_t reach = chunk_end - logit_rows - TokenShiftReach(gold_layers);
  if (gold_position >= reach) return {gold_position, chunk_end, false};
  return {reach, chunk_end, true};
}

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_PREFILL_RULE_H_
