// `.pth` files: a zip archive with a pickle of the tensors' names and shapes, and one stored file per storage.
#ifndef GOLDFINCH_WORKER_CHECKPOINT_PTH_H_
#define GOLDFINCH_WORKER_CHECKPOINT_PTH_H_

#include <string_view>

#include "absl/status/statusor.h"
#include "worker/checkpoint/layout.h"

namespace goldfinch {

// Whether the file begins like a zip archive, or like what torch wrote before it used zip (which ReadPth then refuses).
bool LooksLikePth(std::string_view file);

// Reads the archive's directory and its pickle. The layout points into `file`. Every file of the archive becomes a part
// with its CRC-32; that of the pickle has been checked, others have not. Strided and unaligned tensors are copied,
// which reads them. Errors: INVALID_ARGUMENT; DATA_LOSS for the pickle's checksum; RESOURCE_EXHAUSTED.
absl::StatusOr<CheckpointLayout> ReadPth(std::string_view file);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_CHECKPOINT_PTH_H_
