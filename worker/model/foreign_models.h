// Files that users take for models which this program computes, and that are something else.
#ifndef GOLDFINCH_WORKER_MODEL_FOREIGN_MODELS_H_
#define GOLDFINCH_WORKER_MODEL_FOREIGN_MODELS_H_

#include <string_view>

#include "worker/checkpoint/checkpoint.h"

namespace goldfinch {

// What the file is, by the names of its tensors, and what to do: the rest of a sentence that begins with the file's
// path. Empty if it is nothing of the kind.
std::string_view ForeignModel(const Checkpoint& checkpoint);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_MODEL_FOREIGN_MODELS_H_
