// A Step as the stages are told it.
#ifndef GOLDFINCH_COORDINATOR_STEP_ENCODING_H_
#define GOLDFINCH_COORDINATOR_STEP_ENCODING_H_

#include <cstdint>

#include "coordinator/scheduler.h"

namespace goldfinch {

namespace cluster::v1 {
class Step;
}  // namespace cluster::v1

// Whom a Step is for.
struct StepAudience {
  uint64_t generation = 0;
  int id_bytes = 2;           // IdBytes of the vocabulary
  bool looks_at_ids = false;  // the first stage, and those with GOLD layers
  bool is_last = false;       // the one that samples and scores
};

// `step` is cleared first.
void EncodeStep(const StepPlan& plan, const StepAudience& audience, cluster::v1::Step* step);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STEP_ENCODING_H_
