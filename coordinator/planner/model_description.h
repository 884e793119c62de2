// What a worker says of the model it has opened (cluster.proto's Described): compared with what the cluster serves, and
// as plain data. Both take messages that CheckWorkerMessage has let through. Pure.
#ifndef GOLDFINCH_COORDINATOR_PLANNER_MODEL_DESCRIPTION_H_
#define GOLDFINCH_COORDINATOR_PLANNER_MODEL_DESCRIPTION_H_

#include "absl/status/status.h"
#include "base/stage_memory.h"

namespace goldfinch {

namespace cluster::v1 {
class Described;
}  // namespace cluster::v1

// INVALID_ARGUMENT names the first field in which `theirs` describes another model than `ours`, and both values. What a
// device takes of memory may differ.
absl::Status CheckSameModel(const cluster::v1::Described& ours, const cluster::v1::Described& theirs);

// What the model takes of the memory of the worker that has described it.
ModelMemory ReadModelMemory(const cluster::v1::Described& model);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_PLANNER_MODEL_DESCRIPTION_H_
