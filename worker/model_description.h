// Describes a model to the coordinator, which plans from it how to share the layers out among workers.
#ifndef GOLDFINCH_WORKER_MODEL_DESCRIPTION_H_
#define GOLDFINCH_WORKER_MODEL_DESCRIPTION_H_

#include "base/stage_memory.h"
#include "kernels/tensor.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/model.h"
#include "worker/model/model_config.h"

namespace goldfinch {

namespace cluster::v1 {
class Described;
}  // namespace cluster::v1

// Fills every field of `described` except `error`. `memory` is that of the whole model, in caches of `cache_dtype`.
void DescribeModel(const Checkpoint& checkpoint, const ModelShape& shape, const ModelConfig& config, DType cache_dtype,
                   const ModelMemory& memory, cluster::v1::Described* described);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_MODEL_DESCRIPTION_H_
