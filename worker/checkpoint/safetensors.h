// Checkpoints in safetensors files (base/safetensors_header.h).
#ifndef GOLDFINCH_WORKER_CHECKPOINT_SAFETENSORS_H_
#define GOLDFINCH_WORKER_CHECKPOINT_SAFETENSORS_H_

#include <string_view>

#include "absl/status/statusor.h"
#include "worker/checkpoint/layout.h"

namespace goldfinch {

// Whether the file begins like safetensors: a brace behind the 8 bytes of length.
bool LooksLikeSafetensors(std::string_view file);

// Reads the header. The layout points into `file`, but for tensors that are not aligned for their type: those are
// copied. As the format asks, the tensors must fill the file behind the header without holes and without overlap.
// Errors name the tensor: INVALID_ARGUMENT, RESOURCE_EXHAUSTED.
absl::StatusOr<CheckpointLayout> ReadSafetensors(std::string_view file);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_CHECKPOINT_SAFETENSORS_H_
