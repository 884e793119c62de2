// What a model's parts take of a device's memory, for PlanStageMemory.
#ifndef GOLDFINCH_WORKER_MODEL_MODEL_MEMORY_H_
#define GOLDFINCH_WORKER_MODEL_MODEL_MEMORY_H_

#include "base/stage_memory.h"
#include "kernels/backend.h"
#include "worker/model/model.h"

namespace goldfinch {

// `model` may be loaded or measured; what other stages have of it is left empty.
ModelMemory MemoryOf(const Model& model, DType cache_dtype, const Backend& backend);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_MODEL_MODEL_MEMORY_H_
