// What a coordinator has to know of a model and of a device to share the layers out.
#ifndef GOLDFINCH_WORKER_DESCRIBE_H_
#define GOLDFINCH_WORKER_DESCRIBE_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "base/stage_memory.h"
#include "kernels/backend.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/model.h"
#include "worker/model/model_config.h"

namespace goldfinch {

namespace cluster::v1 {
class Described;
}  // namespace cluster::v1

// 16 hexadecimal digits over names, types and shapes of all tensors and the bytes at the head, middle and end of each:
// quick for files of any size. Equal for the same tensors in another kind of file.
std::string Fingerprint(const Checkpoint& checkpoint);

// Fills all of Described but `error`. `memory` is of the whole model.
void Describe(const Checkpoint& checkpoint, const ModelShape& shape, const ModelConfig& config, DType cache_dtype,
              const ModelMemory& memory, cluster::v1::Described* described);

struct DeviceSpeed {
  double flops = 0;  // a second: two a multiply-add
  double read_bytes_per_second = 0;
};

// Measures products of many rows and of one, in about 0.1 s. Errors as Backend::Allocate.
absl::StatusOr<DeviceSpeed> MeasureDevice(Backend& backend);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_DESCRIBE_H_
