// The devices that --devices names.
#ifndef GOLDFINCH_CLIENTS_CLI_MACHINE_DEVICE_LIST_H_
#define GOLDFINCH_CLIENTS_CLI_MACHINE_DEVICE_LIST_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace goldfinch {

struct DeviceList {
  enum class Kind {
    kAll,   // all GPUs that nobody else of this machine computes on, or the CPU if there is no GPU
    kCpu,   // the CPU
    kGpus,  // these GPUs
  };
  Kind kind = Kind::kAll;
  std::vector<int> gpus = {};  // kGpus: their numbers, in the order in which they were named

  bool operator==(const DeviceList&) const = default;
};

inline constexpr int kGpuNumberMax = 1023;

// Reads "all", "cpu", or numbers and ranges of numbers that are separated by commas: "0-7", "0,2,4-5".
// INVALID_ARGUMENT names the part that is wrong, and the limit.
absl::StatusOr<DeviceList> ParseDeviceList(const std::string& text);

// INVALID_ARGUMENT if the list names a GPU that a machine with so many does not have.
absl::Status CheckGpusExist(const DeviceList& devices, int gpus_of_machine);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_MACHINE_DEVICE_LIST_H_
