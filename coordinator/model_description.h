// What a worker says of the model it has opened (cluster.proto's Described), checked and as plain data. Pure.
#ifndef GOLDFINCH_COORDINATOR_MODEL_DESCRIPTION_H_
#define GOLDFINCH_COORDINATOR_MODEL_DESCRIPTION_H_

#include "absl/status/status.h"
#include "base/stage_memory.h"

namespace goldfinch {

namespace cluster::v1 {
class Described;
}  // namespace cluster::v1

// INVALID_ARGUMENT names the first field that is out of range, its value and the limit. The limits bound every sum that
// is computed from these numbers, and the planner's work.
absl::Status CheckModelDescription(const cluster::v1::Described& model);

// What the model takes of the memory of the worker that has described it.
ModelMemory ReadModelMemory(const cluster::v1::Described& model);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_MODEL_DESCRIPTION_H_
