// How fast a device computes and reads, which the coordinator weighs when it shares layers out among workers.
#ifndef GOLDFINCH_WORKER_DEVICE_SPEED_H_
#define GOLDFINCH_WORKER_DEVICE_SPEED_H_

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace goldfinch {

struct DeviceSpeed {
  double flops = 0;  // floating-point operations per second; a multiply-add counts as two
  double read_bytes_per_second = 0;
};

// Times matrix products of many rows and of one row, in turns, which takes about 0.2 s; the shortest times count. What
// else runs on the machine all the while makes them longer. Returns the errors of Backend::Allocate
// and Backend::Synchronize.
absl::StatusOr<DeviceSpeed> MeasureDevice(Backend& backend);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_DEVICE_SPEED_H_
