// Describes a model to the coordinator, which plans from it how to share the layers out among workers.
#ifndef GOLDFINCH_WORKER_MODEL_DESCRIPTION_H_
#define GOLDFINCH_WORKER_MODEL_DESCRIPTION_H_

#include "absl/types/span.h"
#include "base/stage_memory.h"
#include "kernels/tensor.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/model.h"
#include "worker/model/model_config.h"
#include "worker/model/state_parts.h"

namespace goldfinch {

namespace cluster::v1 {
class Described;
class Joined;
}  // namespace cluster::v1

// Fills every field of `described` except `error`. `memory` is that of the whole model, in caches of `cache_dtype`.
void DescribeModel(const Checkpoint& checkpoint, const ModelShape& shape, const ModelConfig& config, DType cache_dtype,
                   const ModelMemory& memory, cluster::v1::Described* described);
// Fills `joined->parts` with what a stage saves: Stage::saved_parts().
void DescribeParts(absl::Span<const StatePart> parts, cluster::v1::Joined* joined);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_MODEL_DESCRIPTION_H_
