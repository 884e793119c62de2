// A short name for the contents of a checkpoint, by which workers tell whether they have the same model.
#ifndef GOLDFINCH_WORKER_CHECKPOINT_FINGERPRINT_H_
#define GOLDFINCH_WORKER_CHECKPOINT_FINGERPRINT_H_

#include <string>

#include "worker/checkpoint/checkpoint.h"

namespace goldfinch {

// 16 hexadecimal digits. They depend on the name, type and shape of every tensor and on the bytes at its beginning,
// middle and end, so that a large file takes no longer than a small one. The same tensors in another kind of file, or
// under another naming scheme, have the same fingerprint.
std::string Fingerprint(const Checkpoint& checkpoint);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_CHECKPOINT_FINGERPRINT_H_
