// How much of a device's memory the parts of a model take: the input of PlanStageMemory.
#ifndef GOLDFINCH_WORKER_MODEL_MODEL_MEMORY_H_
#define GOLDFINCH_WORKER_MODEL_MODEL_MEMORY_H_

#include "base/stage_memory.h"
#include "kernels/backend.h"
#include "worker/model/model.h"

namespace goldfinch {

// `model` may be loaded or only measured. Fields of layers that it does not have are left 0.
ModelMemory MemoryOf(const Model& model, DType cache_dtype, const Backend& backend);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_MODEL_MODEL_MEMORY_H_
