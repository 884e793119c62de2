// Which rows of a step are in the GOLD layers of a stage, and which of them each token shift spends. Pure: planned once
// for a step, before its ops, which may run more than once.
#ifndef GOLDFINCH_WORKER_STAGE_GOLD_SPANS_H_
#define GOLDFINCH_WORKER_STAGE_GOLD_SPANS_H_

#include <cstdint>
#include <vector>

#include "base/stage_extent.h"
#include "kernels/backend.h"
#include "worker/stage/prefill_rule.h"

namespace goldfinch {

// Rows of the step's sequences lie back to back. A sequence that warms up (GoldInputRows) loses its first row at each
// token shift, so the rows behind it move up. Allocates nothing after its constructor for up to `max_sequences`.
class GoldSpans {
 public:
  GoldSpans(const StageExtent& stage, int max_sequences);

  // Plans a step: Clear, then Add for each chunk in order, then Finish.
  void Clear();
  // `rows` as for the first GOLD layer of the model; earlier stages have spent some of them. If there are no rows, no
  // span is added.
  void Add(int slot, const GoldInputRows& rows, const int32_t* pages);
  void Finish();

  // Token shifts of the stage's GOLD layers: two a layer.
  int shifts() const { return static_cast<int>(spans_.size()) - 1; }
  bool empty() const { return spans_[0].empty(); }
  // Rows of these that enter this stage.
  int64_t EntryRows(const GoldInputRows& rows) const { return rows.count() - (rows.warm_up ? spent_before_ : 0); }

  // The spans as they are when `shift` of the stage's token shifts have run: at(0) enter the stage, at(shifts()) leave
  // it. Valid until the next Clear.
  RowSpans at(int shift) const { return warms_up_ ? spans_[shift] : spans_[0]; }
  // Rows of at(shift).
  int64_t rows(int shift) const;
  // What token shift `shift` does between at(shift) and at(shift + 1): the row that each span which warms up spends, to
  // its slot's state; and the rows that remain, to their new places, in ascending order. Both are overwritten; both are
  // empty if nothing warms up.
  void SpentRows(int shift, std::vector<RowCopy>* to_slots) const;
  void RemainingRows(int shift, std::vector<RowCopy>* moves) const;

 private:
  const int64_t spent_before_;               // rows of a span that warms up, by GOLD layers of earlier stages
  std::vector<std::vector<RowSpan>> spans_;  // by shifts that have run; only the first if nothing warms up
  std::vector<bool> warm_up_;                // by span
  bool warms_up_ = false;                    // some span
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_GOLD_SPANS_H_
