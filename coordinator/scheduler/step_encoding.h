// Steps as the messages that workers understand.
#ifndef GOLDFINCH_COORDINATOR_SCHEDULER_STEP_ENCODING_H_
#define GOLDFINCH_COORDINATOR_SCHEDULER_STEP_ENCODING_H_

#include <cstdint>

#include "coordinator/scheduler/step.h"

namespace goldfinch {

namespace cluster::v1 {
class Step;
class StepDone;
}  // namespace cluster::v1

// The stage that a Step is written for.
struct StepAudience {
  uint64_t generation = 0;
  int id_bytes = 2;        // IdBytes of the vocabulary
  bool reads_ids = false;  // the first stage and every stage with GOLD layers; others get no ids
  bool is_last = false;    // the stage that samples and scores; others get no sampling options and no targets
};

// Overwrites `step`.
void EncodeStep(const StepPlan& plan, const StepAudience& audience, cluster::v1::Step* step);

// Overwrites `result` with the last stage's results, reusing its memory. Moves logits out of `done`. Errors
// become safe to show (base/safe_text.h). Nothing is checked here: CheckStepDone has been called, and Scheduler::Apply
// knows what was asked for.
void DecodeStepDone(cluster::v1::StepDone* done, StepResult* result);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SCHEDULER_STEP_ENCODING_H_
